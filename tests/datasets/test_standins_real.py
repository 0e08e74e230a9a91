"""Stand-in pictures at the real names, through run, check, eval, score and submit; `score` repeats `run` bit for bit.

Numbers measured on them mean nothing: what is tested is that the real annotations go through at their real size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import make_standins
import pytest

from cirbench.cli import main
from cirbench.data.splits import load_named
from cirbench.scoring import server_files

SMALL = ("--recipe", "scenes", "--backbone", "scenes-small", "--set", "train.epochs=1")


def told(capsys: pytest.CaptureFixture[str], *args: Any) -> dict[str, Any]:
    main([str(a) for a in (*args, "--json")])
    return json.loads(capsys.readouterr().out)


def same(ran: dict[str, Any], scored: dict[str, Any]) -> None:
    assert scored["omitted"] == {} and scored["protocols"].keys() == ran["protocols"].keys()
    for name, entry in ran["protocols"].items():
        for key in ("metrics", "ties", "queries", "gallery"):
            assert scored["protocols"][name][key] == entry[key], (name, key)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_cirr_is_trained_evaluated_scored_and_submitted_and_so_is_circo(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, runs = shared / "data/annotations", tmp_path / "runs"
    root, circo = tmp_path / "cirr", tmp_path / "circo"
    assert make_standins.cirr(root, given / "cirr") == 240 + 2297 + 2315
    make_standins.circo(circo, given / "circo")
    checked = check(capsys, "cirr", root)
    assert {c["what"]: c["found"] for c in checked["counts"]} == {
        "train queries": 240, "train images": 16939, "val queries": 4181, "val images": 2297, "test1 queries": 4148,
        "test1 images": 2315,
    }
    ran = told(capsys, "run", "-m", "dwc", "--variant", "clip-only", "-d", "cirr", "--root", root, *SMALL, "--out", runs,
               "--export-embeddings")
    assert {n: (p["queries"], p["gallery"]) for n, p in ran["protocols"].items()} == {
        "cirr-hard": (4181, 2297), "cirr-graded": (4181, 2297),
    }
    assert ran["selection"]["rule"] == "last" and ran["select"]["protocols"]
    folder = Path(ran["folder"])
    same(ran, told(capsys, "score", "-d", "cirr", "--root", root, "--split", "val", "--embeddings",
                   folder / "embeddings.npz"))
    # The gallery is limited to the images that the annotations of val name.
    other = told(capsys, "eval", folder, "-d", "circo", "--root", circo, "--set", "data.gallery=annotated", "--out", runs)
    keep = other["protocols"]["circo-keep"]
    assert keep["queries"] == 220 and keep["gallery"] == 1121 and "negation/mAP@10" in keep["metrics"]
    assert any("annotated pictures alone" in note for note in other["notes"])

    main(["submit", str(folder), "--root", str(root), "-o", str(tmp_path / "out")])
    main(["submit", str(folder), "--dataset", "circo", "--root", str(circo), "-o", str(tmp_path / "out")])
    files = [Path(line) for line in capsys.readouterr().out.split()]
    assert [f.name for f in files] == ["cirr_test1_recall.json", "cirr_test1_recall_subset.json", "circo_test.json"]
    for file, name, official, count in zip(files, ("cirr", "cirr", "circo"), ("test1", "test1", "test"),
                                           (4148, 4148, 800), strict=True):
        _, split = load_named(name, root if name == "cirr" else circo, official)
        assert server_files.validate(file, split).queries == count
        assert file.stat().st_size < 5 * 2**20
    recall, subset = (json.loads(f.read_text()) for f in files[:2])
    for query in load_named("cirr", root, "test1")[1].queries:
        assert query.reference not in recall[query.id] and query.reference not in subset[query.id]
        # Members that reach the first fifty stand there in the order of the subset's own ranking.
        both = [i for i in recall[query.id] if i in subset[query.id]]
        assert both == [i for i in subset[query.id] if i in both]
    main(["submit", "--validate", *map(str, files[:2]), "--root", str(root)])
    assert capsys.readouterr().out.count("compared with the annotations") == 2


def check(capsys: pytest.CaptureFixture[str], name: str, root: Path, *more: str) -> dict[str, Any]:
    try:
        main(["data", "check", name, "--root", str(root), *more, "--json"])
    except SystemExit as stop:
        assert stop.code == 1
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("name", "folder", "more", "split", "pictures", "queries"), [
    ("shoes", "shoes", (), "eval", 14658, 1761),
    ("fashioniq", "fashion_iq", ("--set", "data.category=dress"), "val", 19087, 2017),
])
def test_every_picture_name_through_four_methods(
    name: str, folder: str, more: tuple[str, ...], split: str, pictures: int, queries: int, shared: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / name
    assert getattr(make_standins, name)(root, shared / "data/annotations" / folder) == pictures
    checked = check(capsys, name, root, *more)
    assert checked["ok"] and not any(p["count"] for p in checked["problems"].values())
    for method in ("dwc", "image-only", "text-only", "sum"):
        ran = told(capsys, "run", "-m", method, "-d", name, "--root", root, *SMALL, *more, "--out", tmp_path / "runs",
                   "--export-embeddings")
        assert ran["protocols"][ran["default_protocol"]]["queries"] == queries
        assert ran["inputs"]["images"] and ran["selection"]["rule"] == "last"
        same(ran, told(capsys, "score", "-d", name, "--root", root, "--split", split, *more, "--embeddings",
                       Path(ran["folder"]) / "embeddings.npz"))
