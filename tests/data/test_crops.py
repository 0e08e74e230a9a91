"""Cuts of training pictures against slow loops over single pictures, and what is not cut."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tiny
import torch
import torchvision.transforms.functional as tv

from cirbench.data import images
from cirbench.data.batches import Feed, Triplets
from cirbench.data.crops import TRIES, Crops, check_crop, crop_note, drawn, middle
from cirbench.data.features import FeatureStore
from cirbench.data.images import PixelStore, resized
from cirbench.models.encoders import Encoders
from cirbench.runs import planning
from cirbench.types import CirbenchError, Dataset, Frozen, Inputs, Pixels

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
IDS = [str(n) for n in range(9)]


def noise(width: int, height: int) -> PIL.Image.Image:
    rng = np.random.default_rng(width * height)
    return PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


class Folder:
    def open(self, image_id: str) -> PIL.Image.Image:
        return noise(40 + int(image_id), 50)

    def fingerprint(self, image_ids: list[str]) -> str:
        return "fixed"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path))
    return tmp_path


def normalised(image: PIL.Image.Image) -> torch.Tensor:
    return tv.normalize(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, MEAN, STD)


def some(kind: str, count: int = 9, seed: int = 0, scale: tuple[float, float] = (0.75, 1.33)) -> Crops:
    return Crops(kind, np.random.default_rng(seed).random((count, TRIES, 4)), scale)


# ------------------------------------------------------------------------------------------------- slow loops


@pytest.mark.parametrize(("stored", "size"), [(24, 16), (17, 16), (16, 16)])
def test_random_is_a_window_somewhere(stored: int, size: int) -> None:
    crops, store = some("random"), PixelStore(Folder(), IDS, Pixels(size, MEAN, STD, stored=stored))
    found = store(IDS, None, crops)
    for n, image_id in enumerate(IDS):
        picture = resized(Folder().open(image_id), stored, "crop")
        top, left = (int(u * (stored - size + 1)) for u in crops.draws[n, 0, 2:])
        expected = normalised(picture.crop((left, top, left + size, top + size)))
        assert torch.allclose(found[n], expected, atol=1e-5), n


def slow_box(draws: np.ndarray, side: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params, with these uniform numbers for its own; fit before rounding."""
    for share, aspect, up, across in draws:
        area = side * side * (scale[0] + (scale[1] - scale[0]) * share)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * aspect)
        exact = math.sqrt(area * ratio), math.sqrt(area / ratio)
        width, height = (max(1, round(x)) for x in exact)
        if max(exact) <= side:
            return int(up * (side - height + 1)), int(across * (side - width + 1)), height, width
    return 0, 0, side, side


@pytest.mark.parametrize("scale", [(0.75, 1.33), (0.08, 1.0), (1.2, 1.3), (1e-6, 2e-6), (1.0, 1.0)], ids=str)
@pytest.mark.parametrize("between", ["bicubic", "bilinear"])
def test_resized_is_a_share_of_the_area(scale: tuple[float, float], between: str) -> None:
    crops = some("resized", scale=scale)
    for stored in (None, 24):
        wanted = Pixels(16, MEAN, STD, interpolation=between, stored=stored)
        found = PixelStore(Folder(), IDS, wanted)(IDS, None, crops)
        assert found.shape == (9, 3, 16, 16)
        for n, image_id in enumerate(IDS):
            picture = resized(Folder().open(image_id), wanted.side, "crop", between)
            top, left, height, width = slow_box(crops.draws[n], wanted.side, scale)
            how = tv.InterpolationMode(between)
            expected = normalised(tv.resized_crop(picture, top, left, height, width, [16, 16], how))
            assert torch.allclose(found[n], expected, atol=1e-5), (stored, n)


def test_boxes_lie_inside_and_have_every_place_and_the_wanted_area() -> None:
    boxes = some("random", 4000).boxes(20, 17)
    assert {tuple(b) for b in boxes[:, :2].tolist()} == {(t, c) for t in range(4) for c in range(4)}
    assert (boxes[:, 2:] == 17).all()
    boxes = some("resized", 4000, scale=(0.25, 0.5)).boxes(256, 224)
    assert (boxes >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 256).all()
    share, ratio = boxes[:, 2] * boxes[:, 3] / 256**2, boxes[:, 3] / boxes[:, 2]
    assert share.min() > 0.245 and share.max() < 0.505 and share.mean() == pytest.approx(0.375, abs=0.01)
    assert ratio.min() > 0.74 and ratio.max() < 1.35 and np.log(ratio).mean() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("kind", ["random", "resized"])
