"""`cirbench explain`: evidence that needs the model, stored with the run and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner

from cirbench.cli.explain import explain
from cirbench.cli.run import run
from cirbench.cli.show import show
from cirbench.runs import explain_run
from cirbench.runs.record import Record
from cirbench.types import CirbenchError

BOTH = {"method__cnn": "scenes-cnn", "method__cnn_size": 48}


def test_the_sample_is_spread_over_groups() -> None:
    groups = ["a" if n % 10 else "b" for n in range(100)]
    chosen = explain_run.sample(groups, 20)
    assert len(chosen) == 20 == len(set(chosen)) and chosen == sorted(chosen)
    assert sum(n % 10 == 0 for n in chosen) == 10, "both groups alike"
    assert len(explain_run.sample(groups, 50)) == 50, "a small group leaves its share to the others"
    assert explain_run.sample(groups, 1000) == list(range(100))


def test_words_and_regions_are_stored_and_repeat(tmp_path: Path) -> None:
    record = tiny.run("dwc", tmp_path, **BOTH)
    before = (record.folder / "record.json").read_bytes()
    done = CliRunner().invoke(explain, [str(record.folder), "-n", "9", "--device", "cpu"], catch_exceptions=False)
    assert "9 queries, words, maps energy" in done.output
    first = (record.folder / "explain.json").read_bytes()
    explain_run.explain_run(record.folder, 9, "cpu")
    assert (record.folder / "explain.json").read_bytes() == first
    assert (record.folder / "record.json").read_bytes() == before
    texts = {q["id"]: q["texts"][0] for q in record.queries}
    told = Record(record.folder).explain
    assert len(told) == 9 and set(told) <= set(texts)
    for query_id, found in told.items():
        assert " ".join(w for w, _ in found["words"]) == texts[query_id].replace(",", "")
        assert all(0 <= x <= 1 for _, x in found["words"])
        assert {len(row) for m in found["regions"].values() for row in m} == {6}
    shown = CliRunner().invoke(show, [str(record.folder), query_id], catch_exceptions=False).output
    assert f"weighs     {found['words'][0][0]} ({found['words'][0][1]:.2f})" in shown


def test_run_explains_and_tells_where_there_is_nothing(tmp_path: Path) -> None:
    sets = [x for k, v in {**tiny.DATA, "train.epochs": 1, "train.batch_size": 32}.items() for x in ("--set", f"{k}={v}")]
    for arguments, told in ((["dwc"], True), (["dwc", "--variant", "clip-only"], False), (["sum"], False)):
        out = tmp_path / "-".join(arguments)
        done = CliRunner().invoke(
            run, ["-m", *arguments, "-d", "scenes", "--explain", "5", "--out", str(out), *sets], catch_exceptions=False
        )
        (folder,) = out.iterdir()
        assert (len(Record(folder).explain) == 5) == told and ("no words or regions stored" in done.output) != told
        if not told:
            with pytest.raises(CirbenchError, match=r"neither words nor regions|has no `explain`"):
                explain_run.explain_run(folder, 5, "cpu")
            assert not (folder / "explain.json").exists()
    with pytest.raises(CirbenchError, match="not a finished run"):
        explain_run.explain_run(tmp_path, 5)
