"""Sweeps: points become ordinary runs; nothing is done twice, nothing is lost."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sweeping
from small_data import build

from cirbench import lease
from cirbench.cli import main
from cirbench.runs import execution, identity, planning
from cirbench.runs.record import Record
from cirbench.scoring import statistics
from cirbench.studies import design, design_file, display, launch, storage, worker
from cirbench.types import CirbenchError


def small(folder: Path, text: str = sweeping.TEXT, **over: Any) -> design.Sweep:
    return design_file.read(sweeping.write(folder, text), **{"seeds": [0], **over})


def make_worker(found: design.Sweep, out: Path, **over: Any) -> worker.Worker:
    return worker.Worker(found, worker.Options(out, "cpu", **over))


def test_a_trial_is_a_point_and_each_seed_an_ordinary_run(tmp_path: Path) -> None:
    found = small(tmp_path, trials=2, seeds=[0, 1])
    done = make_worker(found, tmp_path / "runs")
    done.work()
    data = json.loads((done.folder / "sweep.json").read_text())
    assert [p["state"] for p in data["points"]] == ["complete", "complete"] and data["total"] == 2
    for number, row in enumerate(data["points"]):
        for seed in (0, 1):
            record = Record(tmp_path / "runs" / row["seeds"][str(seed)]["run"])
            planned = found.plan(found.points()[number], seed)
            assert record.id == identity.identify(planned, planning.load(planned)).id
            assert record.data["inputs"]["seed"] == seed
            scored = record.data["select"]["protocols"]["scenes"]["metrics"]
            assert scored["R@1"] == row["seeds"][str(seed)]["objective"]
        mean, _ = statistics.mean_std([s["objective"] for s in row["seeds"].values()])
        assert row["value"] == pytest.approx(mean)
    assert {(t.state.name, t.value) for t in done.study.trials} == {("COMPLETE", p["value"]) for p in data["points"]}


def test_the_objective_is_not_the_reported_number(tmp_path: Path) -> None:
    done = make_worker(small(tmp_path, trials=1), tmp_path / "runs")
    done.work()
    (row,) = done.publish()["points"]
    record = Record(tmp_path / "runs" / row["seeds"]["0"]["run"])
    ranks = np.load(record.folder / "select.npz")["rank/scenes"]
    assert len(ranks) == 32 and record.data["protocols"]["scenes"]["queries"] == 48
    assert row["value"] == pytest.approx(100 * np.mean(ranks == 1))
    assert np.mean(worker.blocks(record, done.sweep)) == pytest.approx(row["value"], abs=5)


def test_the_table_tells_spread_seconds_and_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = sweeping.TEXT[: sweeping.TEXT.index("[[arms]]")].replace('"method.clip_dim" = 32\n', "").replace(
        '"method.streams" = "clip"\n"method.clip" = "scenes-small"', "") + """
