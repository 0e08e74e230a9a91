"""Random: chance level. Every query and image has a random direction, the same in every batch.

A query's direction is drawn from the seed, its picture's pixels and its text, an image's from the seed and its pixels:
equal pictures get equal vectors, and rankings do not depend on batch size or gallery order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cirbench.data.images import CLIP_MEAN, CLIP_STD
from cirbench.models.encoders import Encoders
from cirbench.settings import Field, Settings
from cirbench.types import Inputs, Pixels, QueryBatch, TrainView


class Config(Settings):
    """Width of the vectors and size of the hashed pictures."""

    dim: int = Field(64, ge=2, description="D")
    size: int = Field(32, ge=8, description="side in pixels of the pictures that are hashed")


TRAIN = {"epochs": 0}


class Random:
    """Directions by hash."""

    def __init__(self, config: Config, seed: int) -> None:
        self.config, self.seed = config, seed
        self.inputs = Inputs({"pixels": Pixels(config.size, CLIP_MEAN, CLIP_STD)})

    def _direction(self, what: bytes) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(what + str(self.seed).encode()).digest()[:8], "big") >> 1
        return torch.randn(self.config.dim, generator=torch.Generator().manual_seed(seed))

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        """(B, D)."""
        device = batch.reference["pixels"].device
        images = batch.reference["pixels"].cpu().contiguous()
        return torch.stack([
            self._direction(image.numpy().tobytes() + text.encode("utf-8", "surrogatepass"))
            for image, text in zip(images, batch.words, strict=True)
        ]).to(device)

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """(N, D)."""
        x = images["pixels"]
        return torch.stack([self._direction(i.numpy().tobytes()) for i in x.cpu().contiguous()]).to(x.device)


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Random:
    """Nothing is trained; the seed is the run's."""
    return Random(config, encoders.seed)