def test_what_is_cut_is_mirrored_afterwards(kind: str) -> None:
    crops, flip = some(kind), np.arange(9) % 2 == 0
    store = PixelStore(Folder(), IDS, Pixels(16, MEAN, STD, stored=24))
    plain, both = store(IDS, None, crops), store(IDS, flip, crops)
    for n in range(9):
        assert torch.equal(both[n], plain[n].flip(-1) if flip[n] else plain[n])
    again = store(IDS, None, crops)
    assert torch.equal(again, plain), "a flip does not change what is stored"


# -------------------------------------------------------------------------------------------- in evaluation


@pytest.mark.parametrize(("stored", "size"), [(24, 16), (21, 16), (19, 16)])
def test_evaluation_reads_the_centre(stored: int, size: int) -> None:
    store = PixelStore(Folder(), IDS, Pixels(size, MEAN, STD, "squash", stored=stored))
    flip = np.arange(9) < 3
    found = store(IDS, flip)
    for n, image_id in enumerate(IDS):
        expected = normalised(tv.center_crop(tv.resize(Folder().open(image_id), [stored, stored],
                                                       tv.InterpolationMode.BICUBIC), [size, size]))
        assert torch.allclose(found[n], expected.flip(-1) if flip[n] else expected, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last), "as pictures that are not cut"


def test_frozen_features_are_those_of_the_centre() -> None:
    clip = Encoders().clip("scenes-small")
    size, whole = clip.pixels.size, clip.pixels
    plain = FeatureStore(clip, Folder(), IDS)(IDS)
    clip.pixels = Pixels(size, whole.mean, whole.std, whole.resize, whole.interpolation, stored=size + 8)
    try:
        found = FeatureStore(clip, Folder(), IDS)(IDS)
        with torch.inference_mode():
            expected = clip.encode_images(PixelStore(Folder(), IDS, clip.pixels)(IDS))
    finally:
        clip.pixels = whole
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, plain, atol=1e-3)


# ------------------------------------------------------------------------------------------- white padding


@pytest.mark.parametrize("size", [(100, 300), (300, 100), (64, 64), (31, 200)])
def test_padding_can_be_white(size: tuple[int, int]) -> None:
    """A white picture padded white has no edge; zero padding of the negative is its negative."""
    white = PIL.Image.new("RGB", size, (255, 255, 255))
    for resize in ("pad", "targetpad"):
        assert np.asarray(resized(white, 56, resize, pad="white")).min() == 255
        assert (np.asarray(resized(white, 56, resize)).min() == 0) == (max(size) / min(size) >= 1.25)
        picture = noise(*size)
        negative = PIL.Image.fromarray(255 - np.asarray(picture))
        one, two = (np.asarray(resized(p, 56, resize, pad=c), np.int64)
                    for p, c in ((picture, "white"), (negative, "zero")))
        assert np.abs(one + two - 255).max() <= 2, "up to rounding"


# ------------------------------------------------------------------------------------------------- keys


def test_keys_of_caches_are_as_they_were(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list] = []
    real = images.digest
    monkeypatch.setattr(images, "digest", lambda value: seen.append(value) or real(value))
    for wanted in (Pixels(16, MEAN, STD), Pixels(16, MEAN, STD, stored=16), Pixels(12, MEAN, STD, stored=16)):
        PixelStore(Folder(), IDS, wanted)
    assert seen[0] == seen[1] == seen[2] and seen[0][2:5] == [16, "crop", "bicubic"] and len(seen[0]) == 7
    assert len(list((cache / "pixels").glob("*.npy"))) == 1, "one file of one size"
    PixelStore(Folder(), IDS, Pixels(16, MEAN, STD, "pad"))
    PixelStore(Folder(), IDS, Pixels(16, MEAN, STD, "pad", pad="white"))
    assert len(list((cache / "pixels").glob("*.npy"))) == 3


def test_pictures_are_kept_as_bytes_of_the_stored_side() -> None:
    store = PixelStore(Folder(), IDS, Pixels(16, MEAN, STD, stored=24))
    assert store.bytes.shape == (9, 24, 24, 3) and store.bytes.dtype == np.uint8 and isinstance(store.bytes, np.memmap)


def test_the_name_of_a_transform_is_what_it_was() -> None:
    """Keys of cached features hold it."""
    old = "Pixels(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize='crop', interpolation='bicubic'"
    assert repr(Pixels(16, MEAN, STD)) == f"{old})"
    assert repr(Pixels(16, MEAN, STD, stored=24)) == f"{old}, stored=24)"
    assert repr(Pixels(16, MEAN, STD, pad="white")) == f"{old}, pad='white')"


# ------------------------------------------------------------------------------------------- in training


def fed(dataset: Dataset, inputs: Inputs, mirrored: bool = False) -> Feed:
    return Feed(dataset, dataset.splits["train"].images(), [], inputs, torch.device("cpu"), mirrored=mirrored)


