"""Encoders by name; features from the cache; the LSTM's vocabulary."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from cirbench.data.features import FeatureStore, TextStore
from cirbench.data.images import PixelStore
from cirbench.models import weights
from cirbench.models.clip import load_clip
from cirbench.models.cnn import load_cnn
from cirbench.models.encoders import Encoders
from cirbench.models.lstm_text import LstmText, build_vocabulary, split_words
from cirbench.runs import planning
from cirbench.types import CirbenchError


def test_vocabulary_is_in_file_order_behind_the_special_words() -> None:
    assert build_vocabulary(["Red, SHOE!", "a red Heel"]) == ["<UNK>", "<AND>", "<BOS>", "<EOS>", "red", "shoe", "a", "heel"]
    assert split_words("<BOS> ombré t-shirt <EOS>") == ["bos", "ombr", "tshirt", "eos"]


def test_unknown_words_and_empty_texts_have_states() -> None:
    text = LstmText(build_vocabulary(["red shoe"]), 4, 6)
    states, mask = text(["", "never seen", "red"])
    assert states.shape == (3, 2, 6) and mask.sum(1).tolist() == [1, 2, 1]
    assert torch.allclose(states[0, 0], states[1, 0]), "an empty text is one unknown word"


@pytest.mark.parametrize("name", weights.PACKAGED)
def test_packaged_clips_load_and_agree_with_themselves(name: str) -> None:
    a, b = load_clip(name), load_clip(name)
    images, texts = torch.randn(3, 3, 48, 48), ["a red circle", "unknown words here", "put a small blue ring"]
    assert torch.equal(a.encode_images(images), b.encode_images(images))
    assert torch.equal(a.encode_texts(texts), b.encode_texts(texts))
    assert a.encode_images(images).shape == a.encode_texts(texts).shape == (3, a.dim)
    assert not any(p.requires_grad for p in a.parameters()) and not a.training
    assert any(p.requires_grad for p in load_clip(name, frozen=False).parameters())


def test_the_package_stays_small() -> None:
    total = sum(p.stat().st_size for p in weights.ASSETS.rglob("*") if p.is_file())
    assert total <= 4.2e6


def test_open_clip_by_name_with_random_weights() -> None:
    a, b = load_clip("RN50-quickgelu:random", image_size=64), load_clip("RN50-quickgelu:random", image_size=64)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert a.encode_images(x).shape == a.encode_texts(["a", "b"]).shape == (2, 1024) and a.pixels.size == 64
        assert torch.equal(a.encode_images(x), b.encode_images(x)), "random weights come from the seed"
    assert a.key == b.key != load_clip("RN50-quickgelu:random", seed=1, image_size=64).key
    assert "QuickGELU" in str(a.model)


@pytest.mark.parametrize("load", [
    lambda: load_clip("RN50-quickgelu:openai"), lambda: load_cnn("resnet18.tv_in1k", 64),
], ids=["clip", "cnn"])
def test_weights_that_cannot_be_fetched_are_told(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, in one message, without the log of the library that tried."""
    import socket

    from huggingface_hub import constants

    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("no such host")

    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    waits = list[float]()
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(CirbenchError, match=r"could not be loaded: .*without a connection use .*scenes-"):
        load()
    assert not waits, "nobody waits for a host that cannot be found"
    assert not caplog.records and not constants.HF_HUB_OFFLINE


def test_any_timm_cnn_gives_a_map() -> None:
    cnn = load_cnn("resnet10t", 64, pretrained=False)
    assert cnn(torch.zeros(2, 3, 64, 64)).shape == (2, cnn.info.channels, 2, 2)
    assert load_cnn("scenes-cnn", 48)(torch.zeros(1, 3, 48, 48)).shape[2:] == (6, 6)
    with pytest.raises(CirbenchError, match="not a feature map"):
        load_cnn("vit_tiny_patch16_224", 224, pretrained=False)


