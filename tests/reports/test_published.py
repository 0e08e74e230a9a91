"""Published figures under what was counted, and what each protocol makes of one run."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cirbench.reports.published import mixtures, published
from cirbench.reports.translate import translate
from click.testing import CliRunner
from small_pictures import standins

from cirbench import plugins, reports
from cirbench.cli.protocols import protocols as command
from cirbench.runs import execution, planning
from cirbench.runs.record import Record
from cirbench.scoring import inference, statistics
from cirbench.types import CirbenchError

FILE = tomllib.loads((Path(reports.__file__).parent / "published.toml").read_text(encoding="utf-8"))


def test_every_figure_stands_under_what_was_counted() -> None:
    seen = Counter((e["dataset"], e["method"], e.get("backbone"), e["protocol"], e["source"]) for e in FILE["result"])
    assert max(seen.values()) == 1, "a row is there twice"
    for entry in FILE["result"]:
        spec = plugins.find_dataset(entry["dataset"]).SPEC
        known = {p.name: p for p in spec.protocols}
        assert entry["source"] and entry["protocol"] and all(0 < v < 100 for v in entry["metrics"].values())
        if "equals" in entry:
            assert set(entry["metrics"]) <= set(known[entry["equals"]].metrics), entry
        # Recall rises with the cut-off: a shifted column would not.
        recalls = [v for k, v in sorted(entry["metrics"].items(), key=lambda kv: int(re.sub(r"\D", "", kv[0]))) if k[:2] == "R@"]
        assert recalls == sorted(recalls), entry


def test_rows_of_one_protocol_stand_together() -> None:
    for dataset in ("shoes", "fashioniq", "fashion200k", "cirr", "circo"):
        rows = published(dataset)
        order = [row.protocol for row in rows]
        assert len(rows) == sum(e["dataset"] == dataset for e in FILE["result"]) > 0
        assert sum(a != b for a, b in itertools.pairwise(order)) == len(set(order)) - 1
    assert mixtures("fashioniq") and published("scenes") == []


def test_published_of_the_command() -> None:
    told = CliRunner().invoke(command, ["fashioniq", "--published"], catch_exceptions=False).output
    blocks = told.split("\n\n")
    where = {name: next(n for n, block in enumerate(blocks) if name in block) for name in ("DWC (paper)", "Combiner, CLIP-RN50x4")}
    assert len(set(where.values())) == 2 and "unlike numbers in one column" in told and "fiq-val-drop-tokens" in told
    found = json.loads(CliRunner().invoke(command, ["--published", "--json"], catch_exceptions=False).output)
    assert sum(len(part["figures"]) for part in found.values()) == len(FILE["result"])
    assert "no published figure" in CliRunner().invoke(command, ["scenes", "--published"], catch_exceptions=False).output


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("translate")
    planned = planning.plan(
        "sum", "fashioniq", "zero-shot", root=standins("fashioniq", folder / "data"),
        over={"method.clip": "scenes-small"},
    )
    return execution.run(planned, execution.Options(out=folder / "runs", device="cpu"))


def test_what_each_switch_is_worth_on_one_model(run: Record) -> None:
    rows = translate(run)
    default = run.run.default_protocol
    assert next(r["protocol"] for r in rows) == default and {r["protocol"] for r in rows} == set(run.run.protocols)
    codes = statistics.cluster_codes([q["reference"] for q in run.queries])
    with_interval = 0
    for row in rows:
        metrics = run.run.protocols[row["protocol"]].metrics
        assert row["value"] == metrics[row["metric"]]
        if row["protocol"] == default:
            assert row["delta"] is None and not row["switches"]
            continue
        assert row["delta"] == pytest.approx(row["value"] - rows[0]["value"]) and row["switches"]
        if row["low"] is None:
            assert "both" in row["protocol"] or "each" in row["protocol"], "only where the rows are others"
            continue
        with_interval += 1

        def values(name: str) -> np.ndarray:
            ranks = run.rankings[f"rank/{name}"]
            return np.mean([(ranks > 0) & (ranks <= k) for k in (10, 50)], axis=0)

        groups = np.array([q["group"] for q in run.queries])
        weights = np.array([1 / (groups == g).sum() for g in groups])
        error = inference.contrast(values(row["protocol"]) - values(default), codes, weights)
        assert (row["low"], row["high"]) == pytest.approx((100 * error.low, 100 * error.high))
        assert row["low"] <= row["delta"] + 1e-9 and row["high"] >= row["delta"] - 1e-9
    assert with_interval >= 8
    drop = next(r for r in rows if r["protocol"] == "fiq-val-drop-ba")
    assert drop["switches"] == ["gallery val", "reference dropped", "text ba"]


def test_translation_by_the_command(run: Record) -> None:
    told = CliRunner().invoke(command, ["--run", str(run.folder)], catch_exceptions=False).output
    assert "fiq-val-drop-tokens" in told and "[dwc, clvc-net]" in told and "reference dropped" in told
    found = json.loads(CliRunner().invoke(command, ["--run", str(run.folder), "--json"], catch_exceptions=False).output)
    assert found["run"] == run.id and len(found["protocols"]) == len(run.run.protocols)


@pytest.mark.parametrize(("call", "message"), [
    (["--run", "nowhere"], "nowhere"), (["fashionq", "--published"], "Did you mean 'fashioniq'"),
    (["fashioniq", "--run", "x"], "give it without a dataset"),
])
def test_bad_input_is_one_message(call: list[str], message: str) -> None:
    done = CliRunner().invoke(command, call)
    assert isinstance(done.exception, CirbenchError) and message in str(done.exception)
