"""A small CNN that is frozen in all epochs but one, under everything that training can do at once; a loose method file for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cirbench.models.encoders import Encoders
from cirbench.models.layers import adam, contrastive, hard_labels, l2norm
from cirbench.settings import Field, Settings
from cirbench.types import Frozen, Inputs, Pixels, QueryBatch, TrainBatch, TrainView


class Config(Settings):
    """One rate."""

    clip: str = Field("scenes-small", description="encoder of texts")
    lr: float = Field(1e-2, gt=0, description="learning rate")


VARIANTS: dict[str, dict[str, Any]] = {}
TRAIN = {"epochs": 3, "batch_size": 32, "crop": "random", "flip": "independent", "ema": 0.8}


class Staged(nn.Module):
    """One convolution and two linear layers."""

    def __init__(self, clip: Any, config: Config) -> None:
        super().__init__()
        self.config = config
        self.inputs = Inputs(
            {"pixels": Pixels(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), stored=40)}, {"clip": Frozen(clip)}
        )
        self.cnn = nn.Sequential(nn.Conv2d(3, 8, 5, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.fc, self.text, self.drop = nn.Linear(8, 16), nn.Linear(clip.dim, 16), nn.Dropout(0.3)

    def start_epoch(self, epoch: int) -> float | None:
        """The CNN is trained in the second epoch alone, its statistics move from the third; the rate falls."""
        self.cnn.requires_grad_(epoch == 1)
        self.cnn[1].train(epoch >= 2)
        self.noise = torch.rand(16) / 100  # the same wherever the epoch begins
        return None if epoch == 0 else 1 / (1 + epoch)

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        """(B, 16)."""
        return l2norm(self.encode_images(batch.reference) + self.text(batch.text["clip"]))

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """(N, 16)."""
        return l2norm(self.fc(self.drop(self.cnn(images["pixels"]).mean((2, 3)))))

    def losses(self, batch: TrainBatch) -> Iterator[tuple[str, Tensor, Mapping[str, float]]]:
        """One contrast."""
        labels = hard_labels(batch.positives)
        loss = contrastive(self.encode_queries(batch) + self.noise, self.encode_images(batch.target), labels, 0.1)
        yield "all", loss, {"loss": loss.item()}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """One."""
        return {"all": adam(self.parameters(), self.config.lr, 0.0)}


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Staged:
    """A new one."""
    return Staged(encoders.clip(config.clip), config)
