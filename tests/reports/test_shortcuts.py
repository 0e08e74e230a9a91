"""Which queries need composition, and `cirbench audit`: by hand, and through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cirbench.reports import modalities, shortcuts
from cirbench.reports.collect import TestSet, collect
from cirbench.reports.differences import difference, error_of
from click.testing import CliRunner
from fake_records import write_run

from cirbench.cli.audit import audit as command
from cirbench.runs.store import find_records
from cirbench.scoring import inference
from cirbench.types import CirbenchError

SINGLE: list[dict[str, Any]] = [{"method": "text-only", "skill": 0.4}, {"method": "image-only", "skill": 0.3}]


def made(folder: Path, *runs: dict[str, Any], seeds: int = 2) -> TestSet:
    for n, given in enumerate(runs):
        for seed in range(seeds):
            write_run(folder / f"{n}-{seed}", seed=seed, queries=60, gallery=70, pictures=0, **given)
    (test,) = collect(find_records([folder]))
    return test


@pytest.mark.parametrize("seeds", [1, 3])
def test_recall_on_the_rest_by_hand(seeds: int, tmp_path: Path) -> None:
    test = made(tmp_path, {"skill": 0.6}, {"method": "sum", "skill": 0.5}, *SINGLE, seeds=seeds)
    found = modalities.audit(test, "scenes", "R@1")
    assert found is not None
    hits = {a.method: np.stack([r.rankings["rank/scenes"] == 1 for r in a.records]).astype(float) for a in test.arms}
    text, image = (hits[n].mean(0) >= 0.5 for n in ("text-only", "image-only"))
    kinds = {"neither": ~text & ~image, "text alone": text & ~image, "image alone": ~text & image, "both": text & image}
    rows = shortcuts.rest(test, found, "scenes")
    assert [r.arm.method for r in rows] == sorted(("dwc", "sum"), key=lambda m: -hits[m][:, kinds["neither"]].mean())
    for row in rows:
        mine = hits[row.arm.method]
        assert row.all == pytest.approx(100 * mine.mean()) and row.rest == pytest.approx(100 * mine[:, kinds["neither"]].mean())
        for name, mask in kinds.items():
            wanted = 100 * mine[:, mask].mean() if mask.any() else np.nan
            assert row.cells[name] == pytest.approx(wanted, nan_ok=True)
        low, high = inference.mean_interval(mine[:, kinds["neither"]], test.clusters[kinds["neither"]])
        assert (row.low, row.high) == pytest.approx((100 * low, 100 * high)) and row.low < row.rest < row.high
    best = next(a for a in test.arms if a.method == found.better)
    change = difference(best, found.arm, "scenes", "R@1")
    assert change is not None
    error = error_of(change, test.clusters, None)
    assert (found.gap_low, found.gap_high) == pytest.approx((100 * error.low, 100 * error.high))
    for label in shortcuts.labels(test, found, "scenes"):
        mask = test.groups == label.label
        assert label.count == mask.sum() and label.cells == {n: int((mask & kind).sum()) for n, kind in kinds.items()}


def test_where_one_modality_answers_all_there_is_no_rest(tmp_path: Path) -> None:
    test = made(tmp_path, {"skill": 0.5}, {"method": "text-only", "skill": 1.0}, SINGLE[1], seeds=1)
    found = modalities.audit(test, "scenes", "R@10")
    assert found is not None
    assert not (found.cell_of == 0).any()
    (row,) = shortcuts.rest(test, found, "scenes")
    assert np.isnan(row.rest) and np.isnan(row.low)
    done = CliRunner().invoke(command, [str(tmp_path), "--metric", "R@10"], catch_exceptions=False)
    assert done.exit_code == 0 and "no query" in done.output


def test_the_command(tmp_path: Path) -> None:
    test = made(tmp_path, {"skill": 0.6}, *SINGLE)
    done = CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0 and "needs composition" in done.output and "R@10" in done.output
    (told,) = json.loads(CliRunner().invoke(command, [str(tmp_path), "--json", "--metric", "R@1"], catch_exceptions=False).output)
    assert told["metric"] == "R@1" and sum(told["queries"].values()) == 60 and len(told["methods"]) == 1
    found = modalities.audit(test, "scenes", "R@1")
    assert found is not None
    (row,) = shortcuts.rest(test, found, "scenes")
    assert told["methods"][0]["needs_composition"] == {"value": row.rest, "low": row.low, "high": row.high}
    assert told["labels"] == {r.label: {"queries": r.count, **r.cells} for r in shortcuts.labels(test, found, "scenes")}


@pytest.mark.parametrize(("runs", "more", "message"), [
    ([{"skill": 0.6}], [], "no run of text-only and image-only on scenes"),
    ([{"skill": 0.6}, SINGLE[0]], [], "no run of image-only on scenes .* Make one: cirbench run --method image-only"),
    (SINGLE, [], "no run of a method that composes on scenes"),
    ([{"skill": 0.6}, *SINGLE], ["--metric", "R@11"], "unknown metric 'R@11'"),
    ([{"skill": 0.6}, *SINGLE], ["--protocol", "scene"], "unknown protocol 'scene'.*scenes"),
])
def test_bad_input_is_one_message(runs: list[dict[str, Any]], more: list[str], message: str, tmp_path: Path) -> None:
    made(tmp_path, *runs, seeds=1)
    done = CliRunner().invoke(command, [str(tmp_path), *more])
    assert isinstance(done.exception, CirbenchError)
    with pytest.raises(CirbenchError, match=message):
        raise done.exception


def test_where_no_dataset_has_all_three_it_is_an_error(tmp_path: Path) -> None:
    for n, dataset in enumerate(("scenes", "shoes")):
        write_run(tmp_path / str(n), dataset=dataset, queries=60, gallery=70, pictures=0)
    done = CliRunner().invoke(command, [str(tmp_path)])
    assert isinstance(done.exception, CirbenchError) and "none of these datasets has runs" in str(done.exception)
    assert "shoes: no run of text-only and image-only, so it is left out." in done.output
