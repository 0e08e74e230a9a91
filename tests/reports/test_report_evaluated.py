"""Runs of `cirbench eval`: pooled over the seeds of what was trained, and told apart by the data it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from cirbench.reports import analysis, claims, tables
from cirbench.reports.build import build as page
from cirbench.reports.collect import TestSet, collect
from click.testing import CliRunner
from fake_records import write_run
from make_standins import jpeg
from small_data import build

from cirbench.cli.compare import compare
from cirbench.cli.table import table
from cirbench.runs import evaluate_run
from cirbench.runs.record import Record
from cirbench.runs.store import find_records

CLEAN = {"noise_rate": 0.0, "side": 48}


def call(command: Any, *arguments: Any) -> str:
    return CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False).output


def evaluated(run: str, dataset: str = "cirr", inputs: str = "0a", source: str = "1b", **data: Any) -> dict[str, Any]:
    """`inputs.evaluated` as `cirbench eval` writes it."""
    return {
        "run": run, "model": f"m{run}", "inputs": inputs, "source": source, "dataset": dataset, "data": {**CLEAN, **data},
    }


def write(out: Path, seeds: int = 3, **more: Any) -> list[Path]:
    how = {k: more.pop(k) for k in list(more) if k in ("inputs", "source", "trained", "noise_rate")}
    how = {("dataset" if k == "trained" else k): v for k, v in how.items()}
    name = repr((sorted(how.items()), more))
    return [
        write_run(out, seed=s, dataset="circo", pictures=0, evaluated=evaluated(f"{name}{s}", **how), **more)
        for s in range(seeds)
    ]


def only(out: Path) -> TestSet:
    (test,) = collect(find_records([out]))
    return test


def test_three_seeds_evaluated_elsewhere_are_one_row_in_report_table_and_compare(tmp_path: Path) -> None:
    ones, others = write(tmp_path), write(tmp_path, method="combiner", skill=0.4)
    for arm in only(tmp_path).arms:
        assert arm.label == f"{arm.method}, trained on cirr" and arm.seeds == [0, 1, 2]
    markdown = call(table, tmp_path)
    assert "| dwc, trained on cirr | 1 | both | 3 |" in markdown and "±" in markdown
    assert "dwc, trained on cirr" in page(find_records([tmp_path]))
    told = json.loads(call(compare, ones[1], others[0], "--json"))
    assert told["seeds"] == {"a": [0, 1, 2], "b": [0, 1, 2]} and told["inputs"] == {"method": ["dwc", "combiner"]}


def test_other_training_is_another_row(tmp_path: Path) -> None:
    runs = write(tmp_path, 2)
    other = write(tmp_path, 2, trained="shoes", inputs="0b", skill=0.5)
    write(tmp_path, 2, noise_rate=0.4, inputs="0c", skill=0.4)
    labels = {arm.label: arm.seeds for arm in only(tmp_path).arms}
    assert set(labels) == {
        "dwc, trained on cirr (trained with noise_rate=0.0)", "dwc, trained on cirr (trained with noise_rate=0.4)",
        "dwc, trained on shoes",
    } and set(map(tuple, labels.values())) == {(0, 1)}
    assert json.loads(call(compare, runs[0], other[0], "--json"))["inputs"] == {"trained.dataset": ["cirr", "shoes"]}


def test_the_dataset_it_was_trained_on_is_told_only_where_it_is_another(tmp_path: Path) -> None:
    write(tmp_path, 2, trained="circo")
    write(tmp_path, 2, trained="circo", noise_rate=0.4, inputs="0c", skill=0.4)
    assert {arm.label for arm in only(tmp_path).arms} == {"dwc", "dwc (trained with noise_rate=0.4)"}


def test_records_that_do_not_tell_stay_rows_of_their_own(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, seed=seed, pictures=0, evaluated={"run": f"r{seed}", "model": f"m{seed}"})
    arms = only(tmp_path).arms
    assert [len(arm.records) for arm in arms] == [1, 1]
    assert {arm.label for arm in arms} == {f"dwc [{arm.records[0].id[:8]}]" for arm in arms}


def test_a_seed_trained_twice_counts_once(tmp_path: Path) -> None:
    """The same run made on two machines may have other weights; that is no spread over seeds."""
    runs = write(tmp_path, 2)
    again = write_run(tmp_path, seed=0, dataset="circo", pictures=0, evaluated=evaluated("elsewhere"))
    assert sorted(arm.seeds for arm in only(tmp_path).arms) == [[0], [0, 1]]
    other = write_run(tmp_path, method="sum", dataset="circo", pictures=0)
    for run in (runs[0], again):
        assert json.loads(call(compare, run, other, "--json"))["seeds"]["a"] == [0, 1]
    assert tables.main_table(only(tmp_path), "scenes").notes == []


def test_two_versions_of_the_training_are_named(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 1, source="2c")
    (note,) = tables.main_table(only(tmp_path), "scenes").notes
    assert "two versions of the code (the code that trained them)" in note


def test_parts_are_not_compared_across_training_data(tmp_path: Path) -> None:
    off = {"variant": "no-ssg", "overrides": {"method.soft_label_weight": 0.0}}
    write(tmp_path, 2)
    write(tmp_path, 2, trained="shoes", inputs="0b", **off)
    write(tmp_path, 2, trained="shoes", inputs="0b", method="combiner", variant="like-dwc")
    test = only(tmp_path)
    assert analysis.ablations(test, "scenes", "R@1") == []
    assert claims.answers(test, "scenes", "R@1", [], None, []) == []
    write(tmp_path, 2, **off)
    write(tmp_path, 2, method="combiner", variant="like-dwc")
    test = only(tmp_path)
    (family,) = analysis.ablations(test, "scenes", "R@1")
    assert (family.base.label, [d.label for d in family.deltas]) == ("dwc, trained on cirr", ["no-ssg"])
    found = claims.answers(test, "scenes", "R@1", [], None, [])
    assert {a.where for a in found} == {"dwc, trained on cirr"} and any("Combiner" in a.question for a in found)


def test_trained_here_and_evaluated_there(tmp_path: Path) -> None:
    """The records themselves: two seeds trained on scenes are one row on CIRCO and, evaluated again, on scenes."""
    circo = build("circo", tmp_path / "circo")
    for n in range(100, 180):
        path = circo / f"COCO2017_unlabeled/unlabeled2017/{n:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(str(n)))

    def evaluate(folder: Path, *where: Any) -> Record:
        planned, found = evaluate_run.plan_eval(folder, *where)
        return evaluate_run.evaluate_run(planned, found, tmp_path / "evals", "cpu", True, "test")

    for seed in (0, 1):
        run = tiny.run("combiner", tmp_path / "runs", seed=seed)
        made = evaluate(run.folder, "circo", ["data.gallery=annotated"], circo).data["inputs"]["evaluated"]
        assert made["run"] == run.id and made["dataset"] == "scenes" and made["data"] == run.data["inputs"]["data"]
        evaluate(run.folder)
        evaluate(tiny.run("random", tmp_path / "runs", seed=seed).folder, "circo", ["data.gallery=annotated"], circo)
    found = {(t.dataset, a.label): a.seeds for t in collect(find_records([tmp_path / "evals"])) for a in t.arms}
    assert found == {
        ("circo", "combiner, trained on scenes"): [0, 1], ("circo", "random"): [0, 1], ("scenes", "combiner"): [0, 1],
    }


@pytest.mark.parametrize("value", [5, {**evaluated("r"), "data": [1]}, {"run": "r"}])
def test_damage_is_told(value: Any, tmp_path: Path) -> None:
    from cirbench.types import CirbenchError

    write_run(tmp_path, pictures=0, evaluated=value)
    with pytest.raises(CirbenchError, match=r"record.json is damaged: (it lacks )?inputs.evaluated"):
        collect(find_records([tmp_path]))
