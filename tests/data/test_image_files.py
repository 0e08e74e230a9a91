"""Files of pictures as people have them: what is decoded, what is not, and what `data check` says of either."""

from __future__ import annotations

import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_data import check, encoded, folder, noise, problems, run, table
from PIL import Image

from cirbench.plugins import find_dataset

Capture = pytest.CaptureFixture[str]


def loaded(root: Path, **knobs: Any) -> Any:
    module = find_dataset("custom")
    return module.load(module.Knobs(**knobs), root)


def png_without_rows(image: Image.Image) -> bytes:
    """A whole PNG by its chunks and checksums, whose pixels end half-way."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + image.crop((0, y, image.width, y + 1)).tobytes() for y in range(image.height))
    head = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", half(zlib.compress(rows))) + chunk(b"IEND", b"")


def changed(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]


def half(body: bytes) -> bytes:
    return body[: len(body) // 2]


BIG = noise(1, 64)
DAMAGED = {
    "webp": half(encoded(BIG, "WEBP", lossless=True)), "gif": half(encoded(BIG, "GIF")), "bmp": half(encoded(BIG, "BMP")),
    "png-byte": changed(encoded(BIG, "PNG"), 2000), "png-rows": png_without_rows(BIG),
    "jpeg-head": bytes(2) + encoded(BIG, "JPEG")[2:-2] + b"\xff\xd9",
    "jpeg-tables": encoded(BIG, "JPEG")[:20] + bytes(400) + encoded(BIG, "JPEG")[420:],
    "jpeg-cut": encoded(BIG, "JPEG")[:400] + b"\xff\xd9",
}


@pytest.mark.parametrize("kind", sorted(DAMAGED))
def test_damage_that_only_decoding_shows_is_found_and_left_out(kind: str, tmp_path: Path, capsys: Capture) -> None:
    root = folder(tmp_path / "data")
    (root / "images/a2.jpg").write_bytes(DAMAGED[kind])
    code, found = check(capsys, root)
    assert code == 1 and [i for ids in problems(found).values() for i in ids] == ["a2"]
    code, _, said = run(capsys, root)
    assert code == 2 and "a2.jpg" in said
    code, record, said = run(capsys, root, "--allow-missing")
    assert code == 0, said
    assert record["missing"]["ids"] == ["a2"]


@pytest.mark.parametrize("kind", ["AVIF", "TIFF", "JPEG2000", "PPM", "TGA", "WEBP", "GIF", "BMP", "PNG"])
def test_a_picture_under_another_kinds_name_is_whole(kind: str, tmp_path: Path, capsys: Capture) -> None:
    root = folder(tmp_path / "data")
    (root / "images/a2.jpg").write_bytes(encoded(noise(2), kind))
    code, found = check(capsys, root)
    assert code == 0 and problems(found) == {}
    code, record, said = run(capsys, root, "--allow-missing")
    assert code == 0 and not record.get("missing"), said


@pytest.mark.parametrize("ending", ["webp", "gif", "bmp", "tiff", "tif", "avif", "jfif", "JPG", "jp2", "Webp"])
def test_every_decodable_ending_takes_part_without_a_table(ending: str, tmp_path: Path, capsys: Capture) -> None:
    root = folder(tmp_path / "data")
    kind = {"jfif": "JPEG", "jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(ending.lower(), ending.upper())
    (root / f"images/extra.{ending}").write_bytes(encoded(noise(99), kind))
    code, found = check(capsys, root)
    assert code == 0 and found["images"] == 15
    assert loaded(root).images.open("extra").size == (32, 24)


def test_other_files_and_linked_folders_are_not_dropped_without_a_word(tmp_path: Path, capsys: Capture) -> None:
    root = folder(tmp_path / "data")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/far.jpg").write_bytes(encoded(noise(77), "JPEG"))
    (root / "images/linked").symlink_to(tmp_path / "disk", target_is_directory=True)
    (root / "images/round").symlink_to(root / "images", target_is_directory=True)  # leads back: must not loop
    (root / "images/phone.HEIC").write_bytes(b"x")
    (root / "images/other.heic").write_bytes(b"x")
    (root / "images/notes.txt").write_text("x")
    (root / "images/.DS_Store").write_bytes(b"x")
    code, found = check(capsys, root)
    assert code == 0 and found["images"] == 15
    assert any("3 files under images/ take no part" in n and ".heic (2)" in n and ".txt (1)" in n for n in found["notes"])
    code, record, said = run(capsys, root)
    assert code == 0, said
    assert any(".heic (2)" in n for n in record["notes"])


def test_companions_of_macos_dangling_links_and_folders_are_no_pictures(tmp_path: Path, capsys: Capture) -> None:
    root = folder(tmp_path / "data")
    (root / "images/._a0.jpg").write_bytes(b"\0\5\x16\7")
    (root / "images/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "images/a20.jpg").mkdir()
    code, found = check(capsys, root)
    assert code == 1 and problems(found) == {"missing": ["gone"]} and found["images"] == 15
    code, _, said = run(capsys, root)
    assert code == 2 and "'gone'" in said
    listed = table(tmp_path / "listed")
    (listed / "images/a3.jpg").unlink()
    (listed / "images/a3.jpg").mkdir()
    (listed / "images/a4.jpg").unlink()
    (listed / "images/a4.jpg").symlink_to(listed / "images/a4.jpg")
    code, found = check(capsys, listed)
    assert code == 1 and problems(found) == {"missing": ["a3", "a4"]}


def test_sixteen_bits_and_floats_are_scaled_or_refused(tmp_path: Path, capsys: Capture) -> None:
    root = folder(tmp_path / "data")
    ramp = np.linspace(0, 65535, 32 * 24).astype(np.uint16).reshape(24, 32)
    (root / "images/a0.jpg").write_bytes(encoded(Image.fromarray(ramp), "PNG"))
    (root / "images/a1.jpg").write_bytes(encoded(Image.fromarray((ramp / 65535).astype(np.float32)), "TIFF"))
    images = loaded(root).images
    for name in ("a0", "a1"):
        seen = np.asarray(images.open(name))
        assert np.array_equal(seen[..., 0], np.round(ramp / 257)), name
    assert check(capsys, root)[0] == 0
    (root / "images/a2.jpg").write_bytes(encoded(Image.fromarray(ramp.astype(np.float32)), "TIFF"))
    code, found = check(capsys, root)
    assert code == 1 and problems(found) == {"unsupported": ["a2"]}
    code, _, said = run(capsys, root)
    assert code == 2 and "a2.jpg" in said and "mode F" in said and "65535" in said


def test_pictures_are_upright_in_custom_and_raw_in_published_sets(tmp_path: Path, capsys: Capture) -> None:
    root = folder(tmp_path / "data")
    corners = Image.new("RGB", (32, 24))
    corners.paste((255, 255, 255), (0, 0, 16, 12))
    exif = Image.Exif()
    for turn, (x, y) in {6: (18, 6), 3: (24, 18), 8: (6, 24), 2: (24, 6)}.items():
        exif[0x0112] = turn
        (root / "images/a0.jpg").write_bytes(encoded(corners, "JPEG", exif=exif.tobytes()))
        upright, raw = loaded(root).images.open("a0"), loaded(root, upright=False).images.open("a0")
        assert raw.size == (32, 24) and upright.size == ((24, 32) if turn in (6, 8) else (32, 24))
        assert upright.getpixel((x, y))[0] > 200 and raw.getpixel((6, 6))[0] > 200, turn
    notes = check(capsys, root)[1]["notes"]
    assert any(n.startswith("1 pictures carry an EXIF orientation; they are turned upright") for n in notes)
    notes = check(capsys, root, "--set", "data.upright=false")[1]["notes"]
    assert any("read as stored" in n for n in notes)
    # The caches must not mix them up.
    ids = ["a0"]
    assert loaded(root).images.fingerprint(ids) != loaded(root, upright=False).images.fingerprint(ids)
    published = find_dataset("shoes")
    assert published.SPEC.template and not hasattr(published.Knobs(), "upright")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_white_by_default_in_custom(mode: str, tmp_path: Path, capsys: Capture) -> None:
    root = folder(tmp_path / "data")
    if mode == "P":
        image = Image.new("P", (32, 24), 0)
        image.putpalette([0, 0, 0, 200, 10, 10])
    else:
        image = Image.new(mode, (32, 24), 0)
    how: dict[str, Any] = {"P": {"transparency": 0}, "RGB": {"transparency": (0, 0, 0)}}.get(mode, {})
    (root / "images/a0.jpg").write_bytes(encoded(image, "PNG", **how))
    assert loaded(root).images.open("a0").getpixel((5, 5)) == (255, 255, 255)
    assert loaded(root, background="#00ff00").images.open("a0").getpixel((5, 5)) == (0, 255, 0)
    assert loaded(root, background="raw").images.open("a0").getpixel((5, 5)) == (0, 0, 0)
    assert any("transparent colour; they are laid on white" in n for n in check(capsys, root)[1]["notes"])
    code, _, said = run(capsys, root, "--set", "data.background=whit")
    assert code == 2 and "'whit'" in said and "'white'" in said


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n0 0 20 20 rectfill showpage\n%%EOF\n"


def test_postscript_starts_no_interpreter(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "data")
    (root / "images/a2.jpg").write_bytes(POSTSCRIPT)

    def started(*args: Any, **how: Any) -> Any:
        raise AssertionError(f"a program was started: {args}")

    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    code, found = check(capsys, root)
    assert code == 1 and problems(found) == {"unreadable": ["a2"]}
    code, _, said = run(capsys, root)
    assert code == 2 and "not a picture that can be decoded (JPEG, PNG" in said
    assert run(capsys, root, "--allow-missing")[0] == 0


def test_threads_that_decode_leave_the_filters_of_warnings_alone(tmp_path: Path) -> None:
    root = folder(tmp_path / "data")
    palette = Image.new("P", (32, 24))
    palette.putpalette(list(range(48)))
    for n in range(6):
        (root / f"images/a{n}.jpg").write_bytes(encoded(palette, "PNG", transparency=bytes(16)))
    images, before = loaded(root, background="raw").images, warnings.filters[:]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(images.open, [f"a{n % 6}" for n in range(400)]))) == 400
    finally:
        sys.setswitchinterval(switch)
    assert warnings.filters == before


def test_only_one_place_opens_pictures() -> None:
    here = Path(__file__).parents[2]
    places = [
        path.relative_to(here).as_posix() for part in ("cirbench", "methods", "reports") for path in (here / part).rglob("*.py")
        if "Image.open(" in path.read_text(encoding="utf-8")
    ]
    assert places == ["cirbench/data/image_files.py"]


def bare_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pixels = zlib.compress(bytes((width // 8 + 1) * height), 1)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8008, 13_000, 40_000])
def test_a_picture_beyond_the_limit_is_refused_by_one_message(side: int, tmp_path: Path, capsys: Capture) -> None:
    root = folder(tmp_path / "data")
    (root / "images/a2.jpg").write_bytes(bare_png(side, side))
    code, found = check(capsys, root)
    assert code == 1 and problems(found) == {"too-large": ["a2"]}
    code, _, said = run(capsys, root)
    assert code == 2 and "a2.jpg" in said and "more than 64,000,000 pixels" in said and "Scale it down" in said
