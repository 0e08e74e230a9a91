"""Runs: addressed by their inputs, never recomputed, resumable to the last bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from cirbench.reports.collect import collect
from cirbench.reports.tables import main_table, text_table
from safetensors.numpy import load_file

from cirbench import lease
from cirbench.cli._shared import summary_line
from cirbench.runs import evaluate_run, execution, identity, planning
from cirbench.runs.record import is_finished
from cirbench.types import CirbenchError

EQUAL_SETS = [
    "data.train_scenes=48", "data.select_scenes=8", "data.report_scenes=12", "data.distractors=12",
    "method.clip=scenes-small", "method.clip_dim=32", "method.cnn_dim=16", "method.word_dim=8",
    "train.batch_size=32",
]


def run_id(planned: planning.Plan) -> str:
    return identity.identify(planned, planning.load(planned)).id


def test_a_record_holds_what_it_promises(tmp_path: Path) -> None:
    record = tiny.run("dwc", tmp_path, seed=3)
    data = record.data
    assert set(data["inputs"]) == {
        "dataset", "data", "fingerprint", "images", "method", "config", "train", "seed", "weights", "numerics",
    }
    scored = data["protocols"]["scenes"]
    assert scored["queries"] == 48 and scored["metrics"].keys() >= {"R@1", "R@10", "balanced/R@1"}
    assert data["selection"]["rule"] == "last" and data["cost"]["flops"]["query"] > 0
    assert data["cost"]["parameters"]["trainable"] > 0 and data["cost"]["peak_memory_mb"] > 0
    assert data["environment"]["torch"] and data["environment"]["threads"]
    ranks = record.rankings["rank/scenes"]
    assert ranks.shape == (48,) and (ranks >= 1).all()
    assert scored["metrics"]["R@1"] == pytest.approx(100 * np.mean(ranks <= 1))
    top = record.rankings["top/text"]
    assert top.shape == (48, 50)
    for query, row in zip(record.queries, top, strict=True):
        assert record.gallery.index(query["reference"]) not in row[row >= 0], "the own reference is dropped"
        found = [record.gallery[t] for t in row if t >= 0]
        best = min((found.index(t) + 1 for t in query["targets"] if t in found), default=None)
        if best is not None:
            assert ranks[record.queries.index(query)] >= best
    assert record.rankings["weight/clip"].shape == (48,)
    steps = [line for line in record.training if "step" in line]
    assert len(steps) == 3
    assert set(steps[0]["losses"]) == {"clip/contrastive", "cnn/contrastive", "clip/mutual", "cnn/mutual"}
    assert 10 < len(record.pictures) and next(iter(record.pictures.values()))[:4] == b"RIFF"
    assert not (record.folder / "checkpoint.pt").exists()


def test_same_inputs_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny.run("sum", tmp_path, method__streams="clip")
    before = (first.folder / "record.json").stat().st_mtime_ns
    monkeypatch.setattr(execution, "_train", lambda *a: pytest.fail("trained again"))
    again = tiny.run("sum", tmp_path, variant="clip-only")
    assert again.folder == first.folder, "a variant and the equal --set are one run"
    assert (again.folder / "record.json").stat().st_mtime_ns == before


def test_what_changes_the_id_and_what_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, code = run_id(tiny.plan("dwc")), identity.code
    assert run_id(tiny.plan("dwc", train__seconds_between_checkpoints=0)) == base
    for other in (
        tiny.plan("dwc", seed=1), tiny.plan("dwc", variant="no-ssg"), tiny.plan("dwc", data__noise_kind="text"),
        tiny.plan("dwc", train__selection="select"), tiny.plan("dwc", method__clip="scenes-medium"),
        tiny.plan("dwc", train__epochs=2),
    ):
        assert run_id(other) != base
    for part, number in identity.code(tiny.plan("dwc")).items():
        with monkeypatch.context() as patch:
            patch.setattr(identity, "code", lambda planned, p=part, n=number: {**code(planned), p: f"not {n}"})
            assert run_id(tiny.plan("dwc")) != base


def test_force_deletes_nothing_while_another_process_works_there(tmp_path: Path) -> None:
    record = tiny.run("random", tmp_path)
    seen: list[bool] = []

    @contextlib.contextmanager
    def waited(folder: Path, **more: object) -> Iterator[bool]:
        seen.append(is_finished(folder))  # what another process may be reading before it is our turn
        with held(folder) as answer:
            yield answer

    held = lease.held
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "held", waited)
        again = tiny.run("random", tmp_path, force=True)
    assert seen == [True] and again.folder == record.folder and is_finished(again.folder)
    assert not list(again.folder.glob("lease*"))


def test_a_lease_that_outlived_its_finished_run_is_taken_away(tmp_path: Path) -> None:
    record = tiny.run("random", tmp_path)
    dead = {**lease.identity(), "pid": 2**22 + 1, "born": 1.0}
    (record.folder / "lease.json").write_text(json.dumps(dead))
    assert tiny.run("random", tmp_path).id == record.id
    assert not list(record.folder.glob("lease*"))


def test_force_repeats_bit_for_bit(tmp_path: Path) -> None:
    first = tiny.run("dwc", tmp_path, variant="clip-only")
    ranks, weights = first.rankings["top_score/text"], load_file(first.folder / "model.safetensors")
    again = tiny.run("dwc", tmp_path, variant="clip-only", force=True)
    assert again.data["finished"] >= first.data["finished"]
    assert np.array_equal(ranks, again.rankings["top_score/text"])
    repeated = load_file(again.folder / "model.safetensors")
    assert all(np.array_equal(weights[k], repeated[k]) for k in weights)


@pytest.mark.parametrize(("rule", "split"), [("select", "select"), ("test-oracle", "report")])
def test_selection_keeps_the_best_epoch(tmp_path: Path, rule: str, split: str) -> None:
    record = tiny.run("dwc", tmp_path, variant="clip-only", train__epochs=4, train__selection=rule)
    values = {line["epoch"] + 1: line["select"] for line in record.training if "select" in line}
    chosen = record.data["selection"]
    assert len(values) == 4 and chosen["rule"] == rule
    assert chosen["value"] == max(values.values()) == values[chosen["epoch"]]
    assert any("test-oracle" in note for note in record.data["notes"]) == (rule == "test-oracle")
    # Every place that shows a number says it.
    table = main_table(collect([record])[0], "scenes")
    for said in (summary_line(record.data), *(text_table(table, style) for style in ("csv", "markdown", "latex"))):
        assert ("test-oracle" in said) == (rule == "test-oracle")
    if rule == "test-oracle":
        assert record.data["protocols"]["scenes"]["metrics"]["R@1"] == chosen["value"]


def test_embeddings_of_a_finished_run_are_not_silently_left_out(tmp_path: Path) -> None:
    tiny.run("random", tmp_path)
    with pytest.raises(CirbenchError, match=r"finished, without embeddings\.npz.*--force"):
        execution.run(tiny.plan("random"), execution.Options(out=tmp_path, device="cpu", export=True))


def test_eval_repeats_the_numbers_of_its_run(tmp_path: Path) -> None:
    record = tiny.run("dwc", tmp_path, seed=1)
    planned, found = evaluate_run.plan_eval(record.folder)
    again = evaluate_run.evaluate_run(planned, found, tmp_path, "cpu", True, "test")
    assert again.folder != record.folder
    assert again.data["protocols"] == record.data["protocols"]
    assert np.array_equal(again.rankings["top_score/text"], record.rankings["top_score/text"])


def test_a_protocol_and_a_text_form_are_left_behind_on_another_dataset(tmp_path: Path) -> None:
    record = tiny.run("sum", tmp_path, "zero-shot", train__protocol="scenes", train__form="text")
    same, _ = evaluate_run.plan_eval(record.folder)
    assert (same.train.protocol, same.train.form) == ("scenes", "text")
    other, _ = evaluate_run.plan_eval(record.folder, "circo", root=tmp_path)
    assert (other.train.protocol, other.train.form) == ("", "")


def command(out: Path, epochs: int) -> list[str]:
    sets = [*EQUAL_SETS, f"train.epochs={epochs}", "train.seconds_between_checkpoints=0", "train.selection=select"]
    return [
        sys.executable, "-c", "from cirbench.cli import main; main()", "run", "-m", "dwc", "-d", "scenes", "--quiet",
        "--device", "cpu", "--out", str(out), *(x for s in sets for x in ("--set", s)),
    ]


def finished(out: Path) -> list[Path]:
    return [p for p in out.iterdir() if is_finished(p)] if out.is_dir() else []


def test_killed_at_random_moments_and_repeated_ends_bit_identical(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    epochs = 12
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole, epochs), check=True, env=environment, timeout=300)
    rng = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(command(broken, epochs), env=environment)
        # A checkpoint is written after every step: die a few steps on, somewhere in a step or in a write.
        steps, seen = rng.randint(1, 6), set[int]()
        deadline = time.monotonic() + 120
        while len(seen) < steps and process.poll() is None and time.monotonic() < deadline:
            for path in broken.glob("*/checkpoint.pt"):
                with contextlib.suppress(FileNotFoundError):
                    seen.add(path.stat().st_mtime_ns)
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not finished(broken)
    subprocess.run(command(broken, epochs), check=True, env=environment, timeout=300)
    (a,), (b,) = finished(whole), finished(broken)
    assert a.name == b.name
    one, two = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)
    with np.load(a / "rankings.npz") as x, np.load(b / "rankings.npz") as y:
        assert set(x.files) == set(y.files) and all(np.array_equal(x[k], y[k]) for k in x.files)
    logs = [[{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in (f / "training.jsonl").open()]
            for f in (a, b)]
    assert logs[0] == logs[1]


def test_weights_that_cannot_be_had_leave_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise CirbenchError("no weights")

    monkeypatch.setattr("cirbench.models.encoders.load_clip", refuse)
    with pytest.raises(CirbenchError, match="no weights"):
        tiny.run("sum", tmp_path, "clip-only")
    assert not list(tmp_path.iterdir())


def test_the_list_of_runs_tells_settings_that_no_name_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cirbench.cli import main

    tiny.run("random", tmp_path)
    main(["runs", str(tmp_path)])
    assert "data.train_scenes=48" in capsys.readouterr().out
    main(["runs", str(tmp_path), "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["state"] == "finished" and row["overrides"]["data.train_scenes"] == 48


def test_memory_is_measured_where_there_is_no_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows: psutil knows the peak there."""
    from types import SimpleNamespace

    from cirbench.runs import cost

    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(cost, "Path", lambda path: Path("/nowhere") / path.lstrip("/"))
    monkeypatch.setattr(cost.psutil, "Process", lambda: SimpleNamespace(
        memory_info=lambda: SimpleNamespace(peak_wset=7 * 2**20)))
    assert cost.peak_memory_mb(torch.device("cpu")) == 7


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_memory_is_of_this_process_and_not_of_the_one_that_started_it() -> None:
    """A process that was started by a large one begins with its peak, as getrusage counts."""
    code = (
        "import subprocess, sys; held = bytearray(900 * 2**20); held[::4096] = b'x' * len(held[::4096])\n"
        "child = 'import torch; from cirbench.runs.cost import peak_memory_mb as p; print(p(torch.device(\"cpu\")))'\n"
        "print(subprocess.run([sys.executable, '-c', child], capture_output=True, text=True, check=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50 < float(done.stdout) < 850
