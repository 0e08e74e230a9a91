"""Run folders: what is written is read back, whole or not at all; damage is told by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from fake_records import HOSTILE, write_run

from cirbench.files import write_json, write_jsonl, write_npz
from cirbench.runs.record import Record, is_finished, write_pictures
from cirbench.runs.store import find_records
from cirbench.types import CirbenchError


def test_everything_comes_back(tmp_path):
    arrays = {"rank/a b": np.arange(5, dtype=np.int32), "weight/clip": np.linspace(0, 1, 3, dtype=np.float32)}
    rows = [{"texts": [text], "n": np.int64(3)} for text in HOSTILE]
    pictures = {"../../etc/x": b"one", "emoji 🦊": b"two", "": b""}
    write_npz(tmp_path / "rankings.npz", arrays)
    write_jsonl(tmp_path / "queries.jsonl", rows)
    write_json(tmp_path / "gallery.json", list(pictures))
    write_pictures(tmp_path / "pictures.zip", pictures)
    made = write_run(tmp_path / "made", queries=6, gallery=12, pictures=0)
    write_json(tmp_path / "record.json", {**json.loads((made / "record.json").read_text()), "of a later release": 1})
    shutil.rmtree(tmp_path / "made")
    record = Record(tmp_path)
    assert record.data["of a later release"] == 1 and record.run.protocols["scenes"].definition.average == "queries"
    assert [q["texts"][0] for q in record.queries] == list(HOSTILE)
    assert record.gallery == list(pictures) and dict(record.pictures) == pictures
    assert set(record.rankings) == set(arrays) and record.rankings.under("weight") == {"clip": "weight/clip"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(record.rankings[name], array)
        assert record.rankings[name].dtype == array.dtype
    assert record.training == [] and record.explain == {}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "gallery.json", "pictures.zip", "queries.jsonl", "rankings.npz", "record.json",
    ]


def test_equal_contents_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_npz(tmp_path / f"{name}.npz", {"x": np.arange(1000)})
        write_pictures(tmp_path / f"{name}.zip", {"i": b"data"})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "queries.jsonl"
    write_jsonl(path, [{"a": 1}])

    def rows():
        yield {"a": 2}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_jsonl(path, rows())
    assert path.read_text() == '{"a": 1}\n' and [p.name for p in tmp_path.iterdir()] == ["queries.jsonl"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_runs_are_found_once_below_a_folder(tmp_path):
    first = write_run(tmp_path / "sweep" / "runs", seed=0, pictures=0)
    write_run(tmp_path / "sweep" / "runs", seed=1, pictures=0)
    interrupted = write_run(tmp_path, seed=2, pictures=0)
    (interrupted / "record.json").unlink()
    assert len(find_records([tmp_path, first, first / "record.json"])) == 2
    assert is_finished(first) and not is_finished(interrupted)
    with pytest.raises(CirbenchError, match="interrupted run"):
        find_records([interrupted])


@pytest.mark.parametrize(("change", "said"), [
    (lambda f: (f / "record.json").write_text("{"), "record.json is damaged"),
    (lambda f: (f / "record.json").write_text("[]"), "not a JSON object"),
    (lambda f: (f / "record.json").write_text(json.dumps({"schema": 99})), "schema 99"),
    (lambda f: (f / "record.json").write_text(json.dumps({"schema": 1, "id": "x"})), "lacks protocols"),
    (lambda f: (f / "queries.jsonl").write_text('{"id": 1}\n{"id'), "line 2"),
    (lambda f: (f / "queries.jsonl").unlink(), "queries.jsonl is missing"),
    (lambda f: (f / "rankings.npz").write_bytes(b"PK"), "rankings.npz is damaged"),
    (lambda f: (f / "rankings.npz").unlink(), "rankings.npz is missing"),
    (lambda f: (f / "pictures.zip").write_bytes(b"no zip"), "pictures.zip is damaged"),
    (lambda f: (f / "gallery.json").write_text("{}"), "gallery.json is damaged"),
])
def test_damage_is_told_by_name(tmp_path, change, said):
    folder = write_run(tmp_path, pictures=2)
    change(folder)
    with pytest.raises(CirbenchError, match=said):
        record = Record(folder)
        _ = record.queries, record.gallery, dict(record.rankings), dict(record.pictures)


def test_a_misspelt_folder_gets_its_neighbour(tmp_path):
    write_run(tmp_path / "runs", pictures=0)
    with pytest.raises(CirbenchError, match=r"Did you mean .*runs"):
        find_records([tmp_path / "runz"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CirbenchError, match="no finished run"):
        find_records([tmp_path / "empty"])
