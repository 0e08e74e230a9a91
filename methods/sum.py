"""Sum, the parameter-free composition: q = l2norm(image + text) (CLIP4Cir's `sum`, ARTEMIS' late fusion).

The floor that every learned composition has to beat, over the same encoders, streams, loss and budget. What is learned
are the projections alone; `zero-shot` learns nothing. With `freeze_clip=false` and `project=false` it is CLIP4Cir's
first stage (Baldrati et al., 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cirbench.encoders import Encoders
from cirbench.settings import SCENES_STREAMS, StreamSettings
from cirbench.streams import Streams, build_streams
from cirbench.types import TrainView


class Config(StreamSettings):
    """Encoders, sizes and rates are DWC's."""


VARIANTS: dict[str, dict[str, Any]] = {
    "clip-only": {"streams": "clip"},
    "cnn-only": {"streams": "cnn"},
    "zero-shot": {"streams": "clip", "project": False, "train.epochs": 0},
}

TRAIN = {"epochs": 50, "batch_size": 32}

#: Rates on `scenes`: the best of a grid that every trained method had, on `select` (sweeps/rates.toml).
DATASETS = {"scenes": {**SCENES_STREAMS, "clip_lr": 0.004, "cnn_lr": 0.004, "dropout": 0.2}}


class Sum(nn.Module):
    """(B, D), (B, D) -> (B, D)."""

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """image + text."""
        return image + text


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Streams:
    """See streams.py."""
    return build_streams(config, encoders, train, state, lambda name, dim: Sum())
