"""Crops of GeneCIS's attribute pictures against the released loader's rule, written out slowly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cirbench.datasets.genecis import Pictures
from cirbench.types import CirbenchError


def slow(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """As published: clamp left and top, measure right and bottom from the clamped edges, let PIL round, pad."""
    x, y, w, h = box
    left, top = max(0, x - 0.7 * w), max(0, y - 0.7 * h)
    right, bottom = min(image.width, left + 1.7 * w), min(image.height, top + 1.7 * h)
    cut = image.crop((left, top, right, bottom))
    if cut.width == cut.height:
        return cut
    side = max(cut.size)
    out = Image.new(cut.mode, (side, side), (0, 0, 0))
    out.paste(cut, ((side - cut.width) // 2, 0) if cut.height > cut.width else (0, (side - cut.height) // 2))
    return out


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("genecis")
    (root / "VG_100K_all").mkdir()
    pixels = np.random.default_rng(0).integers(1, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(np.kron(pixels, np.ones((10, 10, 1), np.uint8))).save(root / "VG_100K_all/7.jpg", "PNG")
    return root


def test_known_boxes(picture: Path) -> None:
    images = Pictures(picture)
    assert images.open("7@10,10,100,100").size == (170, 170)
    tall = np.asarray(images.open("7@0,0,50,300"))
    assert tall.shape == (400, 400, 3) and np.flatnonzero(tall.any((0, 2))).tolist() == list(range(157, 157 + 85))


def test_crops_equal_the_released_loader_on_2000_random_boxes(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Image.open(picture / "VG_100K_all/7.jpg").convert("RGB")
    images = Pictures(picture)
    monkeypatch.setattr("cirbench.data.image_files.FolderImages.open", lambda self, image_id: whole.copy())
    rng = np.random.default_rng(1)
    for n in range(2000):
        w, h = rng.integers(1, 500), rng.integers(1, 400)
        x, y = rng.integers(0, 500 - w + 1), rng.integers(0, 400 - h + 1)
        box = (float(x), float(y), float(w), float(h))
        if n % 4 == 0:
            box = (x + 0.5, y + 0.25, w - 0.5, h - 0.25)
        ours = images.open(f"7@{','.join(map(str, box))}")
        expected = slow(whole, box)
        assert ours.size == expected.size and ours.tobytes() == expected.tobytes(), box


def test_a_box_outside_its_picture_is_told(picture: Path) -> None:
    with pytest.raises(CirbenchError, match="600,10,20,20 of picture 7 lies outside it"):
        Pictures(picture).open("7@600,10,20,20")
