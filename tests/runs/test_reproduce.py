"""expected.toml and `cirbench reproduce`: recipes that resolve, verdicts, and an estimate without training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import exit_code

from cirbench import plugins
from cirbench.runs import planning, reproduce
from cirbench.runs.record_types import ProtocolScores
from cirbench.runs.reproduce import Expected, Row
from cirbench.types import CirbenchError

SMALL = [f"--set=data.{k}={n}" for k, n in (
    ("train_scenes", 48), ("select_scenes", 8), ("report_scenes", 12), ("distractors", 12))]
SMALL += ["--set=method.clip=scenes-small", "--set=method.clip_dim=16", "--set=train.batch_size=32",
          "--set=train.epochs=1", "--device=cpu"]


def label(row: Expected) -> str:
    return "-".join([row.method, row.dataset, *map(str, row.over.values())])


@pytest.mark.parametrize("row", reproduce.read(), ids=label)
def test_every_published_row_is_a_recipe_that_can_be_run(row: Expected, tmp_path: Path) -> None:
    planned = row.plan(root=tmp_path)
    assert planned.train.protocol == row.protocol and planned.variant == row.variant
    (protocol,) = [p for p in plugins.find_dataset(row.dataset).SPEC.protocols if p.name == row.protocol]
    assert {m.rpartition("/")[2] for m in row.metrics} <= set(protocol.metrics)
    assert all(0 < v < 100 for v in row.metrics.values()) and row.source and 0 < row.tolerance[0] < row.tolerance[1]
    order = [v for k, v in sorted(row.metrics.items(), key=lambda kv: int(kv[0].rpartition("@")[2])) if "/" not in k]
    assert order == sorted(order), "recall grows with K"


def test_recipes_of_dwc_follow_the_release(tmp_path: Path) -> None:
    """201 epochs, on all of train, the best on the test set; an epoch of Shoes holds every pair twice there."""
    for dataset, epochs, every in (("shoes", 402, 2), ("fashioniq", 201, 1), ("fashion200k", 50, 1)):
        for row in reproduce.find("dwc", dataset):
            planned = row.plan(root=tmp_path)
            assert (planned.train.epochs, planned.train.eval_every) == (epochs, every)
            assert planned.train.selection == "test-oracle" and planned.train.batch_size == 32
            (protocol,) = [p for p in plugins.find_dataset(dataset).SPEC.protocols if p.name == row.protocol]
            assert protocol.summary.startswith("mean("), "the epoch is chosen by the mean of what is reported"
    assert all(row.plan(root=tmp_path).knobs.model_dump()["select_share"] == 0 for row in reproduce.read())


def test_what_is_set_by_hand_wins_over_the_recipe(tmp_path: Path) -> None:
    (row,) = reproduce.find("dwc", "shoes")
    assert row.plan(root=tmp_path).train.selection == "test-oracle"
    planned = row.plan(sets=["train.selection=last", "train.epochs=3"], root=tmp_path)
    assert (planned.train.selection, planned.train.epochs) == ("last", 3)


@pytest.mark.parametrize(("difference", "expected"), [
    (0.0, "OK"), (1.5, "OK"), (-1.5, "OK"), (1.51, "OKish"), (-3.0, "OKish"), (3.01, "FAIL"), (-40.0, "FAIL"),
])
def test_verdicts(difference: float, expected: str) -> None:
    assert reproduce.verdict(difference, (1.5, 3.0)) == expected


def test_comparison_reads_the_protocol_that_was_published() -> None:
    row = Expected("m", "d", "", "b", {}, {"R@1": 10.0, "x/R@10": 50.0}, "s", (1.0, 2.0))
    protocols = {
        name: ProtocolScores(5, 9, 0, "text", metrics, None, None)
        for name, metrics in {"a": {"R@1": 99.0}, "b": {"R@1": 10.5, "x/R@10": 44.0}}.items()
    }
    record: Any = SimpleNamespace(name="r", omitted={"c": "no labels"}, protocols=protocols)
    rows = reproduce.compare(row, record)
    assert rows == [Row("R@1", 10.0, 10.5, "OK"), Row("x/R@10", 50.0, 44.0, "FAIL")]
    assert [r.difference for r in rows] == [0.5, -6.0]
    with pytest.raises(CirbenchError, match="no labels"):
        reproduce.compare(Expected("m", "d", "", "c", {}, {}, "s", (1.0, 2.0)), record)
    with pytest.raises(CirbenchError, match="R@7"):
        reproduce.compare(Expected("m", "d", "", "a", {}, {"R@7": 1.0}, "s", (1.0, 2.0)), record)


def test_unpublished_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("reproduce", "dwc", "-d", "scenes") == 2
    assert "shoes" in capsys.readouterr().err
    assert exit_code("reproduce", "dcw", "-d", "shoes") == 2
    assert "Did you mean 'dwc'?" in capsys.readouterr().err


@pytest.fixture
def on_scenes(monkeypatch: pytest.MonkeyPatch) -> str:
    """A published row of a dataset that is at hand."""
    name = plugins.find_dataset("scenes").SPEC.protocols[-1].name
    row = Expected("concat", "scenes", "clip-only", name, {}, {"R@1": 200.0}, "nowhere", (1.0, 2.0), "impossible")
    monkeypatch.setattr(reproduce, "read", lambda: [row])
    return name


def test_a_recipe_is_run_and_judged(
    on_scenes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("reproduce", "concat", "-d", "scenes", "--out", str(tmp_path / "runs"), *SMALL) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and "200.00" in out and "impossible" in out and "source: nowhere" in out
    (folder,) = (tmp_path / "runs").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["default_protocol"] == on_scenes, "the protocol compared with is the one trained for"
    ours = record["protocols"][on_scenes]["metrics"]["R@1"]
    assert f"{ours:.2f}" in out and f"{ours - 200:+.2f}" in out
    # The same run against figures that it comes near: nothing is trained again.
    (row,) = reproduce.read()
    for published, verdict in ((ours, "OK"), (ours - 1.0, "OK"), (ours + 1.5, "OKish")):
        near = dataclasses.replace(row, metrics={"R@1": published})
        monkeypatch.setattr(reproduce, "read", lambda near=near: [near])
        assert exit_code("reproduce", "concat", "-d", "scenes", "--out", str(tmp_path / "runs"), *SMALL) == 0
        out = capsys.readouterr().out
        (line,) = [line.split() for line in out.splitlines() if line.split()[:1] == ["R@1"]]
        assert line[1:] == [f"{published:.2f}", f"{ours:.2f}", f"{ours - published:+.2f}", verdict]
        assert ("impossible" in out) == (verdict != "OK")
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [folder.name]


def test_dry_run_trains_nothing(on_scenes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    assert exit_code("reproduce", "concat", "-d", "scenes", "--dry-run", "--json", "--out", str(out), *SMALL) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert not out.exists()
    planned = planning.plan("concat", "scenes", "clip-only", sets=[s.partition("=")[2] for s in SMALL if "set" in s])
    assert found["steps"] == len(planning.load(planned).splits["train"].queries) // 32
    assert found["seconds"] > 0 and found["memory_mb"] > 50 and found["evaluations"] == 2, "on select as well"
    # image and text projections to 16, and the perceptron with two normalisations
    width = 128
    assert exit_code("reproduce", "concat", "-d", "scenes", "--dry-run", "--out", str(out), *SMALL) == 0
    told = capsys.readouterr().out
    for part in ("source: nowhere", "1 epochs of batches of 32", "recipe:", "3 steps of", "about ", "memory "):
        assert part in told
    assert not out.exists()
    assert found["parameters"] == 2 * (width * 16 + 16) + (32 * 32 + 32) + (32 * 16 + 16) + 4 * 32


def test_protocol_that_a_dataset_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("run", "-m", "concat", "-d", "scenes", "--set", "train.protocol=scenez", *SMALL) == 2
    assert "unknown protocol of scenes 'scenez'" in capsys.readouterr().err
