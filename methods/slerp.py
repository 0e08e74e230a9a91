"""Slerp, training-free: the query lies on the arc from the image vector to the text vector, `alpha` of the way.

Jang et al., ECCV 2024 (arXiv 2405.00571). With unit x and t at an angle of theta,

    q = (sin((1 - alpha) theta) x + sin(alpha theta) t) / sin(theta),

and the chord n(x + alpha (t - x)) where |x . t| > `near`. Every point of the arc has unit length; at alpha = 0.5 it is
n(x + t), so `slerp` then ranks as `sum zero-shot` does. `projected` trains projections of both, as the floors do.

Differences from the authors' code, a function of two vectors and a number:
- which of them is the image is not said: alpha is the share of the text here;
- x . t is kept `margin` away from 1 and -1 before the arc cosine | not at all, so the branch that is not taken gives
  NaN gradients (`as-released`; equal rankings, since nothing is trained);
- vectors are scaled to unit length first | assumed to have it; equal and opposite vectors at alpha = 0.5 give 0 | NaN;
- alpha 0.5, encoders, input sizes and texts are ours: the release has none of them. `cirbench sweep zero-shot` varies
  alpha;
- no TAT, their tuning of the image tower: neither code nor its settings are released.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cirbench.models.encoders import Encoders
from cirbench.models.layers import l2norm
from cirbench.models.two_stream import Streams, build_streams
from cirbench.settings import SCENES_STREAMS, Field, StreamSettings
from cirbench.types import TrainView


class Config(StreamSettings):
    """How far along the arc; encoders and sizes are DWC's."""

    streams: Literal["both", "clip", "cnn"] = Field("clip", description="which streams are ranked with")
    project: bool = Field(False, description="learn projections of CLIP's features; false uses them as they are")
    alpha: float = Field(0.5, ge=0, le=1, description="0 is the image, 1 the text, the angle between in proportion")
    near: float = Field(0.9995, gt=0, le=1, description="beyond this |cosine| of image and text the chord is taken")
    margin: float = Field(1e-7, ge=0, lt=0.1, description="cosines are kept this far from 1 and -1; 0 for not at all")


VARIANTS: dict[str, dict[str, Any]] = {
    "as-released": {"margin": 0.0},
    "projected": {"project": True, "train.epochs": 50},
}

TRAIN = {"epochs": 0, "batch_size": 32}

DATASETS = {
    "scenes": {**SCENES_STREAMS, "dropout": 0.2, "train.epochs": 0},
    # The rate that the grid of sweeps/rates.toml found for `sum`, which this is at alpha = 0.5.
    "scenes/projected": {"clip_lr": 0.004, "train.epochs": SCENES_STREAMS["train.epochs"]},
}

TUNE = {"alpha": {"low": 0.0, "high": 1.0}}


class Slerp(nn.Module):
    """(B, D), (B, D) -> (B, D), of unit length."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """The point `alpha` of the way from image to text."""
        alpha, bound = self.config.alpha, 1 - self.config.margin
        image, text = l2norm(image), l2norm(text)
        cosine = (image * text).sum(1, keepdim=True)
        theta = (cosine.clamp(-bound, bound) if self.config.margin else cosine).acos()
        arc = (((1 - alpha) * theta).sin() * image + (alpha * theta).sin() * text) / theta.sin()
        chord = image + alpha * (text - image)
        return l2norm(torch.where(cosine.abs() > self.config.near, chord, arc))


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Streams:
    """See two_stream.py."""
    return build_streams(config, encoders, train, state, lambda name, dim: Slerp(config))
