"""A CNN's maps at several depths: equal to those of the whole CNN, trainable, with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from cirbench.models.cnn import Cnn, levels_of, load_cnn
from cirbench.models.encoders import Encoders
from cirbench.types import CirbenchError

RANDOM = {"pretrained": False}


def both(name: str, size: int, levels: tuple[int, ...], **options: Any) -> tuple[Any, Any]:
    """The whole CNN, and its levels, from the same seed."""
    torch.manual_seed(3)
    whole = Encoders().cnn(name, size, **options)
    torch.manual_seed(3)
    return whole, Encoders().cnn_levels(name, size, levels, **options)


@pytest.mark.parametrize(("name", "size", "options"), [
    ("resnet18", 64, RANDOM), ("resnet50", 64, RANDOM), ("scenes-cnn", 48, {}), ("scenes-cnn", 48, RANDOM),
])
def test_the_last_level_is_the_map_of_the_cnn(name: str, size: int, options: Any) -> None:
    whole, levels = both(name, size, (-1,), **options)
    assert levels.state_dict().keys() == whole.state_dict().keys()
    for key, value in whole.state_dict().items():
        assert torch.equal(levels.state_dict()[key], value), key
    assert levels.info.channels == (whole.info.channels,) and levels.info.pixels == whole.info.pixels
    x = torch.randn(4, 3, size, size)
    for training in (True, False):
        (last,) = levels.train(training)(x)
        assert torch.equal(last, whole.train(training)(x))
    # Batch statistics moved alike.
    assert all(torch.equal(levels.state_dict()[k], v) for k, v in whole.state_dict().items())


@pytest.mark.parametrize(("name", "size"), [
    ("resnet10t", 64), ("scenes-cnn", 48), ("test_efficientnet", 64), ("test_convnext", 64), ("resnetv2_18", 64),
])
def test_levels_are_the_outputs_of_the_layers_that_timm_names(name: str, size: int) -> None:
    """Slow: a hook on the module of every level."""
    whole, levels = both(name, size, (0, 1, 2, 3), pretrained=False)
    named, seen = dict(whole.body.named_modules()), list[torch.Tensor]()
    told = getattr(whole.body.feature_info, "info", whole.body.feature_info)
    for level in told[:4]:
        named[level["module"]].register_forward_hook(lambda module, given, made: seen.append(made))
    x = torch.randn(2, 3, size, size)
    whole.eval()(x)
    maps = levels.eval()(x)
    assert len(maps) == len(seen) == 4 and all(torch.equal(a, b) for a, b in zip(maps, seen, strict=True))
    assert levels.info.channels == tuple(level["num_chs"] for level in told[:4])
    assert levels.info.sizes == tuple((m.shape[2], m.shape[3]) for m in maps)
    assert levels.info.sizes == tuple((size // level["reduction"],) * 2 for level in told[:4])


def test_the_small_cnn_at_48_pixels() -> None:
    levels = Encoders().cnn_levels("scenes-cnn", 48, (0, 1, 2, 3))
    assert levels.info.channels == (24, 32, 64, 96) and levels.info.sizes == ((24, 24), (12, 12), (6, 6), (6, 6))
    x = torch.randn(2, 3, 48, 48)
    maps = levels.eval()(x)
    assert [tuple(m.shape) for m in maps] == [(2, 24, 24, 24), (2, 32, 12, 12), (2, 64, 6, 6), (2, 96, 6, 6)]
    # As timm's own extraction gives them.
    theirs = timm.create_model("cirbench_smallcnn", features_only=True).eval()
    theirs.load_state_dict({k.removeprefix("body."): v for k, v in levels.state_dict().items()})
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(maps, theirs(x), strict=True))


def test_the_small_cnn_has_timms_interface() -> None:
    body: Any = load_cnn("scenes-cnn", 48).body.eval()
    x = torch.randn(1, 3, 48, 48)
    final, maps = body.forward_intermediates(x)
    assert torch.equal(final, body.forward_features(x)) and [m.shape[1] for m in maps] == [24, 32, 64, 96]
    assert [m.shape[1] for m in body.forward_intermediates(x, indices=2, intermediates_only=True)] == [64, 96]
    early, maps = body.forward_intermediates(x, indices=[-3], stop_early=True)
    assert torch.equal(early, maps[0]) and early.shape[1] == 32
    with pytest.raises(ValueError, match="NCHW"):
        body.forward_intermediates(x, output_fmt="NLC")
    assert body.prune_intermediate_layers([0, -3]) == [0, 1] and body.num_features == 32
    assert not any(n.startswith(("stage2", "stage3")) for n in body.state_dict())
    assert torch.equal(body(x), early), "what is left can be called"


def test_levels_come_in_the_order_they_are_asked_for() -> None:
    levels = Encoders().cnn_levels("scenes-cnn", 48, (-1, 1, -3, 2)).eval()
    straight = Encoders().cnn_levels("scenes-cnn", 48, (1, 2, 3)).eval()
    x = torch.randn(2, 3, 48, 48)
    a, b, c = straight(x)
    assert all(torch.equal(one, two) for one, two in zip(levels(x), (c, a, a, b), strict=True))
    assert levels.info.channels == (96, 32, 32, 64) and straight.info.channels == (32, 64, 96)


@pytest.mark.parametrize(("name", "size", "levels"), [
    ("resnet10t", 64, (1, 2)), ("resnet10t", 64, (2, 3, 4)), ("scenes-cnn", 48, (1, 2)), ("scenes-cnn", 48, (1, 2, 3)),
    ("test_efficientnet", 64, (2, 3, 4)), ("resnetv2_18", 64, (2, 3, 4)),
])
def test_every_parameter_is_trained(name: str, size: int, levels: tuple[int, ...]) -> None:
    """Layers behind the deepest level would never move, and their decay would still cost time."""
    whole, made = both(name, size, levels, pretrained=False)
    known = whole.state_dict()
    assert all(torch.equal(known[key], value) for key, value in made.state_dict().items())
    sum(m.square().mean() for m in made.train()(torch.randn(4, 3, size, size))).backward()
    assert [n for n, p in made.named_parameters() if p.grad is None] == []


def test_training_and_evaluation_differ_by_batch_statistics() -> None:
    levels = Encoders().cnn_levels("scenes-cnn", 48, (1, 3))
    assert levels.training
    before = {k: v.clone() for k, v in levels.state_dict().items() if "running" in k}
    x = torch.randn(4, 3, 48, 48)
    trained = levels(x)
    assert all(not torch.equal(v, levels.state_dict()[k]) for k, v in before.items())
    evaluated = levels.eval()(x)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(trained, evaluated, strict=True))
    one = levels(x[:1])
    assert all(torch.allclose(a[:1], b, atol=1e-5) for a, b in zip(evaluated, one, strict=True))
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in evaluated)


def test_weights_are_those_of_the_cnn_wherever_they_lie(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = timm.create_model("resnet10t", num_classes=0).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    name = f"resnet10t:{tmp_path / 'w.safetensors'}"
    one, two = Encoders(), Encoders()
    one.cnn(name, 64)
    levels = two.cnn_levels(name, 64, (1, 2), statistics="model")
    assert one.loaded == two.loaded and list(two.loaded) == [name], "the file's tensors, whatever levels are read"
    assert all(torch.equal(state[k.removeprefix("body.")], v) for k, v in levels.state_dict().items())
    assert levels.info.pixels == load_cnn(name, 64, statistics="model").info.pixels
    with pytest.raises(CirbenchError, match="no field of its Config names"):
        Encoders(declared=[]).cnn_levels(name, 64, (1,))
    assert not Encoders().loaded and Encoders().cnn_levels("resnet10t", 64, (1,), pretrained=False).levels == (1,)


@pytest.mark.parametrize(("levels", "said"), [
    ((1, 4), r"'scenes-cnn' has no level 4\. Valid: 0 \(24 channels, stride 2\), 1 \(32 channels, stride 4\), 2 \(64 channels, "
     r"stride 8\), 3 \(96 channels, stride 8\); or from the end, -4 to -1\."),
    ((-5,), "has no level -5"), ((), "is asked for no level"),
])
def test_levels_that_are_not_there(levels: tuple[int, ...], said: str) -> None:
    with pytest.raises(CirbenchError, match=said):
        Encoders().cnn_levels("scenes-cnn", 48, levels)


def test_a_network_whose_levels_timm_does_not_know() -> None:
    known = load_cnn("scenes-cnn", 48)
    with pytest.raises(CirbenchError, match=r"knows no levels of the CNN 'mine' \(Sequential\)\. Choose another"):
        levels_of(Cnn(nn.Sequential(nn.Conv2d(3, 4, 3)), known.info), (0,), "mine")
