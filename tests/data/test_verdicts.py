"""A picture is decoded once to see whether that works; what is remembered is never out of date."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_data import check, encoded, noise, problems, run, table

from cirbench.data import file_hashes, verdicts
from cirbench.data.image_files import Decoded, decode

Restart = Callable[[], None]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that were decoded to see whether that works."""
    names: list[str] = []

    def counting(path: Path, *how: Any) -> Decoded:
        names.append(path.name)
        return decode(path, *how)

    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verdicts, "decode", counting)
    # A file written a moment ago is not trusted yet: pretend that all were written long before.
    monkeypatch.setattr(file_hashes, "RECENT", -1.0)
    return names


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch) -> Restart:
    """Forget what this process knows, as another one does."""

    def forget() -> None:
        monkeypatch.setattr(file_hashes, "_known", {})
        monkeypatch.setattr(verdicts, "_known", {})

    forget()
    return forget


def test_commands_decode_a_picture_once(
    decoded: list[str], restart: Restart, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = table(tmp_path / "mine")
    (root / "images/a1.jpg").write_bytes((root / "images/a1.jpg").read_bytes()[:200])
    (root / "images/a4.jpg").unlink()
    code, first = check(capsys, root)
    assert code == 1 and sorted(decoded) == sorted(p.name for p in (root / "images").iterdir())
    assert problems(first) == {"missing": ["a4"], "truncated": ["a1"]}
    for again in range(2):
        decoded.clear()
        assert check(capsys, root) == (1, first)
        code, record, _ = run(capsys, root, "--allow-missing", "--seed", str(again))
        assert code == 0 and record["missing"]["ids"] == ["a1", "a4"]
        # What cannot be used is decoded each time: the cause may have been the machine.
        assert decoded == ["a1.jpg"] * 2
        restart()


@pytest.mark.parametrize("started_anew", [False, True])
def test_a_picture_that_changes_is_decoded_again(
    started_anew: bool, decoded: list[str], restart: Restart, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = table(tmp_path / "mine")
    assert check(capsys, root)[0] == 0
    for body, said in (
        (b"\xff\xd8nothing", {"truncated": ["t5"]}), (b"", {"zero-byte": ["t5"]}), (encoded(noise(5), "JPEG"), {}),
    ):
        (root / "images/t5.jpg").write_bytes(body)
        if started_anew:
            restart()
        assert problems(check(capsys, root)[1]) == said
    decoded.clear()
    (root / "images/t5.jpg").write_bytes(encoded(noise(99), "PNG"))
    assert problems(check(capsys, root)[1]) == {} and decoded == ["t5.jpg"]


def test_what_is_told_of_pictures_is_remembered_with_them(
    decoded: list[str], restart: Restart, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = table(tmp_path / "mine")
    exif = noise(1).getexif()
    exif[0x0112] = 6
    (root / "images/t0.jpg").write_bytes(encoded(noise(20), "JPEG", exif=exif))
    (root / "images/t1.jpg").write_bytes(encoded(noise(21).convert("RGBA"), "PNG"))
    notes = check(capsys, root)[1]["notes"]
    assert any("1 pictures carry an EXIF" in n for n in notes) and any("1 pictures have an alpha" in n for n in notes)
    decoded.clear()
    restart()
    assert check(capsys, root)[1]["notes"] == notes and decoded == []


def test_other_code_or_another_pillow_decodes_again(
    decoded: list[str], restart: Restart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((table(tmp_path / "mine") / "images").iterdir())
    first = verdicts.verdicts(files)
    for rule, times in (("other", len(files)), ("other", 0)):
        decoded.clear()
        monkeypatch.setattr(verdicts, "_rule", lambda rule=rule: rule)
        assert verdicts.verdicts(files) == first and len(decoded) == times
        restart()


def test_a_file_exchanged_while_it_is_decoded_is_not_taken_for_the_other(
    decoded: list[str], restart: Restart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8nothing")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8nothing")
    real = verdicts.decode

    def slowly(path: Path) -> Decoded:
        path.write_bytes(encoded(noise(0), "JPEG"))
        return real(path)

    monkeypatch.setattr(verdicts, "decode", slowly)
    assert verdicts.verdicts([tmp_path / "a.jpg"])[tmp_path / "a.jpg"].problem == ""
    monkeypatch.setattr(verdicts, "decode", real)
    restart()
    assert verdicts.verdicts([tmp_path / "b.jpg"])[tmp_path / "b.jpg"].problem == "truncated"


def test_without_a_cache_that_can_be_used_the_answer_is_the_same(
    decoded: list[str], restart: Restart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((table(tmp_path / "mine") / "images").iterdir())
    first = verdicts.verdicts(files)
    (tmp_path / "cache" / "verdicts.sqlite3").write_bytes(b"not a database at all" * 100)
    restart()
    assert verdicts.verdicts(files) == first
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("")
    restart()
    assert verdicts.verdicts(files) == first and len(decoded) == 3 * len(files)
    assert verdicts.verdicts(files) == first and len(decoded) == 3 * len(files)
