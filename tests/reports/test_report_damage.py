"""A damaged record gives one clear message that names the file, whatever is wrong with it, and no page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cirbench.reports.build import build
from click.testing import CliRunner
from fake_records import write_run

from cirbench.cli.report import report
from cirbench.files import write_npz
from cirbench.runs.store import find_records
from cirbench.types import CirbenchError


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("good"), queries=12, gallery=30, weights=True, explain=True, steps=20,
                     pictures=12)


@pytest.fixture
def run(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "runs" / good.name))


def refused(run: Path, match: str) -> None:
    with pytest.raises(CirbenchError, match=match) as told:
        build(find_records([run]))
    assert "repeat the run" in str(told.value)


FILES = ("record.json", "queries.jsonl", "gallery.json", "rankings.npz", "pictures.zip", "explain.json")


# An empty training.jsonl is that of a method without training.
@pytest.mark.parametrize(("name", "how"), [
    *((name, how) for name in FILES for how in ("empty", "cut", "noise")),
    ("training.jsonl", "cut"), ("training.jsonl", "noise"),
])
def test_a_broken_file(run, name, how):
    data = (run / name).read_bytes()
    (run / name).write_bytes({"empty": b"", "cut": data[:-40], "noise": b'\0\xff{"a":'}[how])
    refused(run, name)


@pytest.mark.parametrize("name", ["rankings.npz", "pictures.zip"])
def test_a_flipped_byte_is_told_or_harmless(run, name):
    """Any one byte: the archive may look cut, encrypted, or packed by means that there are not."""
    from cirbench.runs.record import Record
    from cirbench.types import CirbenchError

    data, told = (run / name).read_bytes(), 0
    for place in range(0, len(data), max(len(data) // 400, 1)):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        (run / name).write_bytes(changed)
        record = Record(run)
        try:
            list((record.rankings if name == "rankings.npz" else record.pictures).values())
        except CirbenchError as error:
            assert name in str(error)
            told += 1
    assert told > 100


@pytest.mark.parametrize("name", ["queries.jsonl", "gallery.json", "rankings.npz"])
def test_a_missing_file(run, name):
    (run / name).unlink()
    refused(run, f"{name} is missing")


def test_nothing_is_written_over_an_older_page(run, tmp_path):
    (run / "rankings.npz").write_bytes(b"")
    page = tmp_path / "r.html"
    page.write_text("older")
    assert CliRunner().invoke(report, [str(run), "-o", str(page)]).exit_code != 0
    assert page.read_text() == "older" and {p.name for p in tmp_path.iterdir()} == {"r.html", "runs"}


ARRAYS: dict[str, Callable[[dict[str, np.ndarray]], Any]] = {
    "it lacks rank/scenes": lambda a: a.pop("rank/scenes"),
    r"rank/scenes has shape \(5,\), not 12": lambda a: a.update({"rank/scenes": a["rank/scenes"][:5]}),
    r"top/text has shape \(5, 30\), not 12 x any": lambda a: a.update({"top/text": a["top/text"][:5]}),
    "top/text holds 129, but places end at 29": lambda a: a.update({"top/text": a["top/text"] + 100}),
    "row_query/text holds 111, but places end at 11": lambda a: a.update({"row_query/text": a["row_query/text"] + 100}),
    "rank/scenes holds float32, not whole numbers": lambda a: a.update({"rank/scenes": a["rank/scenes"].astype("f4")}),
    "top/text holds bool, not whole numbers": lambda a: a.update({"top/text": a["top/text"] > 3}),
    "row_query/text holds -1, but places end at 11": lambda a: a.update({"row_query/text": a["row_query/text"] - 1}),
    "weight/cnn holds <U3, not numbers": lambda a: a.update({"weight/cnn": np.array(["abc"] * 12)}),
    "it lacks ties/scenes": lambda a: a.pop("ties/scenes"),
    r"weight/clip has shape \(5,\), not 12": lambda a: a.update({"weight/clip": a["weight/clip"][:5]}),
}


@pytest.mark.parametrize("message", list(ARRAYS))
def test_arrays_that_do_not_fit(run, message):
    with np.load(run / "rankings.npz") as found:
        arrays = {name: found[name] for name in found.files}
    ARRAYS[message](arrays)
    write_npz(run / "rankings.npz", arrays)
    refused(run, message)


#: Message -> path of a field of record.json and what it is replaced by.
RECORDS: dict[str, tuple[str, Any]] = {
    "inputs is null, not an object": ("inputs", None), "cost is a list, not an object": ("cost", [1]),
    "selection is text, not an object": ("selection", "last"), "notes is a number, not a list": ("notes", 5),
    "environment is null, not an object": ("environment", None),
    "protocols is a number, not an object": ("protocols", 5),
    "inputs.seed is text, not a whole number": ("inputs.seed", "abc"),
    "inputs.config is a list, not an object": ("inputs.config", [1]),
    "protocols.scenes.metrics is null, not an object": ("protocols.scenes.metrics", None),
    "protocols.scenes.metrics.R@1 is text, not a number": ("protocols.scenes.metrics.R@1", "x"),
    "protocols.scenes.definition.average is 'rows', not one of queries, groups": (
        "protocols.scenes.definition.average", "rows"),
    "default_protocol 'other' is not in protocols": ("default_protocol", "other"),
    "cost.seconds.cpu is NaN, which is not JSON": ("cost.seconds.cpu", float("nan")),
}


@pytest.mark.parametrize("message", list(RECORDS))
def test_a_record_of_another_make(run, message):
    path, value = RECORDS[message]
    data = json.loads((run / "record.json").read_text())
    *above, name = path.split(".")
    place = data
    for key in above:
        place = place[key]
    place[name] = value
    (run / "record.json").write_text(json.dumps(data))
    refused(run, message)


@pytest.mark.parametrize("name", ["id", "reference", "texts", "targets", "group", "extra"])
@pytest.mark.parametrize("value", [None, 5, [3]])
def test_a_query_of_another_make(run, name, value):
    rows = [json.loads(line) for line in (run / "queries.jsonl").read_text().splitlines()]
    rows[3][name] = value
    (run / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(run, rf"line 4 is no query: see .*({name}|texts)")


def test_lines_that_are_no_objects(run):
    (run / "training.jsonl").write_text("1\n")
    refused(run, "training.jsonl is damaged: line 1 is not a JSON object")
    (run / "training.jsonl").write_text("")
    (run / "explain.json").write_text('{"queries": {"q-00001": {"regions": [1]}}}')
    refused(run, "'q-00001' has no words and regions")
