"""Transforms against the published rules; decoded pictures and features from the cache against fresh ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import tiny
import torch
import torchvision.transforms.functional as tv

from cirbench.data.batches import Feed, Triplets
from cirbench.data.images import PixelStore, _pad, resized
from cirbench.models.clip import wanted_pixels
from cirbench.models.encoders import Encoders
from cirbench.runs import planning
from cirbench.types import Frozen, Inputs, Pixels


def noise(width: int, height: int) -> PIL.Image.Image:
    rng = np.random.default_rng(width * height)
    return PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(100, 300), (301, 97), (64, 64), (225, 224), (500, 333)])
def test_crop_equals_torchvision(size: tuple[int, int]) -> None:
    image = noise(*size)
    expected = tv.center_crop(tv.resize(image, [224], tv.InterpolationMode.BICUBIC), [224, 224])
    assert np.array_equal(np.asarray(resized(image, 224, "crop")), np.asarray(expected))


@pytest.mark.parametrize("size", [(100, 300), (301, 97), (224, 224)])
@pytest.mark.parametrize(("model", "tag"), [
    ("RN50-quickgelu", "openai"), ("ViT-B-16-SigLIP", "webli"), ("ViT-L-14-CLIPA", "datacomp1b"),
    ("MobileCLIP-B", "datacompdr"),
], ids=["crop bicubic", "squash bicubic", "squash bilinear", "crop bilinear"])
def test_pictures_are_those_that_open_clip_evaluates(model: str, tag: str, size: tuple[int, int]) -> None:
    """Of every pair of cutting and interpolation that a published CLIP was trained with."""
    from open_clip.pretrained import get_pretrained_cfg
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_kwargs

    keys = ("mean", "std", "interpolation", "resize_mode")
    told = {k: v for k, v in get_pretrained_cfg(model, tag).items() if k in keys}
    cfg = PreprocessCfg(**merge_preprocess_kwargs(PreprocessCfg(size=224), **told))
    pixels = wanted_pixels(SimpleNamespace(image_size=224, preprocess_cfg=vars(cfg)))
    expected = image_transform_v2(cfg, is_train=False)(noise(*size))
    ours = np.asarray(resized(noise(*size), pixels.size, pixels.resize, pixels.interpolation), np.float32) / 255
    assert np.allclose((ours - pixels.mean) / pixels.std, expected.permute(1, 2, 0).numpy(), atol=1e-5)


def test_every_published_clip_says_how_pictures_are_cut() -> None:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    for model, tag in open_clip.list_pretrained():
        pixels = wanted_pixels(SimpleNamespace(image_size=(64, 64), preprocess_cfg=get_pretrained_cfg(model, tag)))
        assert resized(noise(30, 40), 64, pixels.resize, pixels.interpolation).size == (64, 64)


@pytest.mark.parametrize("size", [(100, 125), (125, 100), (301, 97), (64, 64), (31, 200), (7, 5)])
@pytest.mark.parametrize("between", ["bicubic", "bilinear"])
def test_pad_equals_open_clip(size: tuple[int, int], between: str) -> None:
    """`longest` of open_clip, which no published tag uses but whose own models may."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    cfg = PreprocessCfg(size=64, interpolation=between, resize_mode="longest")
    expected = image_transform_v2(cfg, is_train=False)(noise(*size)).permute(1, 2, 0).numpy()
    ours = np.asarray(resized(noise(*size), 64, "pad", between), np.float32) / 255
    assert np.allclose((ours - cfg.mean) / cfg.std, expected, atol=1e-5)


def test_target_pad_known_answer() -> None:
    padded = _pad(noise(100, 300), int(300 / 1.25), int(300 / 1.25))
    assert padded.size == (240, 300)


