"""Stand-in pictures through a whole run: `run` and `score` on what it exports agree to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from make_standins import jpeg
from small_data import SCORED, build
from small_pictures import NAMES, standins

from cirbench.cli import main
from cirbench.runs.record import Record


@pytest.mark.parametrize("name", sorted(NAMES))
def test_run_and_score_agree_to_the_last_bit(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = standins(name, tmp_path / name)
    main(["run", "--method", "random", "--dataset", name, "--root", str(root), "--out", str(tmp_path / "runs"),
          "--export-embeddings", "--json"])
    ran: dict[str, Any] = json.loads(capsys.readouterr().out)
    folder = Path(ran["folder"])
    main(["score", "--dataset", name, "--root", str(root), "--split", SCORED[name], "--json", "--embeddings",
          str(folder / "embeddings.npz")])
    scored = json.loads(capsys.readouterr().out)
    assert scored["omitted"] == {} and set(scored["protocols"]) == set(ran["protocols"])
    for protocol, entry in ran["protocols"].items():
        assert scored["protocols"][protocol]["metrics"] == entry["metrics"], protocol
        assert scored["protocols"][protocol]["ties"] == entry["ties"]
    arrays = Record(folder)
    assert arrays.data["default_protocol"] == next(iter(scored["protocols"]))


@pytest.mark.parametrize("method", ["dwc", "sum", "image-only", "text-only"])
def test_trained_methods_agree_to_the_last_bit_too(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """test_standins_real.py does the same with every real name."""
    root = standins("fashioniq", tmp_path / "fiq")
    one = ["--set", "data.category=dress"]
    main(["run", "-m", method, "-d", "fashioniq", "--root", str(root), "--forms", "ab", "--recipe", "scenes", "--backbone",
          "scenes-small", *(a for s in ("train.epochs=1", "train.batch_size=8", "train.protocol=fiq-val-drop-tokens")
                            for a in ("--set", s)), *one, "--out", str(tmp_path), "--export-embeddings", "--json"])
    ran = json.loads(capsys.readouterr().out)
    # The run trains with `tokens`; rows without a form in their name are those of `ab` all the same.
    main(["score", "-d", "fashioniq", "--root", str(root), "--split", "val", *one, "--json", "--embeddings",
          str(Path(ran["folder"]) / "embeddings.npz")])
    scored = json.loads(capsys.readouterr().out)
    assert ran["default_protocol"] == "fiq-val-drop-tokens" and len(scored["omitted"]) == 18
    assert scored["protocols"].keys() == ran["protocols"].keys()
    for protocol, entry in ran["protocols"].items():
        assert scored["protocols"][protocol]["metrics"] == entry["metrics"], protocol


def test_circo_and_genecis_are_evaluated_with_a_run_of_another_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = standins("custom", tmp_path / "custom")
    # Circo has no select split, and needs none: the weights are chosen already.
    main(["run", "--method", "random", "--dataset", "custom", "--root", str(root), "--out", str(tmp_path / "runs"),
          "--set", "train.selection=select", "--json"])
    folder = json.loads(capsys.readouterr().out)["folder"]
    circo = build("circo", tmp_path / "circo")
    for n in range(100, 180):
        path = circo / f"COCO2017_unlabeled/unlabeled2017/{n:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(str(n)))
    main(["eval", folder, "--dataset", "circo", "--root", str(circo), "--set", "data.gallery=annotated", "--out",
          str(tmp_path / "runs"), "--json"])
    found = json.loads(capsys.readouterr().out)["protocols"]["circo-keep"]
    assert found["queries"] == 12 and 0 <= found["metrics"]["mAP@50"] <= 100
    assert any(name.startswith("addition/mAP") for name in found["metrics"])


def test_a_run_without_pictures_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build("shoes", tmp_path / "shoes")
    with pytest.raises(SystemExit) as stop:
        main(["run", "--method", "random", "--dataset", "shoes", "--root", str(root), "--out", str(tmp_path)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "missing" in said and "data check shoes" in said


def test_evaluation_only_datasets_are_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circo = build("circo", tmp_path / "circo")
    for n in range(100, 180):
        path = circo / f"COCO2017_unlabeled/unlabeled2017/{n:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(str(n)))
    with pytest.raises(SystemExit) as stop:
        main(["run", "--method", "dwc", "--variant", "clip-only", "--backbone", "scenes-small", "--dataset", "circo",
              "--root", str(circo), "--out", str(tmp_path / "runs")])
    assert stop.value.code == 2 and "for evaluation only" in capsys.readouterr().err


def test_fashioniq_models_per_category_are_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cirbench.reports.build import build as page
    from cirbench.reports.collect import collect

    from cirbench.runs.store import find_records

    root, runs = standins("fashioniq", tmp_path / "fiq"), tmp_path / "runs"
    for category in ("all", "toptee", "shirt", "dress"):
        main(["run", "-m", "random", "-d", "fashioniq", "--root", str(root), "--out", str(runs), "--forms", "both",
              "--set", f"data.category={category}", "--quiet"])
    records = find_records([runs])
    tests = collect(records)
    assert sorted(len(t.arms) for t in tests) == [1, 1, 1, 2]
    whole, each = sorted(max(tests, key=lambda t: len(t.arms)).arms, key=lambda a: a.inputs.data["category"])
    # `random` scores a query and an image by their own, so one model or three is the same.
    a, b = whole.records[0], each.records[0]
    assert b.data["inputs"]["data"]["category"] == "each" and any("One model per category" in n for n in b.data["notes"])
    assert a.queries == b.queries and a.gallery == b.gallery
    for name, entry in b.data["protocols"].items():
        other = a.data["protocols"][name]
        assert {k: entry[k] for k in ("queries", "gallery")} == {k: other[k] for k in ("queries", "gallery")}
        single = [entry["metrics"][f"{c}/R@10"] for c in ("dress", "shirt", "toptee")]
        assert entry["metrics"]["R@10"] == pytest.approx(sum(single) / 3) and set(entry["metrics"]) == set(other["metrics"])
    for name in b.rankings:
        assert b.rankings[name].shape == a.rankings[name].shape, name
    assert (b.rankings["row_query/both"] == a.rankings["row_query/both"]).all()
    for row, top in enumerate(b.rankings["top/ab"]):
        shown = [b.gallery[t] for t in top if t >= 0]
        category = b.queries[row]["group"]
        part = next(r for r in records if r.data["inputs"]["data"]["category"] == category)
        at = [q["id"] for q in part.queries].index(b.queries[row]["id"])
        assert shown == [part.gallery[t] for t in part.rankings["top/ab"][at] if t >= 0]
    capsys.readouterr()
    main(["table", str(runs)])
    said = capsys.readouterr().out
    assert "random (category=each)" in said
    assert "category=each" in page(records)
