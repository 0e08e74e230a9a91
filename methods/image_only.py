"""Image only: the reference image is the query, the text is not read.

A floor: queries it answers need no text. Same encoders, streams, loss and budget as the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cirbench.models.encoders import Encoders
from cirbench.models.two_stream import Streams, build_streams
from cirbench.settings import SCENES_STREAMS, StreamSettings
from cirbench.types import TrainView


class Config(StreamSettings):
    """Encoders, sizes and rates are DWC's."""


VARIANTS: dict[str, dict[str, Any]] = {
    "clip-only": {"streams": "clip"},
    "cnn-only": {"streams": "cnn"},
    "zero-shot": {"streams": "clip", "project": False, "train.epochs": 0},
}

TRAIN = {"epochs": 50, "batch_size": 32}

#: Rates on `scenes`: the best on `select` of a grid run for every trained method (sweeps/rates.toml).
DATASETS = {"scenes": {**SCENES_STREAMS, "clip_lr": 0.0005, "cnn_lr": 0.001, "dropout": 0.2}}


class Image(nn.Module):
    """(B, D) -> (B, D)."""

    def forward(self, image: Tensor, text: None) -> Tensor:
        """The image."""
        return image


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Streams:
    """See two_stream.py."""
    return build_streams(config, encoders, train, state, lambda name, dim: Image(), uses_text=False)
