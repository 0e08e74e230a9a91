"""One's own annotation files as people write them: what is read, what is refused, and what is noted."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import small_data
from own_data import TEST, call, check, encoded, folder, noise, problems, run, table, write_triplets

from cirbench.data.splits import load_named
from cirbench.plugins import find_dataset

Capture = pytest.CaptureFixture[str]


# ------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("value", ["Test", " test", "testing", "tset"])
def test_a_misspelt_split_is_refused_with_the_nearest(value: str, tmp_path: Path, capsys: Capture) -> None:
    for name, those in (("some", TEST[:2]), ("all", TEST)):
        root = table(tmp_path / name, dict.fromkeys(those, value))
        code, _, said = call(capsys, "data", "check", "custom", "--root", root)
        assert code == 2 and repr(value) in said and "Did you mean 'test'?" in said and "data.gallery=all" in said
        assert run(capsys, root)[0] == 2
        assert check(capsys, root, "--set", "data.gallery=all")[0] == 0


def test_rows_of_no_split_are_noted(tmp_path: Path, capsys: Capture) -> None:
    root = table(tmp_path / "data")
    for n, split in enumerate(["", "", "unused"]):
        (root / f"images/x{n}.jpg").write_bytes(encoded(noise(50 + n), "JPEG"))
        with (root / "images.csv").open("a") as file:
            file.write(f"x{n},images/x{n}.jpg,{split}\n")
    code, record, said = run(capsys, root)
    assert code == 0 and record["protocols"]["custom-drop"]["gallery"] == 6, said
    for notes in (record["notes"], check(capsys, root)[1]["notes"]):
        assert any("2 rows of images.csv have an empty split" in n for n in notes)
        assert any("1 rows of images.csv have the split 'unused'" in n for n in notes)


def test_rows_of_a_split_without_triplets_are_noted(tmp_path: Path, capsys: Capture) -> None:
    root = table(tmp_path / "data")
    (root / "images/v.jpg").write_bytes(encoded(noise(50), "JPEG"))
    with (root / "images.csv").open("a") as file:
        file.write("v,images/v.jpg,val\n")
    notes = check(capsys, root)[1]["notes"]
    assert any("1 rows of images.csv have the split 'val', which has no triplets.val.jsonl" in n for n in notes)


@pytest.mark.parametrize("header", ["Split", " split", "SPLIT "])
def test_a_column_that_is_nearly_split_is_refused(header: str, tmp_path: Path, capsys: Capture) -> None:
    root = table(tmp_path / "data")
    text = (root / "images.csv").read_text()
    (root / "images.csv").write_text(text.replace("path,split", f"path,{header}", 1))
    code, _, said = call(capsys, "data", "check", "custom", "--root", root)
    assert code == 2 and repr(header) in said and "Call it 'split'" in said


def test_a_split_without_rows_is_refused(tmp_path: Path, capsys: Capture) -> None:
    root = table(tmp_path / "data", dict.fromkeys(TEST, "gallery"))
    code, _, said = call(capsys, "data", "check", "custom", "--root", root)
    assert code == 2 and "no row has the split 'test'" in said and "'gallery' (6)" in said
    empty = table(tmp_path / "empty", dict.fromkeys([*TEST, *(f"t{n}" for n in range(8))], ""))
    code, found = check(capsys, empty)
    assert code == 0 and any("is empty, so every query ranks all images" in n for n in found["notes"])


def test_queries_that_can_never_hit_are_counted(tmp_path: Path, capsys: Capture) -> None:
    root = table(tmp_path / "data")
    lines = [json.loads(line) for line in (root / "triplets.test.jsonl").read_text().splitlines()]
    lines[0]["targets"] = lines[1]["targets"] = []
    for line in lines[:2]:
        line["targets"] = [line["reference"]]
    lines[2]["targets"].append(lines[2]["reference"])
    (root / "triplets.test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, record, said = run(capsys, root)
    assert code == 0, said
    for notes in (record["notes"], check(capsys, root)[1]["notes"]):
        assert any("2 of 6 queries of report have no target but their own reference" in n for n in notes)


@pytest.mark.parametrize("name", ["css3d", "custom", "shoes", "cirr", "fashioniq", "fashion200k"])
def test_a_dataset_without_select_says_so(name: str, tmp_path: Path) -> None:
    root = small_data.build(name, tmp_path / name)
    (root / "triplets.val.jsonl").unlink(missing_ok=True)
    module = find_dataset(name)
    knobs = {"select_share": 0} if "select_share" in module.Knobs.model_fields else {}
    for given in ({}, knobs):
        dataset = module.load(module.Knobs(**given), root)
        assert ("select" in dataset.splits) != any("no `select`" in note for note in dataset.notes), dataset.notes
    if name == "css3d":  # its labels link every query here
        assert any("link them all" in note for note in module.load(module.Knobs(), root).notes)


def test_the_note_on_select_names_a_share_that_would_do(tmp_path: Path) -> None:
    root = table(tmp_path / "data")
    lines = [{"reference": a, "text": "x", "targets": [b]} for a, b in (("t0", "t1"), ("t2", "t0"), ("t3", "t4"), ("t4", "t5"), ("t6", "t3"))]
    (root / "triplets.train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    module = find_dataset("custom")
    note = next(n for n in module.load(module.Knobs(), root).notes if "no `select`" in n)
    assert "has 2, more than data.select_share (0.1) allows; 0.400 would do" in note
    assert len(module.load(module.Knobs(select_share=0.4), root).splits["select"].queries) == 2


# ------------------------------------------------------------------------------------- names


def test_names_are_compared_in_composed_form(tmp_path: Path, capsys: Capture) -> None:
    composed, split = (unicodedata.normalize(form, "Schühchen-é") for form in ("NFC", "NFD"))
    root = folder(tmp_path / "data")
    (root / "images/sub-é".replace("é", unicodedata.normalize("NFD", "é"))).mkdir()
    (root / f"images/sub-{unicodedata.normalize('NFD', 'é')}/{split}.jpg").write_bytes(encoded(noise(60), "JPEG"))
    write_triplets(root, "test", [*TEST, composed])
    assert check(capsys, root)[0] == 0 and run(capsys, root)[0] == 0
    rows = [f"{name},images/{name}.jpg" for name in [*(f"t{n}" for n in range(8)), *TEST]]
    (root / "images.csv").write_text("\n".join(["image_id,path", *rows, f"{split},images/sub-é/{composed}.jpg"]) + "\n")
    code, found = check(capsys, root)
    assert code == 0 and problems(found) == {}
    # Results made elsewhere may have either form too.
    _, part = load_named("custom", root, "test")
    lists = {unicodedata.normalize("NFD", q.id): [unicodedata.normalize("NFD", i) for i in part.images()] for q in part.queries}
    (root / "lists.json").write_text(json.dumps(lists))
    code, out, said = call(capsys, "score", "-d", "custom", "--root", root, "--split", "test", "--rankings", root / "lists.json", "--json")
    assert code == 0 and json.loads(out)["protocols"], said


def test_paths_of_windows_are_read(tmp_path: Path, capsys: Capture) -> None:
    root = table(tmp_path / "data")
    text = (root / "images.csv").read_text().replace("images/", "images\\")
    (root / "images.csv").write_text(text)
    code, found = check(capsys, root)
    assert code == 0 and problems(found) == {}


def test_more_layouts_and_where_a_missing_picture_lies(tmp_path: Path, capsys: Capture) -> None:
    fiq = small_data.build("fashioniq", tmp_path / "fiq")
    (fiq / "images/dress").mkdir(parents=True)
    (fiq / "images/dress/BDv001.jpg").write_bytes(encoded(noise(1), "JPEG"))
    module = find_dataset("fashioniq")
    assert module.load(module.Knobs(), fiq).images.path("BDv001") == fiq / "images/dress/BDv001.jpg"
    cirr = small_data.build("cirr", tmp_path / "cirr")
    paths = json.loads((cirr / "image_splits/split.rc2.train.json").read_text())
    paths = {name: path.replace("./train/", "./train/34/") for name, path in paths.items()}
    (cirr / "image_splits/split.rc2.train.json").write_text(json.dumps(paths))
    name = next(iter(paths))
    module = find_dataset("cirr")
    for place in ("train", "img_raw/train", "images/train"):
        (cirr / place).mkdir(parents=True)
        (cirr / place / f"{name}.png").write_bytes(encoded(noise(1), "PNG"))
        assert module.load(module.Knobs(), cirr).images.path(name) == cirr / place / f"{name}.png"
        (cirr / place / f"{name}.png").unlink()
    root = table(tmp_path / "data")
    (root / "old/photos").mkdir(parents=True)
    (root / "images/a2.jpg").rename(root / "old/photos/a2.jpg")
    code, _, said = run(capsys, root)
    assert code == 2 and "A file of that name is old/photos/a2.jpg." in said


# ------------------------------------------------------------------------------------- ids


def test_a_number_sign_in_an_id_is_part_of_it(tmp_path: Path, capsys: Capture) -> None:
    root = table(tmp_path / "data")
    lines = [json.loads(line) for line in (root / "triplets.test.jsonl").read_text().splitlines()]
    for n, line in enumerate(lines):
        line["id"] = f"shoe#{n}"
    (root / "triplets.test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, record, said = run(capsys, root, "--export-embeddings")
    assert code == 0, said
    given = ["-d", "custom", "--root", root, "--split", "test", "--json"]
    code, out, said = call(capsys, "score", *given, "--embeddings", Path(record["folder"]) / "embeddings.npz")
    assert code == 0, said
    ran, scored = record["protocols"], json.loads(out)["protocols"]
    assert {k: v["metrics"] for k, v in scored.items()} == {k: v["metrics"] for k, v in ran.items()}
    _, part = load_named("custom", root, "test")
    (root / "l.json").write_text(json.dumps({f"{q.id}#text": part.images() for q in part.queries}))
    code, out, said = call(capsys, "score", *given, "--rankings", root / "l.json")
    assert code == 0 and json.loads(out)["protocols"], said


def test_a_slash_in_an_image_id_is_part_of_it(tmp_path: Path, capsys: Capture) -> None:
    """A group `dress`, and images `a0` and `dress/a0`: the second is no `a0` for that group alone."""
    root = tmp_path / "data"
    (root / "images/dress").mkdir(parents=True)
    ids = [f"{prefix}a{n}" for n in range(20) for prefix in ("", "dress/")]
    rows = ["image_id,path"]
    for n, name in enumerate(ids):
        (root / f"images/{name}.jpg").write_bytes(encoded(noise(n), "JPEG"))
        rows.append(f"{name},images/{name}.jpg")
    (root / "images.csv").write_text("\n".join(rows) + "\n")
    for split in ("train", "test"):
        lines = [{"reference": ids[n], "text": f"{n}", "targets": [ids[n - 1]], "group": "dress"} for n in range(40)]
        (root / f"triplets.{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, part = load_named("custom", root, "test")
    vectors = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    place = {name: n for n, name in enumerate(ids)}
    queries = vectors[[place[q.targets[0]] for q in part.queries]]
    np.savez(root / "e.npz", query_ids=[q.id for q in part.queries], queries=queries, image_ids=ids, gallery=vectors)
    code, out, said = call(
        capsys, "score", "-d", "custom", "--root", root, "--split", "test", "--embeddings", root / "e.npz", "--json"
    )
    assert code == 0, said
    entry = json.loads(out)["protocols"]["custom-keep"]
    assert entry["metrics"]["R@1"] > 60 and entry["ties"] == 0
    best = np.argmax(queries @ vectors.T, axis=1) == [place[q.targets[0]] for q in part.queries]
    assert entry["metrics"]["R@1"] == pytest.approx(100 * best.mean())


# ------------------------------------------------------------------------------------- files


def test_a_repeated_key_of_one_line_is_refused(tmp_path: Path, capsys: Capture) -> None:
    root = table(tmp_path / "data")
    text = (root / "triplets.test.jsonl").read_text()
    (root / "triplets.test.jsonl").write_text(text.replace('"text"', '"text": "another", "text"', 1))
    code, _, said = call(capsys, "data", "check", "custom", "--root", root)
    assert code == 2 and "line 1" in said and "'text' occurs twice" in said
    (root / "triplets.test.jsonl").write_text(text)
    _, part = load_named("custom", root, "test")
    ranked = [json.dumps({q.id: part.images()}) for q in part.queries]
    ranked[0] = f"{ranked[0][:-1]}, {ranked[0][1:]}"
    (root / "l.jsonl").write_text("\n".join(ranked))
    code, _, said = call(capsys, "score", "-d", "custom", "--root", root, "--split", "test", "--rankings", root / "l.jsonl")
    assert code == 2 and "l.jsonl, line 1" in said and "'test0' occurs twice" in said


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_a_table_as_excel_saves_it(encoding: str, tmp_path: Path, capsys: Capture) -> None:
    root = table(tmp_path / "data")
    text = (root / "images.csv").read_text().replace("\n", "\r\n")
    (root / "images.csv").write_bytes(text.encode(encoding))
    code, out, said = call(capsys, "data", "check", "custom", "--root", root, "--json")
    if encoding in ("utf-16", "utf-8-sig"):  # they begin with a mark
        assert code == 0 and json.loads(out)["images"] == 14, said
    else:
        assert code == 2 and "UTF-16" in said and "images.csv" in said


@pytest.mark.parametrize("value", ["null", "true", "[1]", "1.5"])
def test_an_id_that_is_none_is_told_plainly(value: str, tmp_path: Path, capsys: Capture) -> None:
    root = table(tmp_path / "data")
    lines = [json.loads(line) | {"id": json.loads(value)} for line in (root / "triplets.test.jsonl").read_text().splitlines()]
    (root / "triplets.test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, said = call(capsys, "data", "check", "custom", "--root", root)
    assert code == 2 and "line 1" in said and "'id' is" in said and "leave 'id' out" in said


def test_texts_that_no_clip_can_read_are_counted(tmp_path: Path, capsys: Capture) -> None:
    root = table(tmp_path / "data")
    lines = [json.loads(line) for line in (root / "triplets.test.jsonl").read_text().splitlines()]
    lines[0]["text"] = "a " * 90
    lines[1]["text"] = "red " * 40
    lines[2]["text"], lines[3]["text"] = "红色的连衣裙", "蓝色的"
    (root / "triplets.test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, found = check(capsys, root)
    assert code == 0
    assert any("1 texts have more than 75 words" in n for n in found["notes"])
    assert any("2 texts have more than 30 words" in n for n in found["notes"])
    assert any("2 texts have no Latin letter or digit" in n for n in found["notes"])
    assert not any("texts have" in n for n in check(capsys, table(tmp_path / "plain"))[1]["notes"])


def test_pretraining_refuses_a_vocabulary_of_no_words(tmp_path: Path, capsys: Capture) -> None:
    root = table(tmp_path / "data")
    header, *rows = (root / "images.csv").read_text().splitlines()
    (root / "images.csv").write_text("\n".join([f"{header},name", *(f"{row},红色的鞋" for row in rows)]) + "\n")
    code, _, said = call(
        capsys, "pretrain", "clip", "--dataset", "custom", "--root", root, "--out", tmp_path / "clip", "--steps", "1"
    )
    assert code == 2 and "no word" in said and "红色的鞋" in said
    assert not (tmp_path / "clip/clip.json").exists()


def test_a_picture_whose_name_is_no_text_is_named(tmp_path: Path, capsys: Capture) -> None:
    root = folder(tmp_path / "mine")
    os.rename(root / "images/a0.jpg", os.fsencode(root / "images") + b"/a\xff.jpg")  # noqa: PTH104  bytes
    code, out, err = call(capsys, "data", "check", "custom", "--root", root)
    assert code == 2 and r"b'images/a\xff.jpg' is not UTF-8" in err and "Traceback" not in out + err
