"""Concat, the plain trained composition: q = l2norm(MLP([image; text])) (the baseline of Vo et al., CVPR 2019).

Two layers as in the TIRG code, or the single linear layer with which DCNet (Kim et al., AAAI 2021) came within half a
point of TIRG (`one-layer`). Encoders, streams, loss, optimiser and budget are DWC's by default, so that it differs
from DWC only in composition and losses.

Differences from the TIRG code's baseline: DWC's encoders, projections and optimiser; see tirg.py for TIRG's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cirbench.models.encoders import Encoders
from cirbench.models.two_stream import Streams, build_streams
from cirbench.settings import SCENES_STREAMS, Field, StreamSettings
from cirbench.types import TrainView


class Config(StreamSettings):
    """Encoders, sizes and rates are DWC's."""

    layers: int = Field(2, ge=1, le=2, description="layers of the perceptron: 2 (TIRG's baseline) or 1 (DCNet's)")
    fusion_dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate before the last of two layers")


VARIANTS: dict[str, dict[str, Any]] = {
    "clip-only": {"streams": "clip"},
    "cnn-only": {"streams": "cnn"},
    "one-layer": {"layers": 1},
}

TRAIN = {"epochs": 50, "batch_size": 32}

#: Rates on `scenes`: the best on `select` of a grid run for every trained method (sweeps/rates.toml).
DATASETS = {"scenes": {**SCENES_STREAMS, "clip_lr": 0.002, "cnn_lr": 0.001, "dropout": 0.2}}


class Concat(nn.Module):
    """A perceptron over both vectors, (B, D), (B, D) -> (B, D).

    Args:
        dim: D.
        layers: 2 for BN, ReLU, linear 2D, BN, ReLU, dropout, linear D; 1 for a single linear layer.
        dropout: before the last layer of two.
    """

    def __init__(self, dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * dim, dim)) if layers == 1 else nn.Sequential(
            nn.BatchNorm1d(2 * dim), nn.ReLU(), nn.Linear(2 * dim, 2 * dim),
            nn.BatchNorm1d(2 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim),
        )

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """MLP([image; text])."""
        return self.layers(torch.cat([image, text], 1))


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Streams:
    """Streams of DWC's encoders (two_stream.py) around `Concat`."""
    return build_streams(
        config, encoders, train, state, lambda name, dim: Concat(dim, config.layers, config.fusion_dropout)
    )
