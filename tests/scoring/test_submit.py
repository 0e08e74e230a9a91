"""Files for the servers: the published demo files are valid, and each thing that can be wrong is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_standins import jpeg
from small_data import build

from cirbench.cli import main
from cirbench.data.splits import load_named
from cirbench.scoring import server_files
from cirbench.types import CirbenchError


def test_published_demo_files_are_valid(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shared / "data/annotations"
    cirr = sorted((root / "cirr/submission_examples").glob("*.json"))
    main(["submit", "--validate", *map(str, cirr), "--root", str(root / "cirr")])
    main(["submit", "--validate", str(root / "circo/submission_examples/submission_test.json")])
    said = capsys.readouterr().out
    assert "valid recall file, 4148 queries" in said and "valid recall_subset file, 4148 queries" in said
    assert "valid circo file, 800 queries" in said


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Any, list[Path]]:
    """Files of a small test1 whose gallery holds more than 50 names."""
    root = build("cirr", tmp_path / "cirr")
    path = root / "image_splits/split.rc2.test1.json"
    names = json.loads(path.read_text()) | {f"test1-9{n}-0-img0": "./x.png" for n in range(60)}
    path.write_text(json.dumps(names))
    _, split = load_named("cirr", root, "test1")
    ranked = [[i for i in names if i != q.reference] for q in split.queries]
    subset = [[m for m in q.extra["members"] if m != q.reference] for q in split.queries]
    return root, split, server_files.write_cirr(tmp_path / "out", split, ranked, subset)


def test_written_files_are_valid(files: tuple[Path, Any, list[Path]]) -> None:
    _, split, paths = files
    assert [server_files.validate(p, split).kind for p in paths] == ["recall", "recall_subset"]
    assert not list(paths[0].parent.glob("*.tmp"))


def first(data: dict[str, Any]) -> str:
    return next(k for k in data if k.isdigit())


BAD: list[tuple[Callable[[dict[str, Any], Any], Any], str]] = [
    (lambda d, s: d.update(version="rc1"), "expected 'rc2'"),
    (lambda d, s: d.update(metric="recal"), "Did you mean 'recall'"),
    (lambda d, s: d.pop(first(d)), "1 queries are missing"),
    (lambda d, s: d.update({"99999": d[first(d)]}), "not queries of the split: 99999"),
    (lambda d, s: d.update({first(d): "x"}), "has no list"),
    (lambda d, s: d.update({first(d): [1] * 50}), "only image names"),
    (lambda d, s: d[first(d)].pop(), "has 49 images, expected 50"),
    (lambda d, s: d[first(d)].__setitem__(0, d[first(d)][1]), "lists an image twice"),
    (lambda d, s: d[first(d)].__setitem__(0, s.queries[0].reference), "its own reference"),
    (lambda d, s: d[first(d)].__setitem__(0, "dev-1-0-img0"), "not in the gallery"),
    (lambda d, s: d[first(d)].__setitem__(0, "test1-1-0-img0.png"), "no extension"),
    (lambda d, s: d.update(note="x" * server_files.LIMIT), "at most 5 MiB"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_what_is_wrong_is_told(
    change: Callable[[Any, Any], Any], message: str, files: tuple[Path, Any, list[Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, split, (path, _) = files
    data = json.loads(path.read_text())
    change(data, split)
    path.write_text(json.dumps(data))
    with pytest.raises(SystemExit) as stop:
        main(["submit", "--validate", str(path), "--root", str(root)])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_subset_file_names_the_subset_alone(files: tuple[Path, Any, list[Path]]) -> None:
    _, split, (_, path) = files
    data = json.loads(path.read_text())
    data[split.queries[0].id][0] = "test1-95-0-img0"
    path.write_text(json.dumps(data))
    with pytest.raises(CirbenchError, match="not in its subset"):
        server_files.validate(path, split)


@pytest.mark.parametrize(("count", "more", "message"), [
    (4148, [], ""), (4147, [], "4147 queries, expected the 4148 of test1"), (4147, ["dress"], "'dress' is not a pairid"),
])
def test_without_annotations_pairids_are_counted(count: int, more: list[str], message: str, tmp_path: Path) -> None:
    rows = {key: ["a", "b", "c"] for key in [*map(str, range(count)), *more]}
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"version": "rc2", "metric": "recall_subset", **rows}))
    if message:
        with pytest.raises(CirbenchError, match=message):
            server_files.validate(path)
    else:
        found = server_files.validate(path)
        assert (found.kind, found.queries, found.known) == ("recall_subset", 4148, False)


def test_circo_wants_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({str(n): [str(k) for k in range(50)] for n in range(800)}))
    with pytest.raises(CirbenchError, match="only whole numbers"):
        server_files.validate(path)
    path.write_text(json.dumps({str(n): list(range(50)) for n in range(799)}))
    with pytest.raises(CirbenchError, match="1 queries are missing: 799"):
        server_files.validate(path)


def test_a_run_becomes_files_for_both_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, runs = build("cirr", tmp_path / "cirr"), tmp_path / "runs"
    listed = root / "image_splits/split.rc2.test1.json"
    few = json.loads(listed.read_text())
    names = few | {f"test1-9{n}-0-img0": f"./test1/test1-9{n}-0-img0.png" for n in range(60)}
    listed.write_text(json.dumps(names))
    pictures = [p for f in root.glob("image_splits/*.json") for p in json.loads(f.read_text()).values()]
    for path in pictures:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(jpeg(path, 8))
    main(["run", "-m", "random", "-d", "cirr", "--root", str(root), "--out", str(runs), "--json"])
    folder = json.loads(capsys.readouterr().out)["folder"]
    out = tmp_path / "out"
    main(["submit", folder, "--root", str(root), "-o", str(out), "-q"])
    recall, subset = (json.loads((out / f"cirr_test1_{m}.json").read_text()) for m in ("recall", "recall_subset"))
    _, split = load_named("cirr", root, "test1")
    assert set(recall) == set(subset) == {"version", "metric", *(q.id for q in split.queries)}
    for query in split.queries:
        assert len(recall[query.id]) == 50 and query.reference not in recall[query.id]
        assert len(subset[query.id]) == 3 and set(subset[query.id]) < set(query.extra["members"]) - {query.reference}
        both = [i for i in recall[query.id] if i in subset[query.id]]
        assert both == [i for i in subset[query.id] if i in both]

    circo = build("circo", tmp_path / "circo")
    for n in range(100, 180):
        path = circo / f"COCO2017_unlabeled/unlabeled2017/{n:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(str(n), 8))
    main(["submit", folder, "-d", "circo", "--root", str(circo), "-o", str(out)])
    body = json.loads((out / "circo_test.json").read_text())
    assert list(body) == [str(n) for n in range(6)] and all(len(v) == 50 and type(v[0]) is int for v in body.values())

    # The COCO list may lie at the root; without it the server's gallery is not known.
    coco = circo / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    coco.rename(circo / coco.name)
    main(["submit", folder, "-d", "circo", "--root", str(circo), "-o", str(tmp_path / "again")])
    assert json.loads((tmp_path / "again/circo_test.json").read_text()) == body
    capsys.readouterr()
    (circo / coco.name).unlink()
    with pytest.raises(SystemExit) as stop:
        main(["submit", folder, "-d", "circo", "--root", str(circo), "-o", str(tmp_path / "no")])
    assert stop.value.code == 2 and "image_info_unlabeled2017.json" in capsys.readouterr().err

    # What a server would refuse is not written: a missing picture, a gallery too small for its lists.
    last = root / list(names.values())[-1]
    last.unlink()
    for change, message in ((None, "1 pictures of cirr/test1 are missing"), ({}, "images, expected 50")):
        if change is not None:
            last.write_bytes(jpeg("x", 8))
            listed.write_text(json.dumps(few))
        with pytest.raises(SystemExit) as stop:
            main(["submit", folder, "--root", str(root), "-o", str(tmp_path / "none")])
        assert stop.value.code == 2 and message in capsys.readouterr().err
        assert not list((tmp_path / "none").glob("*"))
    with pytest.raises(SystemExit) as stop:
        main(["submit", folder, folder, "-o", str(out)])
    assert stop.value.code == 2 and "--validate" in capsys.readouterr().err
