"""What points are compared by: it must be there before anything runs, and a pruner must be able to read it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sweeping
from small_data import build

from cirbench import plugins
from cirbench.cli import main
from cirbench.files import write_npz
from cirbench.runs import execution
from cirbench.scoring import metrics
from cirbench.studies import design_file, worker
from cirbench.types import CirbenchError

PRUNED = 'sampler = "random"\ntrials = 2\npruner = "wilcoxon"\n' + sweeping.TEXT.replace(
    "[arms.space]", "[arms.space]\n\"method.dropout\" = { low = 0.0, high = 0.5 }")


def on_select(protocol: str, metric: str, value: float) -> Any:
    """A run's typed values as far as a sweep reads them."""
    scores = SimpleNamespace(metrics={metric: value})
    return SimpleNamespace(select=SimpleNamespace(protocols={protocol: scores}))


def scored(folder: Path, protocol: str, metric: str, arrays: dict[str, np.ndarray]) -> Any:
    """A record as far as a sweep reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_npz(folder / "select.npz", arrays)
    return SimpleNamespace(name=folder.name, id=folder.name, folder=folder, run=on_select(protocol, metric, 50.0))


def test_blocks_of_a_mean_are_means_of_its_parts(tmp_path: Path) -> None:
    ranks = np.arange(1, 41, dtype=np.int32)
    subset = np.linspace(0, 1, 40).astype(np.float32)
    record = scored(tmp_path, "p", "x", {"rank/p": ranks, "value/p/Rs@1": subset, "value/p/mAP@5": subset**2})

    def found(metric: str) -> list[float]:
        return worker.blocks(record, SimpleNamespace(objective=design_file.Objective("p", metric)))  # type: ignore[arg-type]

    for name in ("mean(R@10,R@20)", "mean(R@10, Rs@1)", "mean(R@5,R@10,R@30)", "mean(Rs@1,mAP@5)"):
        parts = [found(part) for part in metrics.parts(name)]
        assert len(found(name)) == worker.BLOCKS and found(name) == pytest.approx(np.mean(parts, axis=0))
    assert found("R@10") == [100, 100, 50, *[0] * 7]
    assert found("mean(R@10,R@20)") == [100, 100, 75, 50, 50, *[0] * 5]


@pytest.mark.parametrize(("dataset", "metric"), [
    ("fashioniq", "mean(R@10,R@50)"), ("cirr", "mean(R@5,Rs@1)"), ("shoes", "mean(R@1,R@10,R@50)"),
    ("fashion200k", "R@10"), ("circo", "mAP@5"),
])
def test_the_default_objective_of_every_dataset_can_be_pruned_by(
    dataset: str, metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build(dataset, tmp_path / "data")
    text = "\n".join(line for line in PRUNED.splitlines() if not line.startswith('"data.'))
    found = design_file.read(sweeping.write(tmp_path, text), dataset=dataset, root=root, seeds=[0, 1, 2])
    assert found.objective.metric == metric
    rng, protocol = np.random.default_rng(0), found.objective.protocol

    def fake(planned: Any, options: Any) -> Any:
        arrays = {f"rank/{protocol}": rng.integers(1, 60, 30)}
        arrays |= {f"value/{protocol}/{m}": rng.random(30).astype(np.float32) for m in ("Rs@1", "mAP@5")}
        return scored(tmp_path / f"run{rng.integers(2**40)}", protocol, metric, arrays)

    monkeypatch.setattr(execution, "run", fake)
    done = worker.Worker(found, worker.Options(tmp_path / "runs", "cpu"))
    done.work()
    rows = done.publish()["points"]
    assert rows[0]["state"] == "complete" and rows[1]["state"] in ("complete", "pruned")
    assert all(len(t.intermediate_values) >= 20 for t in done.study.trials)


def test_a_run_whose_select_file_is_damaged_fails_its_point_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = design_file.read(sweeping.write(tmp_path, PRUNED), seeds=[0, 1])

    def fake(planned: Any, options: Any) -> Any:
        record = scored(tmp_path / "run", "scenes", "R@1", {})
        (record.folder / "select.npz").write_bytes(b"half a file")
        return record

    monkeypatch.setattr(execution, "run", fake)
    done = worker.Worker(found, worker.Options(tmp_path / "runs", "cpu"))
    done.work()
    assert [row["state"] for row in done.publish()["points"]] == ["fail", "fail"]


@pytest.mark.parametrize("metric", ["MdR", "MR", "mean(R@1,MdR)"])
def test_a_median_cannot_be_pruned_by(metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = plugins.find_dataset("scenes")
    protocols = tuple(replace(p, metrics=("R@5", *p.metrics, metric)) for p in module.SPEC.protocols)
    monkeypatch.setattr(module, "SPEC", replace(module.SPEC, protocols=protocols))
    file = sweeping.write(tmp_path, f'objective.metric = "{metric}"\n' + PRUNED)
    with pytest.raises(CirbenchError) as told:
        design_file.read(file, seeds=[0, 1])
    for part in ("small.toml, key objective.metric:", f"'{metric}'", "wilcoxon", "Use R@5", 'pruner = "none"'):
        assert part in str(told.value)
    assert design_file.read(file, seeds=[0]).pruner == "none", "one seed is never pruned"


@pytest.mark.parametrize(("dataset", "arguments", "named"), [
    ("genecis", [], ["genecis has no select split", "--dataset scenes", "cirbench eval RUN --dataset genecis"]),
    ("circo", [], ["circo has no select split"]),
    ("fashioniq", ["--set", "data.select_share=0"], ["fashioniq", "data.select_share=0.", "to 0.05"]),
    ("fashioniq", ["--set", "data.select_share=0", "--dry-run"], ["data.select_share=0.", "to 0.05"]),
    ("fashioniq", ["--set", "data.select_share=0", "--slurm"], ["data.select_share=0.", "to 0.05"]),
], ids=lambda v: " ".join(v) if isinstance(v, list) else v)
def test_data_without_a_select_split_is_refused_before_any_run(
    dataset: str, arguments: list[str], named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = build(dataset, tmp_path / "data"), tmp_path / "runs"
    file = sweeping.write(tmp_path, '[[arms]]\nmethod = "random"\n')
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", file, "--dataset", dataset, "--root", str(root), "--out", str(out), *arguments])
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and not out.exists(), "nothing was begun"
    for part in ["small.toml", *named]:
        assert part in message, message


def test_one_point_of_many_without_a_select_split_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = build("fashioniq", tmp_path / "data"), tmp_path / "runs"
    text = '[[arms]]\nmethod = "random"\n[arms.space]\n"data.select_share" = [0.2, 0.0]\n'
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", sweeping.write(tmp_path, text), "-d", "fashioniq", "--root", str(root), "--out", str(out)])
    assert stopped.value.code == 2 and "data.select_share=0." in capsys.readouterr().err and not out.exists()
