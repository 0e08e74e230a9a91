"""Bad annotation files and bad result files: one message that names the thing, exit code 2, never a traceback."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_embeddings import embeddings, write_npz
from small_data import SCORED, build, css3d_data, write

from cirbench.cli import main
from cirbench.data import image_files
from cirbench.data.reading import read_json
from cirbench.data.splits import load_named
from cirbench.types import CirbenchError

Damage = Callable[[Path], Any]


def edit(name: str, change: Callable[[Any], Any]) -> Damage:
    """Change the value of a JSON file in place."""

    def apply(root: Path) -> None:
        value = json.loads((root / name).read_text())
        write(root / name, change(value) or value)

    return apply


def text(name: str, change: Callable[[str], str]) -> Damage:
    return lambda root: (root / name).write_text(change((root / name).read_text()))


def raw(name: str, body: bytes) -> Damage:
    return lambda root: (root / name).write_bytes(body)


def gone(name: str) -> Damage:
    return lambda root: (root / name).unlink()


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def evil(root: Path) -> None:
    body = np.array({"train": Evil()}, dtype=object)
    np.save(root / "css_toy_dataset_novel2_small.dup.npy", body, allow_pickle=True)


def css(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def apply(root: Path) -> None:
        data = css3d_data()
        change(data)
        np.save(root / "css_toy_dataset_novel2_small.dup.npy", np.array(data, dtype=object), allow_pickle=True)

    return apply


CAP, CIRR, SHOES = "captions/cap.dress.val.json", "captions/cap.rc2.val.json", "relative_captions_shoes.json"
CIRCO, CSV, TRIPLETS = "annotations/val.json", "images.csv", "triplets.test.jsonl"
LABELS, NPY = "labels/dress_test_detect_all.txt", "css_toy_dataset_novel2_small.dup.npy"

ANNOTATIONS: list[tuple[str, str, Damage, str]] = [
    ("missing file", "fashioniq", gone(CAP), "cap.dress.val.json"),
    ("truncated JSON", "fashioniq", text(CAP, lambda t: t[: len(t) // 2]), "not valid JSON"),
    ("latin-1", "fashioniq", raw(CAP, '[{"candidate": "é"}]'.encode("latin-1")), "not UTF-8"),
    ("empty file", "fashioniq", raw(CAP, b""), "is empty"),
    ("web page", "fashioniq", raw(CAP, b"<html>404</html>"), "web page"),
    ("empty list", "fashioniq", raw(CAP, b"[]"), "empty list"),
    ("object for list", "fashioniq", raw(CAP, b"{}"), "JSON list is expected"),
    ("key missing", "fashioniq", edit(CAP, lambda v: v[0].pop("target") and None), "no key 'target'"),
    ("wrong type", "fashioniq", edit(CAP, lambda v: v[0].update(candidate=3)), "'candidate' is a number"),
    ("one caption", "fashioniq", edit(CAP, lambda v: v[1].update(captions=["a"])), "exactly 2 are expected"),
    ("caption no text", "fashioniq", edit(CAP, lambda v: v[1].update(captions=["a", 2])), "only strings"),
    ("image of another set", "fashioniq", edit(CAP, lambda v: v[1].update(candidate="B9")), "'B9' not in the gallery"),
    ("image twice in split", "fashioniq", edit("image_splits/split.dress.val.json", lambda v: v.append(v[0])), "twice"),
    ("NaN in JSON", "cirr", text(CIRR, lambda t: t.replace("0.5", "NaN", 1)), "NaN"),
    ("key twice in object", "cirr", text(CIRR, lambda t: t.replace('"pairid"', '"pairid": 1, "pairid"', 1)), "twice"),
    ("pairid twice", "cirr", edit(CIRR, lambda v: v[1].update(pairid=v[0]["pairid"])), "pairid"),
    ("reference not in subset", "cirr", edit(CIRR, lambda v: v[0].update(reference="dev-0-0-img9")), "the members"),
    ("soft label no number", "cirr", edit(CIRR, lambda v: v[0].update(target_soft={"dev-0-0-img0": "x"})), "a number"),
    ("split file is a list", "cirr", raw("image_splits/split.rc2.val.json", b"[1]"), "image name -> path"),
    ("caption missing", "shoes", edit(SHOES, lambda v: v[2].update(RelativeCaption="  ")), "caption is empty"),
    ("name twice", "shoes", text("eval_im_names.txt", lambda t: t + t.split("\n")[0] + "\n"), "occurs twice"),
    ("blank name", "shoes", text("eval_im_names.txt", lambda t: "a.jpg\n\n" + t), "line 2: empty"),
    ("lists overlap", "shoes", text("train_im_names.txt", lambda t: t + "img_womens_clogs_1.jpg\n"), "both lists"),
    ("lists of other data", "shoes", raw("eval_im_names.txt", b"x.jpg\n"), "other release"),
    ("ids out of order", "circo", edit(CIRCO, lambda v: v[1].update(id=7)), "ids count from 0"),
    ("first target differs", "circo", edit(CIRCO, lambda v: v[0].update(target_img_id=1)), "not the first"),
    ("target no number", "circo", edit(CIRCO, lambda v: v[0].update(gt_img_ids=["1"])), "is a text"),
    ("bbox of three", "genecis", edit("focus_attribute.json", lambda v: v[0]["target"].update(instance_bbox=[1, 2, 3])),
     "4 are expected"),
    ("column missing", "custom", text(CSV, lambda t: t.replace("image_id", "image-id", 1)), "Did you mean 'image-id'"),
    ("fields too many", "custom", text(CSV, lambda t: t + "a,b,c,d,e\n"), "5 fields"),
    ("image id twice", "custom", text(CSV, lambda t: t + "test0,x.jpg,test,n\n"), "'test0' occurs twice"),
    ("unknown image", "custom", text(TRIPLETS, lambda t: t.replace('"test', '"tset', 40)), "neither in images.csv"),
    ("line no JSON", "custom", text(TRIPLETS, lambda t: t + "{oops\n"), "not valid JSON"),
    ("line no object", "custom", text(TRIPLETS, lambda t: t + "[1]\n"), "an object"),
    ("no target", "custom", text(TRIPLETS, lambda t: t + '{"id":"z","reference":"test1","text":"x","targets":[]}\n'),
     "'targets' is empty"),
    ("no text", "custom", text(TRIPLETS, lambda t: t + (
        '{"id":"z","reference":"test1","text":" ","targets":["test2"]}\n')), "text is empty"),
    ("blank first text", "custom", text(TRIPLETS, lambda t: t + (
        '{"id":"z","reference":"test1","texts":["","red"],"targets":["test2"]}\n')), "text is empty"),
    ("several texts", "custom", text(TRIPLETS, lambda t: t + (
        '{"id":"z","reference":"test1","texts":["red","blue"],"targets":["test2"]}\n')), "Write a line for each"),
    ("members no list", "custom", text(TRIPLETS, lambda t: t + (
        '{"id":"z","reference":"test1","text":"x","targets":["test2"],"members":3}\n')), "'members'"),
    ("field too long", "custom", text(CSV, lambda t: t + "z,z.jpg,test," + "x" * 200_000 + "\n"), "not a CSV file"),
    ("quote never closed", "custom", text(CSV, lambda t: t + 'z,z.jpg,test,"n\n'), "not a CSV file"),
    ("query twice", "custom", text(TRIPLETS, lambda t: t + t.split("\n")[0] + "\n"), "query id"),
    ("target of another split", "custom", text(TRIPLETS, lambda t: t + (
        '{"id":"z","reference":"test1","text":"x","targets":["train2"]}\n')), "data.gallery=all"),
    ("label of two fields", "fashion200k", text(LABELS, lambda t: "a\tb\n" + t), "expected 3"),
    ("labelled twice", "fashion200k", text(LABELS, lambda t: t + t.split("\n")[0] + "\n"), "labelled twice"),
    ("query unlabelled", "fashion200k", text("test_queries.txt", lambda t: t + "a.jpeg b.jpeg\n"), "has no label"),
    ("query of one path", "fashion200k", text("test_queries.txt", lambda t: "a.jpeg\n" + t), "expected 2"),
    ("pickle that runs code", "css3d", evil, "could run code"),
    ("no npy", "css3d", raw(NPY, b"hello"), "is not an .npy"),
    ("plain array", "css3d", lambda root: np.save(root / NPY, np.zeros(3)), "one pickled object"),
    ("pickle cut", "css3d", lambda root: (root / NPY).write_bytes((root / NPY).read_bytes()[:400]), "damaged"),
    ("memo of gigabytes", "css3d", lambda root: (root / NPY).write_bytes(
        (root / NPY).read_bytes().replace(b"\x80\x04", b"\x80\x04]r\xff\xff\xff\x000", 1)), "place 16,777,215 of the memo"),
    ("image index", "css3d", css(lambda d: d["test"]["mods"][0].update(to=[1, 2, 99])), "image 99 does not exist"),
    ("uneven pairs", "css3d", css(lambda d: d["test"]["mods"][0].update(to=[1])), "3 sources and 1 targets"),
    ("labels too few", "css3d", css(lambda d: d["test"]["labels"].pop()), "15 labels for 16 images"),
]


def refuse(capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert said.err.startswith("cirbench: ") and "Traceback" not in said.err and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(("name", "damage", "message"), [a[1:] for a in ANNOTATIONS], ids=[a[0] for a in ANNOTATIONS])
def test_bad_annotations(
    name: str, damage: Damage, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = build(name, tmp_path / name)
    damage(root)
    (tmp_path / "l.json").write_text('{"0": ["x"]}')
    said = refuse(
        capsys, "score", "--dataset", name, "--root", root, "--split", SCORED[name], "--rankings", tmp_path / "l.json"
    )
    assert message in said


def old(value: Any) -> bytes:
    """A value as Python 2 pickles it: texts are byte strings."""
    if isinstance(value, dict):
        return b"}(" + b"".join(old(k) + old(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(old, value)) + b"e"
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode("latin-1")
    return b"J" + int(value).to_bytes(4, "little", signed=True)


def test_the_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    data = css3d_data()
    data["test"]["mods"][0]["to_str"] = "make it caf\xe9"
    array = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\0\0\0\0tU\x01btR(J\x01\0\0\0)"
        b"cnumpy\ndtype\n(U\x02O8J\0\0\0\0J\x01\0\0\0tR(J\x03\0\0\0U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffJ?\0\0\0tb"
        b"I00\n](" + old(data) + b"etb."
    )
    head = b"{'descr': '|O8', 'fortran_order': False, 'shape': (), }"
    head += b" " * (-(len(head) + 11) % 16) + b"\n"
    (tmp_path / NPY).write_bytes(b"\x93NUMPY\x01\0" + len(head).to_bytes(2, "little") + head + array)
    _, split = load_named("css3d", tmp_path, "test")
    assert len(split.queries) == 15 and split.queries[0].texts == ("make it café",)


@pytest.mark.parametrize(("args", "message"), [
    (["--dataset", "fashionqi"], "Did you mean 'fashioniq'"),
    (["--dataset", "shoes", "--split", "vall"], "Did you mean 'val'"),
    (["--dataset", "shoes", "--split", "eval", "--protocol", "shoes-4567"], "Did you mean"),
    (["--dataset", "shoes", "--split", "eval", "--set", "data.select_shar=1"], "select_share"),
    (["--dataset", "shoes", "--split", "eval", "--root", "{tmp}/nowhere"], "no such folder"),
    (["--dataset", "shoes", "--split", "eval", "--root", "{tmp}/l.json"], "is a file"),
    (["--dataset", "cirr", "--split", "val"], "not under"),
])
def test_bad_names(args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build("shoes", tmp_path / "shoes")
    (tmp_path / "l.json").write_text('{"18": ["img_womens_clogs_1.jpg"]}')
    given = [a.replace("{tmp}", str(tmp_path)) for a in args]
    if "--root" not in given:
        given += ["--root", str(root)]
    assert message in refuse(capsys, "score", *given, "--rankings", tmp_path / "l.json")


def test_no_root_and_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--root DIR" in refuse(capsys, "score", "--dataset", "shoes", "--split", "eval", "--rankings", "x.json")
    assert "either --embeddings" in refuse(capsys, "score", "--dataset", "shoes", "--root", tmp_path)
    assert "gallery" in refuse(capsys, "data", "check", "custom", "--root", tmp_path, "--set", "data.gallery=some")


def as_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


NPZ: list[tuple[str, Callable[[dict[str, np.ndarray]], Any], str]] = [
    ("key missing", lambda d: d.pop("image_ids"), "no key 'image_ids'"),
    ("NaN", lambda d: d["queries"].__setitem__((2, 0), np.nan), "NaN or infinite"),
    ("infinite", lambda d: d["gallery"].__setitem__((1, 1), np.inf), "in row 1"),
    ("dimensions differ", lambda d: d.update(gallery=d["gallery"][:, :5]), "8 dimensions and gallery has 5"),
    ("whole numbers", lambda d: d.update(queries=d["queries"].astype(np.int32)), "a float type"),
    ("vector", lambda d: d.update(queries=d["queries"][0]), "has shape (8,)"),
    ("ids too few", lambda d: d.update(query_ids=d["query_ids"][:3]), "one id each"),
    ("float ids", lambda d: d.update(image_ids=np.arange(len(d["image_ids"])) * 1.0), "strings or whole numbers"),
    ("id twice", lambda d: d["query_ids"].__setitem__(1, d["query_ids"][0]), "twice"),
    ("unknown query", lambda d: d["query_ids"].__setitem__(1, "9999"), "not in shoes/eval"),
    ("unknown form", lambda d: d["query_ids"].__setitem__(1, f"{d['query_ids'][0]}#ab"[:8]), "text form"),
    ("query missing", lambda d: d.update(query_ids=d["query_ids"][3:], queries=d["queries"][3:]), "have no row"),
    ("unknown image", lambda d: d["image_ids"].__setitem__(1, "x.jpg"), "'x.jpg'"),
    ("image missing", lambda d: d.update(image_ids=d["image_ids"][3:], gallery=d["gallery"][3:]), "have no embedding"),
]


@pytest.mark.parametrize(("change", "message"), [n[1:] for n in NPZ], ids=[n[0] for n in NPZ])
def test_bad_embeddings(
    change: Callable[[Any], Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = build("shoes", tmp_path / "shoes")
    dataset, split = load_named("shoes", root, "eval")
    data = as_arrays(write_npz(tmp_path / "e.npz", dataset, split, *embeddings(dataset, split, "random", 1)))
    text_rows = np.array(["#" not in i for i in data["query_ids"]])
    data["query_ids"], data["queries"] = data["query_ids"][text_rows], data["queries"][text_rows]
    change(data)
    np.savez(tmp_path / "e.npz", **data)
    said = refuse(
        capsys, "score", "--dataset", "shoes", "--root", root, "--split", "eval", "--embeddings", tmp_path / "e.npz"
    )
    assert message in said or (message == "'x.jpg'" and "x.jpg" in said)


@pytest.mark.parametrize(("body", "message"), [
    (b"not an archive", "not an .npz"), (b"PK\x03\x04cut", "not an .npz"),
    (pickle.dumps({"queries": 1}), "not an .npz"),
])
def test_files_that_are_no_npz(body: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build("shoes", tmp_path / "shoes")
    (tmp_path / "e.npz").write_bytes(body)
    args = ("score", "--dataset", "shoes", "--root", root, "--split", "eval", "--embeddings")
    assert message in refuse(capsys, *args, tmp_path / "e.npz")
    assert "no such file" in refuse(capsys, *args, tmp_path / "none.npz")


@pytest.mark.parametrize(("lists", "message"), [
    ({"version": "rc1", "metric": "recall", "31": ["a"]}, "'rc2'"),
    ({"version": "rc2", "metric": "recal", "31": ["a"]}, "Did you mean 'recall'"),
    ({"version": "rc2", "metric": "recall"}, "holds no ranking"),
    ({"31": "dev-0-0-img0"}, "not a list"), ({"31": [True]}, "not a list"), ({"31": []}, "is empty"),
    ({"31": ["dev-0-0-img0", "dev-0-0-img0"]}, "twice"), ({"31": ["train-1-0-img0"]}, "not in its gallery"),
    ({"99": ["dev-0-0-img0"]}, "not in cirr/val"), ({"31": ["dev-0-0-img0"]}, "have no row"), ([1], "an object"),
])
def test_bad_rankings(lists: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build("cirr", tmp_path / "cirr")
    (tmp_path / "l.json").write_text(json.dumps(lists))
    args = ("--dataset", "cirr", "--root", root, "--split", "val", "--rankings", tmp_path / "l.json")
    assert message in refuse(capsys, "score", *args)


def test_hidden_labels_cannot_be_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build("cirr", tmp_path / "cirr")
    (tmp_path / "l.json").write_text("{}")
    args = ("--dataset", "cirr", "--root", root, "--split", "test1", "--rankings", tmp_path / "l.json")
    assert "not public" in refuse(capsys, "score", *args)


def test_pictures_that_cannot_be_read_are_told_by_name(tmp_path: Path) -> None:
    from make_standins import jpeg

    for name, body in {"a": b"", "b": b"<html>", "c": jpeg("c")[:300], "d": b"noise" * 9}.items():
        (tmp_path / f"{name}.jpg").write_bytes(body)
    images = image_files.FolderImages(tmp_path, ("{id}",), None, "custom")
    for name, why in zip("abcde", ("empty", "web page", "truncated", "not a picture", "missing"), strict=True):
        with pytest.raises(CirbenchError, match=why) as error:
            images.open(name)
        assert name in str(error.value)


def test_a_message_with_a_huge_value_is_shown_in_part() -> None:
    said = str(CirbenchError(f"x.json: the name {'y' * 100_000!r} occurs twice. Remove one."))
    assert len(said) < 4100 and said.startswith("x.json: the name 'yyy") and said.endswith("occurs twice. Remove one.")


def test_a_number_beyond_a_float_has_no_value(tmp_path: Path) -> None:
    for number in ("1e999", "-1e999", "9" * 400, "9" * 5000):
        with pytest.raises(CirbenchError, match=r"x\.json: the number .*(too large|digits)"):
            read_json(write(tmp_path / "x.json", f"[{number}]"))
    assert read_json(write(tmp_path / "x.json", f"[1e300, {'9' * 300}]")) == [1e300, int("9" * 300)]


def test_zero_characters_and_halves_of_characters_are_refused_whole_ones_are_not(tmp_path: Path) -> None:
    for text in (r'["\u0000"]', r'{"\ud800": 1}', r'[{"a": ["x\udc00"]}]'):
        with pytest.raises(CirbenchError, match=r"holds (a zero|half of a) character"):
            read_json(write(tmp_path / "x.json", text))
    assert read_json(write(tmp_path / "x.json", r'["\ud83e\udd8a", "\\u0000", "\\ud800"]')) == ["🦊", r"\u0000", r"\ud800"]