@pytest.mark.parametrize("size", [(100, 300), (300, 100), (240, 300), (250, 300), (64, 64)])
def test_target_pad_equals_its_rule(size: tuple[int, int]) -> None:
    """CLIP4Cir: s = max / 1.25, pad int((s - side) / 2) zeros on both sides where the ratio is 1.25 or more."""
    image = noise(*size)
    expected = image
    if max(size) / min(size) >= 1.25:
        s = max(size) / 1.25
        hp, vp = max(int((s - size[0]) / 2), 0), max(int((s - size[1]) / 2), 0)
        expected = tv.pad(image, [hp, vp, hp, vp])
    expected = tv.center_crop(tv.resize(expected, [56], tv.InterpolationMode.BICUBIC), [56, 56])
    assert np.array_equal(np.asarray(resized(image, 56, "targetpad")), np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    for resize in ("crop", "squash", "pad", "targetpad"):
        assert resized(noise(50, 40).convert(mode if mode != "LA" else "L"), 32, resize).size == (32, 32)


def test_unknown_transform_is_refused() -> None:
    with pytest.raises(ValueError, match="squash"):
        resized(noise(50, 40), 32, "sqush")


class Folder:
    def __init__(self) -> None:
        self.opened = 0

    def open(self, image_id: str) -> PIL.Image.Image:
        self.opened += 1
        return noise(40 + int(image_id), 50)

    def fingerprint(self, image_ids: list[str]) -> str:
        return "fixed"


def test_pictures_are_decoded_once_and_normalised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path))
    source, wanted = Folder(), Pixels(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    ids = [str(n) for n in range(7)]
    x = PixelStore(source, ids, wanted)(["3", "0"], np.array([False, True]))
    assert source.opened == 7
    again = PixelStore(source, ids, wanted)(["3", "0"])
    assert source.opened == 7
    raw = torch.from_numpy(np.array(resized(noise(43, 50), 16, "crop"))).permute(2, 0, 1) / 255
    expected = tv.normalize(raw, wanted.mean, wanted.std)
    assert torch.allclose(x[0], expected, atol=1e-5) and torch.equal(x[0], again[0])
    assert torch.equal(x[1], again[1].flip(-1)), "mirrored"


@pytest.mark.parametrize("flip", ["none", "joint", "independent"])
def test_both_streams_see_the_same_flip(flip: str) -> None:
    """Pixels and cached features of one picture agree about being mirrored, whatever the rule."""
    planned = tiny.plan("dwc")
    dataset = planning.load(planned)
    clip = Encoders().clip("scenes-small")
    inputs = Inputs({"feature": Frozen(clip), "pixels": clip.pixels}, {})
    triplets = Triplets(dataset, "text", 32, flip, 0)
    feed = Feed(dataset, dataset.splits["train"].images(), [], inputs, torch.device("cpu"), mirrored=flip != "none")
    plain = Feed(dataset, dataset.splits["train"].images(), [], inputs, torch.device("cpu"))
    mirrored = {"reference": 0, "target": 0, "both": 0}
    queries = dataset.splits["train"].queries
    for batch in triplets.epoch(0, feed):
        with torch.inference_mode():
            for side in (batch.reference, batch.target):
                assert torch.allclose(clip.encode_images(side["pixels"]), side["feature"], atol=1e-4)
        for row, words in enumerate(batch.words):
            found = [q for q in queries if q.texts[0] == words
                     and any(torch.equal(plain.images([q.reference])["pixels"][0], x)
                             for x in (batch.reference["pixels"][row], batch.reference["pixels"][row].flip(-1)))]
            assert found
            query = found[0]
            flipped = [not torch.equal(plain.images([i])["pixels"][0], x["pixels"][row])
                       for i, x in ((query.reference, batch.reference), (query.targets[0], batch.target))]
            mirrored["reference"] += flipped[0]
            mirrored["target"] += flipped[1]
            mirrored["both"] += flipped[0] == flipped[1]
        break
    if flip == "none":
        assert mirrored["reference"] == mirrored["target"] == 0
    else:
        assert 5 < mirrored["reference"] < 27
        assert (mirrored["both"] == 32) == (flip == "joint")