def test_features_from_the_cache_equal_fresh_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path))
    dataset = planning.load(tiny.plan("dwc"))
    ids = dataset.splits["report"].images()
    clip = load_clip("scenes-small")
    first = FeatureStore(clip, dataset.images, ids, mirrored=True)
    monkeypatch.setattr(type(clip), "encode_images", lambda *a: pytest.fail("computed again"))
    again = FeatureStore(clip, dataset.images, ids, mirrored=True)
    monkeypatch.undo()
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path))
    assert torch.equal(first(ids[:9]), again(ids[:9]))
    pixels = PixelStore(dataset.images, ids, clip.pixels)
    flip = np.arange(9) % 2 == 0
    with torch.inference_mode():
        assert torch.allclose(again(ids[:9], flip), clip.encode_images(pixels(ids[:9], flip)), atol=1e-5)
    texts = ["a red circle", "put it left", "a red circle"]
    with torch.inference_mode():
        assert torch.allclose(TextStore(clip, texts)(texts), clip.encode_texts(texts), atol=1e-6)


def test_workers_with_an_empty_cache_make_features_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path))
    dataset, clip, calls = planning.load(tiny.plan("dwc")), load_clip("scenes-small"), list[str]()
    ids, texts = dataset.splits["report"].images(), ["a red circle", "put it left"]
    images_of, texts_of = type(clip).encode_images, type(clip).encode_texts

    def slow(name: str, real: Any) -> Any:
        def encode(self: Any, batch: Any) -> torch.Tensor:
            calls.append(name)
            time.sleep(0.3)
            return real(self, batch)
        return encode

    monkeypatch.setattr(type(clip), "encode_images", slow("image", images_of))
    monkeypatch.setattr(type(clip), "encode_texts", slow("text", texts_of))
    # The lock is of the file, so threads stand for processes.
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda _: (FeatureStore(clip, dataset.images, ids), TextStore(clip, texts)), range(3)))
    assert sorted(calls) == ["image"] * -(-len(ids) // 256) + ["text"]
    assert all(torch.equal(s(ids), stores[0][0](ids)) and torch.equal(t(texts), stores[0][1](texts)) for s, t in stores)
    assert not list(tmp_path.rglob("*.lock")), "nothing is left lying about"


def test_another_picture_set_or_clip_has_features_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path))
    dataset, other = planning.load(tiny.plan("dwc")), planning.load(tiny.plan("dwc", data__data_seed=1))
    for name in weights.PACKAGED:
        for data in (dataset, other):
            FeatureStore(load_clip(name), data.images, data.splits["report"].images()[:5])
    assert len(list((tmp_path / "features").glob("*.npy"))) == 4


@pytest.mark.parametrize("what", ["get_num_threads", "backends.cpu.get_cpu_capability"])
def test_features_that_another_processor_rounds_otherwise_are_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    monkeypatch.setenv("CIRBENCH_CACHE", str(tmp_path))
    clip, texts = load_clip("scenes-small"), ["a red circle"]
    TextStore(clip, texts)
    TextStore(clip, texts)
    assert len(list((tmp_path / "features").glob("*.npy"))) == 1
    # As on a machine that has three threads, or another instruction set.
    monkeypatch.setattr(f"torch.{what}", lambda: 3)
    TextStore(clip, texts)
    assert len(list((tmp_path / "features").glob("*.npy"))) == 2


@pytest.mark.parametrize("file", ["vocab.txt", "model.safetensors", "clip.json"])
def test_every_file_of_a_clip_identifies_it(tmp_path: Path, file: str) -> None:
    shutil.copytree(weights.ASSETS / "scenes-small", tmp_path / "mine")
    before = weights.weights_id(str(tmp_path / "mine"))
    assert before == weights.weights_id("scenes-small"), "its contents, not its name"
    with (tmp_path / "mine" / file).open("ab") as changed:
        changed.write(b" ")
    assert weights.weights_id(str(tmp_path / "mine")) != before


def test_a_frozen_clip_is_shared() -> None:
    made = Encoders()
    assert made.clip("scenes-small") is made.clip("scenes-small")
    assert made.clip("scenes-small", frozen=False) is not made.clip("scenes-small", frozen=False)
