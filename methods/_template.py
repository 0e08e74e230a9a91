"""NAME: one sentence that `cirbench list methods` shows.

Describe here the idea, the paper it is from, and every difference from the paper's code. As it stands this is a small
method that works: CLIP's image and text vectors are projected, a perceptron moves the image vector depending on the
text, and the batch's other targets are the negatives.

    cirbench check ./NAME.py
    cirbench run --method ./NAME.py --dataset scenes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cirbench.models.encoders import Clip, Encoders
from cirbench.models.layers import adam, contrastive, hard_labels, l2norm
from cirbench.settings import Field, Settings
from cirbench.types import Frozen, Inputs, QueryBatch, TrainBatch, TrainView


class Config(Settings):
    """Every knob, with default, bounds and a description; `--set method.dim=64` changes one."""

    # A field called `clip` is what --backbone replaces. The default is what a real dataset should use.
    clip: str = Field("RN50-quickgelu:openai", description="CLIP (`cirbench list backbones`)")
    dim: int = Field(512, ge=8, description="D, width of the embeddings")
    hidden: int = Field(1024, ge=8, description="width of the perceptron")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate in the perceptron")
    temperature: float = Field(0.07, gt=0, description="temperature of the contrastive loss")
    lr: float = Field(1e-4, gt=0, description="learning rate (Adam)")
    weight_decay: float = Field(1e-6, ge=0, description="weight decay of the optimiser")


#: Named overrides for ablations; bare names are fields of Config, `train.x` are training settings.
VARIANTS: dict[str, dict[str, Any]] = {
    "narrow": {"hidden": 64},
    "short": {"train.epochs": 2},
}

#: Training settings of the paper (`TrainSettings` in settings.py lists them all).
TRAIN = {"epochs": 50, "batch_size": 32}

#: What a dataset needs beyond these. `scenes` is small and has packaged CLIPs, so that all of this runs offline.
DATASETS = {
    "scenes": {
        "clip": "scenes-medium", "dim": 256, "hidden": 512, "lr": 1e-3,
        "train.epochs": 5, "train.batch_size": 64, "train.schedule": "linear", "train.warmup": 30,
    },
}

#: Ranges for `cirbench sweep tune --method ./NAME.py`; without it, those of the usual field names (settings.py).
TUNE = {"temperature": {"low": 0.01, "high": 0.5, "log": True}, "lr": {"low": 1e-4, "high": 1e-2, "log": True}}


class Template(nn.Module):
    """Shapes: B queries, N images, D features. No base class is needed, only these names (`Method` in types.py)."""

    def __init__(self, config: Config, clip: Clip) -> None:
        super().__init__()
        self.config = config
        # The method's inputs, under names of its own. Frozen(clip): features, computed once and cached;
        # Pixels(...) instead: pictures as (B, 3, size, size), for encoders that are trained.
        self.inputs = Inputs(images={"clip": Frozen(clip)}, texts={"clip": Frozen(clip)})
        self.image_fc = nn.Linear(clip.dim, config.dim)
        self.text_fc = nn.Linear(clip.dim, config.dim)
        self.edit = nn.Sequential(
            nn.Linear(2 * config.dim, config.hidden), nn.ReLU(), nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.dim),
        )

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """(N, D) unit vectors of gallery images; also called for targets in training."""
        return l2norm(self.image_fc(l2norm(images["clip"])))

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        """(B, D) unit vectors: the image, moved depending on the text. `batch.words` holds the strings themselves."""
        image = self.encode_images(batch.reference)
        text = l2norm(self.text_fc(l2norm(batch.text["clip"])))
        return l2norm(image + self.edit(torch.cat([image, text], 1)))

    # A method without training leaves out the two functions below.

    def losses(self, batch: TrainBatch) -> Iterator[tuple[str, Tensor, Mapping[str, float | Tensor]]]:
        """Yield (optimizer, loss, logs); each loss is stepped before the next is computed."""
        queries, targets = self.encode_queries(batch), self.encode_images(batch.target)
        # batch.positives (B, B): which targets of this batch are hits of which query.
        labels = hard_labels(batch.positives).to(queries.dtype)
        loss = contrastive(queries, targets, labels, self.config.temperature)
        yield "all", loss, {"contrastive": loss.detach()}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Name -> optimizer; the names are those that `losses` yields."""
        return {"all": adam(self.parameters(), self.config.lr, self.config.weight_decay)}


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Template:
    """Called once per run, with torch seeded.

    Args:
        config: the fields, resolved.
        encoders: makes CLIPs, CNNs and LSTMs by name; a frozen one is shared.
        train: the training texts, for a vocabulary.
        state: what `extra_state()` returned when the weights being loaded were saved; None in training.
    """
    return Template(config, encoders.clip(config.clip))
