"""`data get` against a local server that misbehaves, and `data check` on damaged pictures."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from make_standins import jpeg
from small_data import build

from cirbench.cli import main
from cirbench.data import download
from cirbench.plugins import dataset_names, find_dataset
from cirbench.types import CirbenchError, Download

BODY = bytes(range(256)) * 5000


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut[path]` ends the first answer early; `log` keeps what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.log: list[tuple[str, str]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.log.append((self.path, wanted))
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.sha256(body).hexdigest()[:8]}"'
        start = 0
        if wanted and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = self.server.cut.pop(self.path, len(body))
        self.wfile.write(body[start:stop])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.mark.network
def test_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"], server.cut["/a.bin"] = BODY, 700_000
    item = Download("sub/a.bin", (server.url("/a.bin"),), sha(BODY))
    with pytest.raises(CirbenchError, match="ended after 700000 of 1280000"):
        download.fetch(item, tmp_path)
    assert not (tmp_path / "sub/a.bin").exists()
    assert (tmp_path / "sub/a.bin.part").stat().st_size == 700_000
    assert download.fetch(item, tmp_path) == "fetched"
    assert (tmp_path / "sub/a.bin").read_bytes() == BODY
    assert server.log[-1] == ("/a.bin", "bytes=700000-")
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["a.bin"]
    asked = len(server.log)
    assert download.fetch(item, tmp_path) == "present" and len(server.log) == asked


@pytest.mark.network
def test_a_whole_part_only_gets_its_name(server: Server, tmp_path: Path) -> None:
    """Killed after the last byte: there is nothing left to ask for, and the server says so (416)."""
    server.files["/a.bin"], server.cut["/a.bin"] = BODY, 1000
    item = Download("a.bin", (server.url("/a.bin"),), sha(BODY))
    with pytest.raises(CirbenchError, match="ended after"):
        download.fetch(item, tmp_path)
    (tmp_path / "a.bin.part").write_bytes(BODY)
    assert download.fetch(item, tmp_path) == "fetched" and (tmp_path / "a.bin").read_bytes() == BODY
    assert len(server.log) == 2
    # More than the server has is of no use, and fetched anew.
    longer = Download("b.bin", item.urls, item.sha256)
    (tmp_path / "b.bin.part").write_bytes(BODY + b"more")
    tag = f'"{sha(BODY)[:8]}"'
    (tmp_path / "b.bin.part.json").write_text(json.dumps({"url": item.urls[0], "tag": tag}))
    assert download.fetch(longer, tmp_path) == "fetched" and (tmp_path / "b.bin").read_bytes() == BODY


def test_a_mirror_that_is_no_address(tmp_path: Path) -> None:
    with pytest.raises(CirbenchError, match=r"a\.bin could not be fetched: http://host/a b"):
        download.fetch(Download("a.bin", ("http://host/a b",)), tmp_path)


def test_annotations_need_no_archive_of_pictures() -> None:
    found = {n: [d.path for d in find_dataset(n).SPEC.downloads if d.pictures] for n in dataset_names()}
    assert {n: paths for n, paths in found.items() if paths} == {"shoes": ["attributedata.tar.gz"]}


@pytest.mark.network
def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"], server.cut["/a.bin"] = BODY, 1000
    item = Download("a.bin", (server.url("/a.bin"),))
    with pytest.raises(CirbenchError, match="ended after"):
        download.fetch(item, tmp_path)
    server.files["/a.bin"] = BODY[::-1]
    download.fetch(item, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY[::-1]


@pytest.mark.network
def test_wrong_checksum_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    server.files["/a.bin"] = BODY
    with pytest.raises(CirbenchError, match="wrong checksum"):
        download.fetch(Download("a.bin", (server.url("/a.bin"),), "0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.network
def test_a_missing_file_falls_back_to_the_next_mirror(server: Server, tmp_path: Path) -> None:
    server.files["/b/a.bin"] = BODY
    item = Download("a.bin", (server.url("/a/a.bin"), server.url("/b/a.bin")), sha(BODY))
    assert download.fetch(item, tmp_path) == "fetched"
    with pytest.raises(CirbenchError, match="HTTP 404"):
        download.fetch(Download("c.bin", (server.url("/a/a.bin"),)), tmp_path)


def test_an_existing_file_with_other_content_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(CirbenchError, match="another content"):
        download.fetch(Download("a.bin", (), sha(BODY)), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


def zipped(entries: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, body in entries.items():
            file.writestr(name, body)
    return out.getvalue()


def tarred(name: str, link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        entry = tarfile.TarInfo(name)
        if link:
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            file.addfile(entry)
        else:
            entry.size = 4
            file.addfile(entry, io.BytesIO(b"data"))
    return out.getvalue()


@pytest.mark.network
@pytest.mark.parametrize("body", [
    zipped({"good.txt": b"x", "../bad.txt": b"x"}), zipped({"/bad.txt": b"x"}), zipped({"a\\..\\..\\bad.txt": b"x"}),
    tarred("../bad.txt"), tarred("bad.txt", "/etc/passwd"),
], ids=["zip-parent", "zip-absolute", "zip-backslash", "tar-parent", "tar-link"])
def test_archives_that_lead_elsewhere_are_refused_whole(body: bytes, server: Server, tmp_path: Path) -> None:
    server.files["/x"] = body
    root = tmp_path / "root"
    with pytest.raises(CirbenchError, match="nothing was unpacked"):
        download.fetch(Download("x.zip", (server.url("/x"),), unpack="pictures"), root)
    assert not (tmp_path / "bad.txt").exists() and not (root / "pictures").exists()
    assert [p.name for p in root.iterdir()] == ["x.zip"]


@pytest.mark.network
def test_a_good_archive_is_unpacked_once(server: Server, tmp_path: Path) -> None:
    server.files["/x"] = zipped({"a/one.txt": b"1", "two.txt": b"2"})
    item = Download("x.zip", (server.url("/x"),), unpack="out")
    assert download.fetch(item, tmp_path) == "unpacked"
    assert (tmp_path / "out/a/one.txt").read_bytes() == b"1"
    assert download.fetch(item, tmp_path) == "present" and len(server.log) == 1


@pytest.mark.network
def test_an_error_page_is_not_taken_for_an_archive(server: Server, tmp_path: Path) -> None:
    server.files["/x"] = b"<html>sorry</html>"
    with pytest.raises(CirbenchError, match="neither a zip nor a tar"):
        download.fetch(Download("x.zip", (server.url("/x"),), unpack="out"), tmp_path)


@pytest.mark.network
def test_a_full_disk_is_told_and_can_be_gone_on_from(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/a.bin"] = BODY
    item = Download("a.bin", (server.url("/a.bin"),), sha(BODY))
    real = Path.open

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(data[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return Full(str(self), mode) if self.suffix == ".part" and "b" in mode and mode[0] in "wa" else real(
            self, mode, *args, **kwargs
        )

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(CirbenchError, match=r"disk is full.*1000 bytes"):
            download.fetch(item, tmp_path)
    assert not (tmp_path / "a.bin").exists()
    assert download.fetch(item, tmp_path) == "fetched"
    assert (tmp_path / "a.bin").read_bytes() == BODY and server.log[-1][1] == "bytes=1000-"


@pytest.mark.network
def test_get_command_says_what_a_person_must_do(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/m/test_queries.txt"] = b"a b\n"
    main(["data", "get", "fashion200k", "--root", str(tmp_path), "--mirror", server.url("/m")])
    said = capsys.readouterr().out
    assert "test_queries.txt: fetched" in said and "github.com/xthan/fashion-200k" in said
    assert (tmp_path / "test_queries.txt").read_bytes() == b"a b\n"


PLUGIN = """
from cirbench.types import DatasetSpec, Download, Protocol
from cirbench.settings import Settings
SPEC = DatasetSpec("p", "p", (Protocol("p", ("R@1",), note="n"),), layout="a.bin, out/", licence="none", downloads=(
    Download("a.bin", ("{0}/gone.bin", "{0}/a.bin"), "{1}"), Download("x.zip", ("{0}/x.zip",), unpack="out"),
    Download("b.bin", ("{0}/b.bin",), "{2}"),
))
class Knobs(Settings): ...
def load(knobs, root=None): ...
"""


@pytest.mark.network
def test_get_command_resumes_and_keeps_nothing_that_is_wrong(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files |= {"/a.bin": BODY, "/b.bin": b"tampered", "/x.zip": zipped({"../out.txt": b"x"})}
    server.cut["/a.bin"] = 500_000
    plugin, root = tmp_path / "p.py", tmp_path / "data"
    plugin.write_text(PLUGIN.replace("{0}", server.url("")).replace("{1}", sha(BODY)).replace("{2}", sha(b"right")))
    get = ["data", "get", str(plugin), "--root", str(root)]
    with pytest.raises(SystemExit) as stop:
        main(get)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "3 of 3 files are missing" in said and "Traceback" not in said
    for told in ("HTTP 404", "ended after 500000 of 1280000", "wrong checksum", "leads out of the folder"):
        assert told in said
    assert sorted(p.name for p in root.iterdir()) == ["a.bin.part", "a.bin.part.json", "x.zip"]
    assert not (tmp_path / "out.txt").exists()
    server.files["/b.bin"] = b"right"
    with pytest.raises(SystemExit):
        main(get)
    assert ("/a.bin", "bytes=500000-") in server.log
    assert "a.bin: fetched\nb.bin: fetched" in capsys.readouterr().out
    assert (root / "a.bin").read_bytes() == BODY and (root / "b.bin").read_bytes() == b"right"
    assert sorted(p.name for p in root.iterdir()) == ["a.bin", "b.bin", "x.zip"]


def test_list_names_every_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "list", "--json"])
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"fashioniq", "shoes", "fashion200k", "css3d", "cirr", "circo", "genecis", "custom", "scenes"} <= set(found)
    assert found["shoes"]["counts"]["eval names"] == 4658


def test_check_finds_every_kind_of_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build("custom", tmp_path)
    names = [f"{s}{n}" for s, count in (("train", 30), ("val", 10), ("test", 14)) for n in range(count)]
    (root / "pictures").mkdir()
    for n, name in enumerate(names):
        (root / f"pictures/{name}.jpg").write_bytes(jpeg(name, 16 + n))
    (root / "pictures/test1.jpg").write_bytes(b"")
    (root / "pictures/test2.jpg").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (root / "pictures/test3.jpg").write_bytes(jpeg("test3", 40)[:-200])
    (root / "pictures/test4.jpg").unlink()
    (root / "pictures/test5.jpg").write_bytes((root / "pictures/test6.jpg").read_bytes())
    (root / "pictures/test7.jpg").write_bytes(b"nothing that is a picture")
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", "custom", "--root", str(root), "--json"])
    assert stop.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert {k: v["ids"] for k, v in found["problems"].items()} == {
        "missing": ["test4"], "zero-byte": ["test1"], "html": ["test2"], "truncated": ["test3"],
        "unreadable": ["test7"], "too-large": [], "unsupported": [], "duplicate": ["test5 = test6"],
    }
    bound = found["bounds"]["custom-drop"]
    assert bound["gone_from_gallery"] == 5 and 0 < bound["lost"] < bound["queries"]
    assert bound["highest"] == pytest.approx(100 * (1 - bound["lost"] / bound["queries"]))


def test_check_is_content_with_whole_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build("custom", tmp_path)
    (root / "pictures").mkdir()
    for split, count in (("train", 30), ("val", 10), ("test", 14)):
        for n in range(count):
            (root / f"pictures/{split}{n}.jpg").write_bytes(jpeg(f"{split}{n}", 20))
    main(["data", "check", "custom", "--root", str(root)])
    assert "custom: complete" in capsys.readouterr().out


def test_check_counts_what_is_there_and_names_what_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build("cirr", tmp_path / "cirr")
    (root / "captions/cap.rc2.train.json").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", "cirr", "--root", str(root)])
    said = capsys.readouterr().out
    assert stop.value.code == 1 and "WRONG  val queries: 12, published 4,181" in said
    assert "WRONG  train queries: cirr: captions/cap.rc2.train.json" in said and "cannot be loaded yet" in said
    # Nothing of the dataset is there: the wrong folder.
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", "cirr", "--root", str(tmp_path / "empty")])
    assert stop.value.code == 2 and "which holds nothing" in capsys.readouterr().err


def test_check_of_one_category_wants_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build("fashioniq", tmp_path / "fiq")
    for path in [*root.glob("*/*shirt*"), *root.glob("*/*toptee*")]:
        path.unlink()
    with pytest.raises(SystemExit):
        main(["data", "check", "fashioniq", "--root", str(root), "--set", "data.category=dress", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {c["what"].split()[0] for c in found["counts"]} == {"dress"} and found["problems"]["missing"]["count"]


def test_ids_of_a_carved_split_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = build("fashioniq", tmp_path / "fiq")
    lists = {}
    for split in ("select", "train", "report"):
        main(["data", "ids", "fashioniq", "--root", str(root), "--split", split, "--set", "data.select_share=0.2"])
        lists[split] = capsys.readouterr().out.split()
    assert len(lists["train"]) + len(lists["select"]) == 90 and not set(lists["train"]) & set(lists["select"])
    assert lists["select"] == sorted(lists["select"]) and len(lists["report"]) == 27


def test_two_fetches_of_one_file_share_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits and finds it present; both used to append to one .part."""
    calls = []

    def slow(url: str, part: Path, progress: Any) -> None:
        calls.append(url)
        for _ in range(20):
            with part.open("ab") as file:
                file.write(b"x" * 100)
            time.sleep(0.01)

    monkeypatch.setattr(download, "_stream", slow)
    monkeypatch.setattr(download.Hosts, "check", lambda self, url: None)  # this host is made up
    item = Download("a.bin", ("http://example.invalid/a",))
    states: list[str] = []
    threads = [threading.Thread(target=lambda: states.append(download.fetch(item, tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(states) == ["fetched", "present", "present"] and len(calls) == 1
    assert (tmp_path / "a.bin").stat().st_size == 2000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin"]


@pytest.mark.parametrize(("name", "data"), [("a.json", b'{"a": [1, 2'), ("a.zip", b"PK\x03\x04half"), ("a.tar.gz", gzip.compress(bytes(range(256)) * 99)[:-40])])
def test_what_was_cut_without_a_length_is_not_taken_for_whole(
    name: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_stream", lambda url, part, progress: part.write_bytes(data))
    monkeypatch.setattr(download.Hosts, "check", lambda self, url: None)  # this host is made up
    item = Download(name, ("http://example.invalid/a",))
    with pytest.raises(CirbenchError, match="not complete"):
        download.fetch(item, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CirbenchError, match=r"not complete.*Move it away"):
        download.fetch(item, tmp_path)
