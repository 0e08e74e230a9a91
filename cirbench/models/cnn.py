"""CNNs as feature maps: any timm model, or the small one of cirbench (`scenes-cnn`); the last map, or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cirbench.data.images import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from cirbench.models.hub import reason
from cirbench.models.names import PACKAGED_CNN, parse
from cirbench.models.timm_models import check_timm, make_body
from cirbench.models.weights import ASSETS
from cirbench.types import CirbenchError, Pixels

__all__ = ["Cnn", "CnnInfo", "CnnLevels", "LevelsInfo", "check_cnn", "levels_of", "load_cnn"]


def check_cnn(name: str) -> None:
    """Check that the name is a known CNN.

    Raises:
        CirbenchError: unknown name, with the nearest ones.
    """
    if name not in PACKAGED_CNN:
        check_timm(parse(name))


@dataclass(frozen=True)
class CnnInfo:
    """A CNN's feature map: `channels` (C), and the `pixels` it takes as input."""

    channels: int
    pixels: Pixels


class Cnn(nn.Module):
    """A CNN whose output is its last feature map: (B, 3, H, W) -> (B, C, h, w)."""

    def __init__(self, body: nn.Module, info: CnnInfo) -> None:
        super().__init__()
        self.body: Any = body
        self.info = info

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w)."""
        return self.body.forward_features(images.contiguous(memory_format=torch.channels_last))


def load_cnn(name: str, size: int, pretrained: bool = True, statistics: str = "imagenet") -> Cnn:
    """A timm CNN as a feature map, trainable.

    Args:
        name: `scenes-cnn`, or one of the forms of timm_models.py, with or without `timm:`.
        size: input side in pixels.
        pretrained: with the weights of its tag; without, as initialised from torch's seed.
        statistics: `imagenet`, `clip`, or `model` (the model's own), the mean and spread pictures are normalised by.

    Raises:
        CirbenchError: unknown name (with the nearest), no feature map, or weights that cannot be fetched.
    """
    check_cnn(name)
    if name in PACKAGED_CNN:
        import timm
        from safetensors.torch import load_file

        import cirbench.models.small_cnn  # noqa: F401  registers the architecture with timm

        body: Any = timm.create_model("cirbench_smallcnn", num_classes=0)
        if pretrained:
            body.load_state_dict(
                {k: v.float() for k, v in load_file(ASSETS / name / "model.safetensors").items()}
            )
    else:
        try:
            body = make_body(parse(name), pretrained)
        except CirbenchError:
            raise
        except Exception as error:
            raise CirbenchError(
                f"the weights of the CNN {name!r} could not be loaded: {reason(error)} They are fetched once and kept; "
                f"without a connection use {PACKAGED_CNN[0]}, or set cnn_pretrained=false to train it from scratch."
            ) from None
    config = getattr(body, "pretrained_cfg", {}) or {}
    mean, std = {
        "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
        "clip": (CLIP_MEAN, CLIP_STD),
        "model": (tuple(config.get("mean", IMAGENET_MEAN)), tuple(config.get("std", IMAGENET_STD))),
    }[statistics]
    with torch.no_grad():
        was = body.training
        shape = body.eval().forward_features(torch.zeros(1, 3, size, size)).shape
        body.train(was)
    if len(shape) != 4:
        raise CirbenchError(f"{name} returns a tensor of shape {tuple(shape)}, not a feature map. Choose a CNN.")
    body.to(memory_format=torch.channels_last)
    return Cnn(body, CnnInfo(int(shape[1]), Pixels(size, mean, std)))


@dataclass(frozen=True)
class LevelsInfo:
    """Maps of a CNN at several depths.

    Attributes:
        channels: C of each map.
        sizes: (h, w) of each map.
        pixels: the input.
    """

    channels: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    pixels: Pixels


class CnnLevels(nn.Module):
    """A CNN whose outputs are its maps at several depths: (B, 3, H, W) -> ((B, C_1, h_1, w_1), ...).

    Its parameters have the names they have in `Cnn`, as far as there are any: what lies deeper than the deepest of
    these maps is left out.
    """

    def __init__(self, body: nn.Module, levels: Sequence[int], pixels: Pixels) -> None:
        super().__init__()
        self.body: Any = body
        self.levels = tuple(levels)
        with torch.no_grad():
            was = body.training
            body.eval()
            maps = self(torch.zeros(1, 3, pixels.size, pixels.size))
            body.train(was)
        channels, sizes = tuple(int(m.shape[1]) for m in maps), tuple((int(m.shape[2]), int(m.shape[3])) for m in maps)
        self.info = LevelsInfo(channels, sizes, pixels)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> one (B, C, h, w) for each level, in the order they were asked for."""
        # timm gives maps by depth, each once.
        depths = sorted(set(self.levels))
        maps = self.body.forward_intermediates(
            images.contiguous(memory_format=torch.channels_last), indices=depths, stop_early=True, output_fmt="NCHW",
            intermediates_only=True,
        )
        by_depth = dict(zip(depths, maps, strict=True))
        return tuple(by_depth[level] for level in self.levels)


def levels_of(cnn: Cnn, levels: Sequence[int], name: str = "this model") -> CnnLevels:
    """Maps at several depths of a CNN, whose layers are taken over; deeper ones than are needed are dropped from it.

    Args:
        cnn: the whole CNN; not to be used afterwards.
        levels: indices of timm's `feature_info`, from the shallowest, 0; negative ones count from the deepest. Maps are
            as a level ends in timm, so those of a pre-activation network are not normalised, and the last one of a
            network with layers behind its stages (EfficientNet's `conv_head`) is not the map of `Cnn`.
        name: for messages.

    Raises:
        CirbenchError: an unknown level, with the valid ones, or a CNN without levels.
    """
    body = cnn.body
    told = getattr(body, "feature_info", None) or ()
    told = list(getattr(told, "info", told))
    if not told or not hasattr(body, "forward_intermediates") or not hasattr(body, "prune_intermediate_layers"):
        raise CirbenchError(
            f"timm knows no levels of the CNN {name!r} ({type(body).__name__}). Choose another, such as resnet50, or a "
            "newer timm."
        )
    count = len(told)
    unknown = [level for level in levels if not -count <= level < count]
    if unknown or not levels:
        valid = ", ".join(f"{n} ({t['num_chs']} channels, stride {t['reduction']})" for n, t in enumerate(told))
        what = f"has no level {unknown[0]}" if unknown else "is asked for no level"
        raise CirbenchError(f"the CNN {name!r} {what}. Valid: {valid}; or from the end, {-count} to -1.")
    absolute = [level % count for level in levels]
    body.prune_intermediate_layers(sorted(set(absolute)), prune_norm=True, prune_head=True)
    return CnnLevels(body, absolute, cnn.info.pixels)