@pytest.mark.parametrize("flip", ["none", "joint", "independent"])
@pytest.mark.parametrize("kind", ["random", "resized"])
def test_batches_are_cut_by_seed_epoch_and_step(kind: str, flip: str) -> None:
    dataset = planning.load(tiny.plan("dwc"))
    clip, big = Encoders().clip("scenes-small"), Pixels(32, MEAN, STD, stored=48)
    inputs = Inputs({"feature": Frozen(clip), "big": big, "bigger": Pixels(64, MEAN, STD, stored=96)})
    feed, whole = fed(dataset, inputs, flip != "none"), fed(dataset, Inputs({"feature": Frozen(clip)}), flip != "none")

    def batches(seed: int, epoch: int, skip: int = 0, crop: str = kind) -> list:
        return list(Triplets(dataset, "text", 32, flip, seed, crop).epoch(epoch, feed, skip))

    first = batches(0, 1)
    assert len(first) == 3
    for one, two in zip(first[1:], batches(0, 1, 1), strict=True):
        assert one.words == two.words
        for side in ("reference", "target"):
            assert all(torch.equal(getattr(one, side)[n], getattr(two, side)[n]) for n in ("feature", "big", "bigger"))
    for other in (batches(0, 2), batches(1, 1)):
        assert not torch.equal(first[0].reference["big"], other[0].reference["big"])
    # The rest is what it was: the order, the texts, the flips, and frozen features, which are of whole pictures.
    plain = list(Triplets(dataset, "text", 32, flip, 0).epoch(1, whole))
    for one, two in zip(first, plain, strict=True):
        assert one.words == two.words
        assert torch.equal(one.reference["feature"], two.reference["feature"])
        assert torch.equal(one.target["feature"], two.target["feature"])
    # By hand, of the draws of one step.
    cuts = drawn(kind, (0.75, 1.33), 0, 1, 2, 32)
    assert cuts[0] is not None and cuts[1] is not None
    assert not np.array_equal(cuts[0].boxes(48, 32), cuts[1].boxes(48, 32)), "each picture by itself"
    store = PixelStore(dataset.images, dataset.splits["train"].images(), big)
    names = {q.texts[0]: q for q in dataset.splits["train"].queries}
    uncut = batches(0, 1, 2, "none")[0]
    for side, cut, pick in (("reference", cuts[0], lambda q: q.reference), ("target", cuts[1], lambda q: q.targets[0])):
        ids = [pick(names[w]) for w in first[2].words]
        centre = store(ids)
        known = [n for n in range(32) if any(torch.equal(getattr(uncut, side)["big"][n], x)
                                             for x in (centre[n], centre[n].flip(-1)))]
        assert len(known) > 20, "the others have a text that occurs twice"
        mirrored = np.array([not torch.equal(getattr(uncut, side)["big"][n], centre[n]) for n in range(32)])
        expected = store(ids, mirrored, cut)
        assert all(torch.equal(getattr(first[2], side)["big"][n], expected[n]) for n in known)


def test_inputs_of_one_picture_are_cut_at_one_place() -> None:
    """Up to a pixel: boxes are fractions of the side."""
    for kind in ("random", "resized"):
        small, large = some(kind).boxes(48, 32), some(kind).boxes(480, 320)
        assert np.abs(small * 10 - large).max() <= 15


@pytest.mark.parametrize(("kind", "images_", "said"), [
    ("random", {"p": Pixels(32, MEAN, STD)}, r"p: 32 pixels.*stored=S.*S > size.*resized or none"),
    ("random", {"p": Pixels(32, MEAN, STD, stored=32)}, "no larger picture"),
    ("random", {}, "frozen features \\(of no picture\\)"), ("resized", {}, "train.crop=none"),
])
def test_a_crop_that_would_change_nothing_is_refused(kind: str, images_: dict, said: str) -> None:
    with pytest.raises(CirbenchError, match=said):
        check_crop(kind, Inputs(images_))


def test_a_crop_that_has_room_is_not() -> None:
    roomy = {"a": Pixels(32, MEAN, STD), "b": Pixels(32, MEAN, STD, stored=33)}
    check_crop("random", Inputs(roomy))
    check_crop("resized", Inputs({"a": Pixels(32, MEAN, STD)}))
    check_crop("none", Inputs())
    assert crop_note("random", Inputs(roomy)) == ""


def test_the_middle_is_torchvisions() -> None:
    for side in range(16, 40):
        row = torch.arange(side).expand(1, side, side)
        assert int(tv.center_crop(row, [16, 16])[0, 0, 0]) == middle(side, 16)
