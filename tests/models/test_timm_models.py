"""Models of timm as frozen encoders of pictures, and as the CNN of a stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tiny
import tiny_weights
import torch
from commands import exit_code
from tiny_weights import keep, timm_file

from cirbench.data.images import resized
from cirbench.models.clip import check_clip
from cirbench.models.cnn import check_cnn, load_cnn
from cirbench.models.encoders import Encoders
from cirbench.models.timm_models import load_image_encoder, timm_pixels
from cirbench.models.weights import weights_id
from cirbench.runs.building import check_backbones
from cirbench.types import CirbenchError

# --------------------------------------------------------------------------------------------- timm


SMALL_TIMM = ["test_vit", "test_convnext", "test_resnet", "test_efficientnet"]


@pytest.mark.parametrize("name", SMALL_TIMM)
def test_a_timm_model_gives_its_pooled_features(name: str, tmp_path: Path) -> None:
    """With or without a classifier in the file, under a wrapper or not."""
    body = timm_file(tmp_path / "w.safetensors", name)
    encoder = load_image_encoder(f"timm:{name}:{tmp_path / 'w.safetensors'}")
    size = encoder.pixels.size
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = body.forward_head(body.forward_features(x), pre_logits=True)
        got = encoder.encode_images(x)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert got.shape == (2, encoder.dim) and not any(p.requires_grad for p in encoder.parameters()) and not encoder.training


def test_the_file_of_an_original_release_is_converted(tmp_path: Path) -> None:
    """DINOv2's own files hold a mask token that timm's models do not have."""
    body = timm_file(tmp_path / "w.safetensors", "test_vit", num_classes=0)
    torch.save({"model": {**body.state_dict(), "mask_token": torch.zeros(1, 64)}}, tmp_path / "dinov2.pth")
    one, other = (load_image_encoder(f"timm:test_vit:{tmp_path / n}") for n in ("w.safetensors", "dinov2.pth"))
    assert one.key != other.key and all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_dinov2_is_an_image_encoder() -> None:
    """Its structure with random weights, at a smaller side than its own."""
    encoder = load_image_encoder("timm:vit_small_patch14_dinov2.lvd142m:random", image_size=56)
    assert encoder.dim == 384 and encoder.pixels.size == 56 and encoder.pixels.resize == "crop"
    with torch.inference_mode():
        assert encoder.encode_images(torch.zeros(1, 3, 56, 56)).shape == (1, 384)
    with pytest.raises(CirbenchError, match=r"cannot encode pictures of 64 pixels: .* Its own size is 224\."):
        load_image_encoder("timm:mixer_s32_224:random", image_size=64)


@pytest.mark.parametrize("name", ["resnet50.tv_in1k", "vit_base_patch16_224.augreg_in21k", "convnext_tiny.fb_in22k",
                                  "resnet50.a1_in1k", "vit_base_patch16_siglip_224.webli", "regnety_160.swag_ft_in1k"])
def test_timm_pictures_are_prepared_as_timm_does(name: str) -> None:
    """To the byte, on pictures of odd shapes."""
    import timm
    from timm.data import create_transform, resolve_data_config

    told = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    pixels = timm_pixels(name, told, told["input_size"][1])
    transform = create_transform(**told, normalize=False)
    draw = np.random.default_rng(0)
    for width, height in ((300, 517), (641, 480), (224, 224), (100, 125), (33, 31), (256, 256), (400, 90)):
        image = PIL.Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        ours = np.asarray(resized(image, pixels.size, pixels.resize, pixels.interpolation))
        assert np.array_equal(ours, transform(image).permute(1, 2, 0).numpy()), (name, width, height, pixels)


def test_transforms_that_we_do_not_have_are_refused() -> None:
    usual = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0,) * 3, "std": (1,) * 3, "interpolation": "bicubic"}
    for change in ({"input_size": (3, 32, 48)}, {"crop_mode": "border"}):
        with pytest.raises(CirbenchError, match="only square ones"):
            timm_pixels("x", {**usual, **change}, 32)


def test_image_only_ranks_with_a_timm_model(tmp_path: Path) -> None:
    timm_file(tmp_path / "w.safetensors", "test_vit", num_classes=0)
    name = f"timm:test_vit:{tmp_path / 'w.safetensors'}"
    record = tiny.run("image-only", tmp_path / "runs", "zero-shot", method__clip=name, method__clip_size=48, train__epochs=0)
    assert set(record.data["loaded"]) == {name} and record.data["inputs"]["weights"][name].startswith("sha256:")
    told = record.data["preprocessing"]["clip"]
    assert told["size"] == 48 and len(told["mean"]) == 3
    assert exit_code("eval", str(record.folder), "--quiet", "--out", str(tmp_path / "evals")) == 0


@pytest.mark.parametrize(("method", "over"), [
    ("sum", {}), ("dwc", {}), ("combiner", {"method__projection": 8, "method__hidden": 8}), ("text-only", {}),
    ("image-only", {"method__freeze_clip": False}),
])
def test_a_method_that_needs_a_text_tower_refuses_an_image_encoder(method: str, over: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CirbenchError, match="timm:test_vit:random is an image encoder without a text tower"):
        tiny.run(method, tmp_path, method__streams="clip", method__clip="timm:test_vit:random", **over)
    assert not list(tmp_path.iterdir())


def test_the_image_encoder_of_a_method_file(tmp_path: Path) -> None:
    """Any name in any field: checked first, in the id by content, one encoder for one name."""
    encoders = Encoders()
    assert encoders.image("timm:test_vit:random") is encoders.image("timm:test_vit:random")
    assert encoders.image("scenes-small") is encoders.clip("scenes-small")
    with pytest.raises(CirbenchError, match="without a text tower"):
        encoders.image("timm:test_vit:random").encode_texts(["x"])
    with pytest.raises(CirbenchError, match="without a text tower"):
        encoders.clip("timm:test_vit:random")
    with pytest.raises(CirbenchError, match="Did you mean 'test_vit'"):
        check_backbones({"pictures": "timm:test_vitt"})
    path = tmp_path / "w.safetensors"
    timm_file(path, "test_vit")
    with pytest.raises(CirbenchError, match="no field of its Config names"):
        Encoders(declared=[]).image(f"timm:test_vit:{path}")


def test_another_models_file_is_told(tmp_path: Path) -> None:
    timm_file(tmp_path / "w.safetensors", "test_vit2")
    with pytest.raises(CirbenchError, match=r"does not fit: .*(missing|unexpected|another shape)"):
        load_image_encoder(f"timm:test_vit:{tmp_path / 'w.safetensors'}")
    timm_file(tmp_path / "c.safetensors", "test_resnet")
    with pytest.raises(CirbenchError, match=r"does not fit"):
        load_cnn(f"test_convnext:{tmp_path / 'c.safetensors'}", 64)


def test_a_folder_of_timm_and_the_cnn_stream(tmp_path: Path, hub: Path) -> None:
    """timm's own layout, as an image encoder and as the CNN of a stream, from a folder and from the hub's cache."""
    folder = tmp_path / "mine"
    folder.mkdir()
    body = timm_file(folder / "model.safetensors", "test_resnet", num_classes=5)
    told = {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1], "input_size": [3, 64, 64], "crop_pct": 0.8, "interpolation": "bilinear"}
    (folder / "config.json").write_text(json.dumps({
        "architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": {**told, "classifier": "fc", "first_conv": "conv1"},
    }))
    keep(hub, "people/net", folder)
    for name in (f"local-dir:{folder}", "hf-hub:people/net"):
        encoder = load_image_encoder(f"timm:{name}")
        assert encoder.pixels.mean == (0.1, 0.2, 0.3) and encoder.pixels.resize == "crop:80"
        assert encoder.pixels.interpolation == "bilinear" and encoder.pixels.size == 64
        cnn = load_cnn(name, 64, statistics="model")
        assert cnn.info.pixels.mean == (0.1, 0.2, 0.3)
        x = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(cnn.eval()(x), body.forward_features(x), atol=1e-5, rtol=1e-4)
    assert weights_id(f"local-dir:{folder}") == weights_id("timm:hf-hub:people/net")
    with pytest.raises(CirbenchError, match=r"image encoder of timm, without a text tower\. It is named timm:"):
        check_clip(f"local-dir:{folder}")
    with pytest.raises(CirbenchError, match="no model of timm"):
        check_cnn(f"local-dir:{tiny_weights.open_clip_folder(tmp_path / 'clip')}")