[[arms]]
label = "one stream:"
methods = ["sum", "dwc no-emd"]
[arms.fixed]
"method.streams" = "clip"
[[arms]]
methods = ["random"]
"""
    file, out = sweeping.write(tmp_path, text), tmp_path / "runs"
    main(["sweep", file, "--out", str(out), "--device", "cpu"])
    header, *rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()[1:5]]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in (header, *rows)]
    assert cells[0] == ["point", "R@1 on select", "on report", "train s", "CPU s", "parameters"]
    assert [row[0] for row in cells[1:]] == ["one stream: sum", "one stream: dwc no-emd", "random"]
    for row, point in zip(cells[1:], sweeping.read(out)["points"], strict=True):
        records = [Record(out / s["run"]).data for s in point["seeds"].values()]
        mean, spread = statistics.mean_std([s["objective"] for s in point["seeds"].values()])
        assert row[1].startswith(f"{mean:.2f} ± {spread:.2f} [")
        mean, spread = statistics.mean_std([r["protocols"]["scenes"]["metrics"]["R@1"] for r in records])
        assert row[2] == f"{mean:.2f} ± {spread:.2f}"
        assert row[4] == f"{np.mean([r['cost']['seconds']['cpu'] for r in records]):,.1f}"
        assert row[5] == f"{records[0]['cost']['parameters']['trainable']:,}"
        assert point["method"] == "random" or 0 < records[0]["cost"]["seconds"]["cpu"] < 60
    main(["table", str(out)])
    header, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert header.startswith("| method | rank | streams | seeds | R@1") and header.endswith("| parameters | CPU s |")
    assert {tuple(row.split(" | ")[:3:2]) for row in rows} == {
        ("| sum", "clip"), ("| dwc no-emd", "clip"), ("| random", "")}


def test_a_tuning_names_the_command_for_fresh_seeds(tmp_path: Path) -> None:
    found = small(tmp_path, 'sampler = "tpe"\n' + TUNE, trials=1)
    done = make_worker(found, tmp_path / "runs")
    done.work()
    data = done.publish()
    shown, (row,) = display.table(data, tmp_path / "runs"), data["points"]
    (command,) = [line for line in shown.splitlines() if line.startswith("  cirbench run --method dwc")]
    assert "on report" not in shown.splitlines()[1], "a tuning does not look"
    words = shlex.split(command)
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    tuned = found.plan(design.Point("", "dwc", "", row["values"], row["fixed"]), 0)
    planned = planning.plan("dwc", "scenes", sets=sets)
    assert planned.config == tuned.config and planned.train == tuned.train
    assert "1,2,3,4,5" in command and planned.knobs.model_dump() == tuned.knobs.model_dump()


def test_what_has_a_record_is_not_run_again_in_whichever_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_worker(small(tmp_path), tmp_path / "runs")
    first.work()
    monkeypatch.setattr(execution, "_train", lambda *a: pytest.fail("trained again"))
    again = make_worker(small(tmp_path), tmp_path / "runs")
    again.work()
    assert worker.fingerprint(again.publish()) == worker.fingerprint(first.publish())
    # Another question with points in common, in another order.
    text = sweeping.TEXT.replace("[0.0, 0.5, 1.0]", "[1.0, 0.0]").replace("[0.05, 0.1]", "[0.1]")
    other = make_worker(design_file.read(sweeping.write(tmp_path, text, "other"), seeds=[0]), tmp_path / "runs")
    other.work()
    data = other.publish()
    assert [p["state"] for p in data["points"]] == ["complete"] * 2 and set(data["runs"]) < set(first.publish()["runs"])


def test_more_trials_go_on_with_the_same_study(tmp_path: Path) -> None:
    one = make_worker(small(tmp_path, trials=1), tmp_path / "runs")
    one.work()
    two = make_worker(small(tmp_path, trials=3), tmp_path / "runs")
    two.work()
    assert one.name == two.name and [t.number for t in two.study.trials] == [0, 1, 2]


def test_a_failing_run_is_retried_and_then_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, tries, real = small(tmp_path), [], execution.run

    def fails(planned: Any, options: Any) -> Record:
        if planned.config.model_dump()["soft_label_weight"] == 0.5:
            tries.append(planned.config.model_dump()["temperature"])
            if tries.count(0.05) < 2 or planned.config.model_dump()["temperature"] == 0.1:
                raise MemoryError("the machine is full")
        return real(planned, options)

    monkeypatch.setattr(execution, "run", fails)
    done = make_worker(found, tmp_path / "runs")
    done.work()
    data = done.publish()
    assert tries == [0.05, 0.05, 0.1, 0.1], "once more each (retries = 1), the first with success"
    assert [p["state"] for p in data["points"]] == ["complete"] * 3 + ["fail"] + ["complete"] * 2, "the sweep goes on"
    assert "seed 0, try 2: MemoryError: the machine is full" in data["points"][3]["error"]
    assert "the machine is full" in display.table(data)
    make_worker(found, tmp_path / "runs").work()
    assert len(tries) == 4, "a failed point stays failed"
    monkeypatch.setattr(execution, "run", real)
    mended = make_worker(found, tmp_path / "runs", retry_failed=True)
    mended.work()
    assert [p["state"] for p in mended.publish()["points"]] == ["complete"] * 6
    with pytest.raises(SystemExit):
        main(["sweep", "status", "other", "--out", str(tmp_path / "runs")])
    main(["sweep", "status", "small", "--out", str(tmp_path / "runs")])
    assert "6 points: 6 complete" in capsys.readouterr().out


def test_no_point_is_begun_after_the_deadline(tmp_path: Path) -> None:
    late = make_worker(small(tmp_path), tmp_path / "runs", deadline=time.time() - 1)
    late.work()
    assert late.publish()["points"] == []


def test_the_command_ends_with_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    main(["sweep", sweeping.write(tmp_path), "--seeds", "0", "--out", str(out), "--device", "cpu"])
    shown = capsys.readouterr()
    (page,) = out.glob("sweeps/*/report.html")
    assert str(page) in shown.out and "soft_label_weight" in page.read_text()
    assert "6 of 6 points" in shown.err and "one seed: no spread" in shown.out
    page.unlink()
    main(["sweep", sweeping.write(tmp_path), "--seeds", "0", "--out", str(out), "--device", "cpu", "--json", "--no-report"])
    assert json.loads(capsys.readouterr().out)["runs"] == sweeping.read(out)["runs"]
    assert not page.exists(), "--no-report"


def test_dry_run_counts_and_measures_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    main(["sweep", sweeping.write(tmp_path), "--out", str(out), "--dry-run", "--device", "cpu"])
    text = capsys.readouterr().out
    assert "6 points (grid) x 2 seeds on scenes" in text and "12 runs, 0 already finished; about" in text
    assert not out.exists()
    make_worker(small(tmp_path, trials=1), out).work()
    main(["sweep", sweeping.write(tmp_path), "--out", str(out), "--dry-run", "--device", "cpu"])
    assert "12 runs, 1 already finished" in capsys.readouterr().out


TUNE = sweeping.TEXT[: sweeping.TEXT.index("[arms.space]")] + """
[arms.space]
"method.temperature" = { low = 0.01, high = 0.5, log = true }
"method.soft_label_weight" = { low = 0.0, high = 1.0 }
"train.warmup" = { low = 0, high = 4 }
"""


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "qmc"])
def test_samplers_draw_different_points_and_go_on_after_a_restart(sampler: str, tmp_path: Path) -> None:
    found = small(tmp_path, f'sampler = "{sampler}"\n' + TUNE, trials=2)
    make_worker(found, tmp_path / "runs").work()
    more = make_worker(small(tmp_path, f'sampler = "{sampler}"\n' + TUNE, trials=3), tmp_path / "runs")
    more.work()
    data = more.publish()
    assert len({p["values"]["method.temperature"] for p in data["points"]}) == 3, "a restart repeats no draw"
    assert all(isinstance(p["values"]["train.warmup"], int) for p in data["points"])
    assert data["tuning"] == (sampler in ("tpe", "gp")) == ("This is tuning" in display.table(data))


def test_the_pruner_stops_what_is_clearly_worse_and_not_before_two_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'sampler = "random"\npruner = "wilcoxon"\n' + TUNE
    found = small(tmp_path, text, trials=2, seeds=[0, 1, 2])
    monkeypatch.setattr(worker, "blocks", lambda record, _: [
        n + (50.0 if record.data["inputs"]["config"]["temperature"] == first[0] else 0.0) for n in range(worker.BLOCKS)
    ])
    first: list[float] = []
    real = worker.Worker.point

    def point(self: worker.Worker, trial: Any) -> Any:
        found = real(self, trial)
        first.append(found.values["method.temperature"])
        return found

    monkeypatch.setattr(worker.Worker, "point", point)
    # Values follow the blocks, so that the first point is the best whatever the tiny runs say.
    monkeypatch.setattr(worker, "objective", lambda record, _: float(np.mean(worker.blocks(record, None))))  # type: ignore[arg-type]
    done = make_worker(found, tmp_path / "runs")
    done.work()
    rows = done.publish()["points"]
    assert [r["state"] for r in rows] == ["complete", "pruned"] and list(rows[1]["seeds"]) == ["0", "1"]


def test_intervals_are_students(tmp_path: Path) -> None:
    low, high = display.interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)
    assert np.isnan(display.interval([1.0])).all(), "one seed has no spread"


def test_passwords_are_not_shown() -> None:
    assert storage.hide_password("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert storage.hide_password("postgresql://me:a:b@c@host/db") == "postgresql://me:***@host/db"
    assert storage.hide_password("postgresql://me@host/db") == "postgresql://me@host/db"


def test_a_study_is_of_one_dataset_wherever_it_lies(tmp_path: Path) -> None:
    text = 'dataset = "custom"\n[[arms]]\nmethod = "random"\n'
    for name in ("here", "there", "other"):
        build("custom", tmp_path / name)
    captions = tmp_path / "other" / "triplets.test.jsonl"
    captions.write_text("".join(captions.read_text().splitlines(keepends=True)[:-1]))
    out = tmp_path / "runs"
    names = [make_worker(small(tmp_path, text, root=tmp_path / name), out).name for name in ("here", "there")]
    assert names[0] == names[1]
    with pytest.raises(CirbenchError, match=r"other annotations of custom .*other .*--out"):
        make_worker(small(tmp_path, text, root=tmp_path / "other"), out)
    make_worker(small(tmp_path, text, root=tmp_path / "other"), tmp_path / "elsewhere")


# ------------------------------------------------------------------------------------------ leases


def test_a_dead_process_is_told_from_a_slow_one() -> None:
    mine, watch = lease.identity(), lease.Watch(patience=0.2)
    assert not watch.dead(mine) and watch.dead(None)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    assert watch.dead({**mine, "pid": int(gone.stdout)})
    assert watch.dead({**mine, "born": mine["born"] - 100}), "its process id is another process's now"
    other = {**mine, "machine": "elsewhere", "token": "x"}
    assert not watch.dead(other)
    time.sleep(0.3)
    assert not watch.dead({**other, "beat": 1}), "slow, but its heart beats"
    time.sleep(0.3)
    assert watch.dead({**other, "beat": 1})


def test_a_second_process_waits_for_the_first_and_takes_over_from_a_dead_one(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom cirbench import lease\n"
        "with lease.held(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(float(sys.argv[2]))"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), "2"], stdout=subprocess.PIPE)
    assert first.stdout is not None and first.stdout.readline() == b"held\n"
    with lease.held(tmp_path) as waited:
        assert waited and first.wait(60) == 0
    assert not (tmp_path / "lease.json").exists()
    dead = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), "60"], stdout=subprocess.PIPE)
    assert dead.stdout is not None and dead.stdout.readline() == b"held\n"
    dead.kill()
    dead.wait()
    assert (tmp_path / "lease.json").exists()
    with lease.held(tmp_path) as waited:
        assert not waited, "its death is known at once"


def test_a_lock_whose_file_is_deleted_stays_a_lock(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "a.lock", [], []

    def enter(_: int) -> None:
        for _ in range(20):
            with lease.lock(path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()
                path.unlink()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert most == [1] * 80


def test_two_processes_with_one_run_do_it_once(tmp_path: Path) -> None:
    text = sweeping.TEXT.replace("[0.0, 0.5, 1.0]", "[0.0]").replace("[0.05, 0.1]", "[0.1]")
    commands = [sweeping.command(sweeping.write(tmp_path, text, name), tmp_path / "runs") for name in ("one", "two")]
    assert [p.wait(300) for p in [subprocess.Popen(c) for c in commands]] == [0, 0]
    studies = [json.loads(p.read_text()) for p in (tmp_path / "runs" / "sweeps").glob("*/sweep.json")]
    assert len(studies) == 2 and studies[0]["runs"] == studies[1]["runs"] and len(studies[0]["runs"]) == 2


# ----------------------------------------------------------------------------------------- crashes


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    sweeping.crashes(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_twenty_killed_workers_lose_nothing(tmp_path: Path) -> None:
    hits = sweeping.crashes(tmp_path, 20)
    assert sum(h != "nothing" for h in hits) >= 15, hits


# --------------------------------------------------------------------------------- other machines


def test_jobs_of_a_scheduler_join_the_study(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    found = small(tmp_path, trials=2)
    view = make_worker(found, tmp_path / "runs")
    arguments = {"name": str(tmp_path / "small.toml"), "seeds": [0], "trials": 2}
    jobs = launch.slurm(arguments, view.options, view.folder, 1, ["timeout_min=5"], cluster="local")
    for job in jobs:
        job.result()
    assert [p["state"] for p in view.publish()["points"]] == ["complete"] * 2


@pytest.mark.parametrize("in_the_file", [False, True], ids=["--timeout", "the file's timeout"])
def test_jobs_of_a_scheduler_keep_to_the_timeout(in_the_file: bool, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    file = sweeping.write(tmp_path, "timeout = 0.001\n" + sweeping.TEXT if in_the_file else sweeping.TEXT)
    view = make_worker(design_file.read(file, seeds=[0]), tmp_path / "runs")
    arguments = {"name": file, "seeds": [0], "timeout": None if in_the_file else 0.001}
    (job,) = launch.slurm(arguments, view.options, view.folder, 1, ["timeout_min=5"], cluster="local")
    job.result()
    assert view.publish()["points"] == [], "its time was up before its first point"


def test_threads_are_shared_by_workers(tmp_path: Path) -> None:
    file, out = sweeping.write(tmp_path), tmp_path / "runs"
    subprocess.run(sweeping.command(file, out, "--workers", "2", "--seeds", "0", "--trials", "2"), check=True)
    threads = [Record(out / run).data["environment"]["threads"] for run in sweeping.read(out)["runs"]]
    assert threads == [max(1, len(os.sched_getaffinity(0)) // 2)] * 2
