"""Searching one's own photographs: the index follows the folder, and results equal those of the evaluation."""

from __future__ import annotations

import json
import os
import shutil
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import own_data
import PIL.Image
import pytest
import tiny
import torch
from commands import exit_code

from cirbench.cli._search_page import Album, page, server
from cirbench.data.batches import Feed
from cirbench.data.photos import encoder_inputs, open_photo, photos_below
from cirbench.runs import planning
from cirbench.runs import search as searching
from cirbench.runs.approximate import Approximate
from cirbench.runs.photo_index import BATCH, PhotoIndex
from cirbench.runs.search import Searcher, first_of
from cirbench.scoring.evaluation import encode_gallery, encode_rows
from cirbench.types import CirbenchError

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("runs")
    made = {"sum": tiny.run("sum", out, "clip-only"), "cnn": tiny.run("sum", out, "cnn-only"), "weicom": tiny.run("weicom", out)}
    return {name: record.folder for name, record in made.items()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for n in range(9):
        own_data.noise(n, 40).save(folder / ("below" if n % 2 else ".") / f"p{n}.png")
    return folder


def embeddings(index: PhotoIndex) -> dict[str, np.ndarray]:
    names, table = index.load()
    return dict(zip(names, table.numpy().copy(), strict=True))


@pytest.mark.parametrize("name", ["sum", "cnn"])
def test_a_photograph_is_encoded_as_the_evaluation_encodes_it(runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    searcher = Searcher(runs[name], "cpu")
    dataset = planning.load(searcher.planned)
    split = dataset.splits["report"]
    ids, query = list(split.images())[:5], split.queries[0]
    pictures = [dataset.images.open(i) for i in ids]
    texts = [t for row in dataset.forms["text"](query) for t in row]
    feed = Feed(dataset, [*ids, query.reference], texts, searcher.method.inputs, torch.device("cpu"))
    inside = {k: v for k, v in encoder_inputs(searcher.method.inputs, pictures, torch.device("cpu")).items()}
    for key, wanted in feed.images(ids).items():
        assert torch.allclose(inside[key], wanted, atol=1e-5)
    assert torch.allclose(searcher.encode_images(pictures), encode_gallery(searcher.method, feed, ids), atol=1e-5)
    wanted = encode_rows(searcher.method, feed, replace(split, queries=[query]), dataset.forms["text"]).embeddings[:1]
    assert torch.allclose(searcher.encode_query(dataset.images.open(query.reference), texts[0]), wanted, atol=1e-5)


def test_the_index_follows_the_folder(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    searcher, seen = Searcher(runs["sum"], "cpu"), []

    def encode(images: Any) -> torch.Tensor:
        seen.append(len(images))
        return searcher.encode_images(images)

    index = PhotoIndex(photos, searcher.key, tmp_path / "index")
    assert index.update(encode) .encoded == 9 and seen == [9]
    first = embeddings(index)
    assert list(first) == photos_below(photos)
    again = index.update(encode)
    assert (again.encoded, again.kept, again.gone) == (0, 9, 0) and seen == [9]
    (photos / "p0.png").unlink()
    own_data.noise(50, 40).save(photos / "below/p1.png")  # another picture under an old name
    own_data.noise(51, 40).save(photos / "new.png")
    (photos / "broken.png").write_bytes(b"no picture")
    done = index.update(encode)
    assert (done.encoded, done.gone, list(done.unreadable)) == (3, 1, ["broken.png"])
    now = embeddings(index)
    assert set(now) == (set(first) - {"p0.png"}) | {"new.png"}
    assert not np.allclose(now["below/p1.png"], first["below/p1.png"]) and np.array_equal(now["p2.png"], first["p2.png"])
    assert list(index.update(encode).unreadable) == ["broken.png"] and seen[-1] == 2, "what cannot be read is tried once"
    fresh = PhotoIndex(photos, searcher.key, tmp_path / "fresh")
    fresh.update(encode)
    for name, vector in embeddings(fresh).items():
        assert np.allclose(vector, now[name], atol=1e-6)


def test_an_interruption_loses_one_batch_and_mixes_nothing(runs: dict[str, Path], tmp_path: Path) -> None:
    folder, searcher = tmp_path / "many", Searcher(runs["sum"], "cpu")
    folder.mkdir()
    for n in range(BATCH + 20):
        PIL.Image.new("RGB", (8, 8), (n, 255 - n, 7 * n % 256)).save(folder / f"{n:03}.png")
    calls = []

    def stops(images: Any) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return searcher.encode_images(images)

    index = PhotoIndex(folder, searcher.key, tmp_path / "index")
    with pytest.raises(KeyboardInterrupt):
        index.update(stops)
    # A row without its line, and half a line: what a kill leaves.
    with index.table.open("ab") as file:
        file.write(b"\0" * 100)
    with index.lines.open("a") as lines:
        lines.write('{"path":"147.png","sta')
    assert index.update(searcher.encode_images).encoded == 20
    wanted = searcher.encode_images([open_photo(folder / f"{n:03}.png") for n in range(BATCH + 20)])
    names, table = index.load()
    assert names == [f"{n:03}.png" for n in range(BATCH + 20)] and torch.allclose(table, wanted, atol=1e-5)


def test_an_index_that_is_mostly_old_is_written_anew(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    searcher = Searcher(runs["sum"], "cpu")
    index = PhotoIndex(photos, searcher.key, tmp_path / "index")
    for turn in range(2 * BATCH // 9 + 2):
        for n, name in enumerate(photos_below(photos)):
            own_data.noise(100 * turn + n, 40).save(photos / name)
            os.utime(photos / name, ns=(turn, turn))
        index.update(searcher.encode_images)
    assert index.table.stat().st_size < 2 * BATCH * 4 * index.load()[1].shape[1]
    names, table = index.load()
    assert torch.allclose(table, searcher.encode_images([open_photo(photos / n) for n in names]), atol=1e-5)


def test_indexes_of_other_weights_and_folders_are_not_mixed(runs: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    one, two = Searcher(runs["sum"], "cpu"), Searcher(runs["cnn"], "cpu")
    PhotoIndex(photos, one.key, tmp_path / "index").update(one.encode_images)
    with pytest.raises(CirbenchError, match=r"another folder or of another method's weights.*--index-dir"):
        PhotoIndex(photos, two.key, tmp_path / "index")
    (tmp_path / "index/head.json").write_text("{")
    with pytest.raises(CirbenchError, match="another folder"):
        PhotoIndex(photos, one.key, tmp_path / "index")
    with pytest.raises(CirbenchError, match="is not empty and holds no index"):
        PhotoIndex(photos, one.key, photos)
    assert PhotoIndex(photos, one.key).folder != PhotoIndex(photos, two.key).folder


def searched(capsys: Capture, *args: object) -> tuple[int, dict[str, Any], str]:
    code = exit_code("search", *map(str, args), "--device", "cpu", "--json")
    told = capsys.readouterr()
    return code, json.loads(told.out) if told.out else {}, told.err


@pytest.mark.parametrize("name", ["sum", "weicom"])
def test_search_ranks_the_folder(runs: dict[str, Path], name: str, photos: Path, capsys: Capture, tmp_path: Path) -> None:
    """Also for a method that adapts to the gallery and has a score of its own."""
    code, told, _ = searched(capsys, "--run", runs[name], "--image", photos / "p2.png", "--text", "make it red", "--gallery", photos, "-k", 4)
    assert code == 0 and [hit["place"] for hit in told["hits"]] == [1, 2, 3, 4]
    assert "p2.png" not in [hit["path"] for hit in told["hits"]], "the reference is no answer"
    searcher = Searcher(runs[name], "cpu")
    names, table = PhotoIndex(photos, searcher.key).load()
    query, method = searcher.encode_query(open_photo(photos / "p2.png"), "make it red"), searcher.method
    scores = query @ table.T if name == "sum" else method.score(method.adapt(query, table), table)  # type: ignore[attr-defined]
    order = [names[n] for n in scores[0].argsort(descending=True).tolist() if names[n] != "p2.png"]
    assert [hit["path"] for hit in told["hits"]] == order[:4]
    # From anywhere else all pictures are answers.
    shutil.copy(photos / "p2.png", tmp_path / "other.png")
    code, told, _ = searched(capsys, "--run", runs[name], "--image", tmp_path / "other.png", "--text", "make it red", "--gallery", photos)
    assert len(told["hits"]) == 9


def test_the_table_the_page_and_the_index_command(runs: dict[str, Path], photos: Path, capsys: Capture, tmp_path: Path) -> None:
    assert exit_code("index", str(photos), "--run", str(runs["sum"]), "--json") == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 9
    (photos / "p2.png").rename(photos / "<b>&.png")
    html = tmp_path / "out/found.html"
    args = ("search", "--run", runs["sum"], "--image", photos / "p0.png", "--text", "<i>red</i> & big", "--gallery", photos)
    assert exit_code(*map(str, args), "--html", str(html), "-k", "9", "--quiet") == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 8 and not told.err
    text = html.read_text()
    assert "<i>red" not in text and "&lt;i&gt;red" in text and "<b>&" not in text and text.count("data:image/webp") == 9


@pytest.mark.parametrize(("args", "message"), [
    ((), "a search needs --image PICTURE and --text CHANGE"),
    (("--image", "p0.png", "--text", " "), "a search needs"),
    (("--image", "gone.png", "--text", "red"), "no such picture: .*gone.png"),
    (("--image", "p0.png", "--text", "red", "--gallery", "nowhere"), "no such folder: .*nowhere; the nearest"),
    (("--image", "text.png", "--text", "red"), "text.png"),
    (("--serve",), "--serve needs --gallery DIR"),
    (("--serve", "--text", "red", "--gallery", "."), "Leave --image, --text"),
    (("--image", "p0.png", "--text", "red", "--index", "lsh"), "lsh"),
])
def test_bad_input(
    args: tuple[str, ...], message: str, runs: dict[str, Path], photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    import re

    (photos / "text.png").write_text("<html>")
    monkeypatch.chdir(photos)
    assert exit_code("search", "--run", str(runs["sum"]), *args) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error
    assert exit_code("search", "--run", "no-run", "--image", "p0.png", "--text", "red") == 2


def test_approximate_search_says_its_recall(tmp_path: Path, runs: dict[str, Path], photos: Path) -> None:
    pytest.importorskip("faiss", reason="needs faiss: pip install 'cirbench[index]'")
    torch.manual_seed(0)
    gallery = torch.nn.functional.normalize(torch.randn(3000, 16), dim=1)
    for kind in ("ivf", "hnsw"):
        made = Approximate(kind, gallery, tmp_path / f"{kind}.faiss", "a")
        found, score = made.search(gallery[:50], 10)
        exact = (gallery[:50] @ gallery.T).topk(10)
        shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), exact.indices.tolist(), strict=True)])
        assert 0.3 < made.recall <= 1 and abs(shared - made.recall) < 0.25
        assert np.allclose(score[:, 0], 1, atol=1e-4)
        kept = (tmp_path / f"{kind}.faiss").stat().st_mtime_ns
        assert Approximate(kind, gallery, tmp_path / f"{kind}.faiss", "a").recall == made.recall
        assert (tmp_path / f"{kind}.faiss").stat().st_mtime_ns == kept
        assert Approximate(kind, gallery[:500], tmp_path / f"{kind}.faiss", "b").index.ntotal == 500
    with pytest.raises(CirbenchError, match="weicom has a score of its own"):
        searcher = Searcher(runs["weicom"], "cpu")
        names, table = ["a"] * 9, searcher.encode_images([open_photo(photos / n) for n in photos_below(photos)])
        searcher.search(searcher.encode_query(own_data.noise(1), "red"), names, table, 3, "", Approximate("hnsw", table))


@pytest.mark.parametrize("k", [1, 20, 3000])
def test_the_first_images_are_those_of_sorting(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "BLOCK", 256)
    torch.manual_seed(k)
    queries, gallery = torch.randint(-2, 3, (3, 4)).float(), torch.randint(-2, 3, (1000, 4)).float()
    index, value = first_of(queries, gallery, k)
    for row, scores in enumerate((queries @ gallery.T).tolist()):
        order = sorted(range(1000), key=lambda n: (-scores[n], n))[:k]
        assert index[row].tolist() == order + [-1] * (k - len(order))
        assert value[row][: len(order)].tolist() == [scores[n] for n in order]
    with pytest.raises(CirbenchError, match="NaN among the scores"):
        first_of(queries, gallery, k, lambda q, g: q @ g.T * torch.nan)


def test_without_faiss_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(CirbenchError, match=r"--index ivf needs faiss: pip install 'cirbench\[index\]'"):
        Approximate("ivf", torch.zeros(3, 2))


@pytest.fixture
def album(runs: dict[str, Path], photos: Path, tmp_path: Path) -> Album:
    searcher = Searcher(runs["sum"], "cpu")
    index = PhotoIndex(photos, searcher.key, tmp_path / "index")
    index.update(searcher.encode_images)
    return Album(searcher, photos, *index.load())


def test_the_page_to_browse(album: Album) -> None:
    running = server(album, 5)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    at = f"http://127.0.0.1:{running.server_address[1]}"

    def get(path: str, host: str = "") -> tuple[int, bytes]:
        request = urllib.request.Request(at + path, headers={"Host": host} if host else {})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    try:
        code, start = get("/")
        assert code == 200 and start.count(b"/?photo=") == 9
        code, found = get("/?photo=3&text=%3Cb%3Ered")
        assert code == 200 and found.count(b"<li>") == 5 and b"<b>red" not in found and b"&lt;b&gt;red" in found
        code, picture = get("/picture?photo=3")
        assert code == 200 and picture[8:12] == b"WEBP"
        for wrong in ("/?photo=9", "/picture?photo=-1", "/picture?photo=../x", "/?photo=x"):
            assert b"there is no picture" in get(wrong)[1]
        assert get("/etc/passwd")[0] == 404 and get("/", "evil.example:80")[0] == 403
        assert running.server_address[0] == "127.0.0.1"
        with pytest.raises(CirbenchError, match="--port"):
            server(album, 5, running.server_address[1])
    finally:
        running.shutdown()
        running.server_close()
    assert "data:image/webp" in page(album, own_data.noise(1), "red", [])
