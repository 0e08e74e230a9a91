"""CNNs as feature maps: any timm model, or the small one of cirbench (`scenes-cnn`)."""

from __future__ import annotations

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

__all__ = ["Cnn", "CnnInfo", "check_cnn", "load_cnn"]


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


