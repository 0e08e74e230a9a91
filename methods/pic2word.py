"""Pic2Word, zero-shot: a small network turns the reference into a pseudo-word that CLIP's text tower reads.

Saito et al., CVPR 2023 (arXiv 2302.03084). With x the un-normalised image vector of frozen CLIP and phi an MLP,

    query = text("a photo of $ , TEXT") with phi(x) in the slot;

phi is trained on pictures alone. With e = text("a photo of $") and S = s n(e) n(x)^T, s being CLIP's own factor,
the loss is (CE(S) + CE(S^T)) / 2. Here the pictures are the references and targets of a batch, equal ones once: which
of them belong together is not used. The learning rate follows a cosine from the end of the warm-up, as theirs does.

Differences from the authors' code:
- the pictures of the training triplets | Conceptual Captions 3M, 30 epochs;
- pictures as CLIP sees them in evaluation | the same transform, over images of any size;
- a slot in the query's text is a blank | would be a second pseudo-word;
- one process | the negatives are gathered over all GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cirbench.models.encoders import Clip, Encoders
from cirbench.models.layers import l2norm
from cirbench.models.pseudo_words import filled
from cirbench.settings import Field, Settings
from cirbench.types import Frozen, Inputs, QueryBatch, TrainBatch, TrainView


class Config(Settings):
    """Defaults are the authors' for ViT-L/14."""

    clip: str = Field("ViT-L-14:openai", description="frozen CLIP whose text tower reads pseudo-words")
    template: str = Field("a photo of $ , {}", description="the query: $ is the pseudo-word, {} the text")
    train_template: str = Field("a photo of $", description="what phi is trained in")
    hidden: int = Field(512, ge=1, description="width of phi's hidden layers")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate in phi")
    lr: float = Field(1e-4, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(0.1, ge=0, description="decay of weights; biases have none")
    beta2: float = Field(0.98, gt=0, lt=1, description="AdamW's second beta; .999 for ResNets")
    eps: float = Field(1e-6, gt=0, description="AdamW's epsilon; 1e-8 for ResNets")


VARIANTS: dict[str, dict[str, Any]] = {
    "untrained": {"train.epochs": 0},
}

TRAIN = {"epochs": 30, "batch_size": 128, "schedule": "cosine-after-warmup", "warmup": 10_000}

DATASETS = {
    # "photo" is no word of the packaged CLIPs.
    "scenes": {
        "clip": "scenes-small", "template": "a picture of $ , {}", "train_template": "a picture of $", "hidden": 128,
        "lr": 1e-3, "train.epochs": 8, "train.batch_size": 64, "train.warmup": 30,
    },
    "scenes/untrained": {"train.epochs": 0},
    "fashioniq": {"train.protocol": "fiq-original-keep-ba"},
}

SLOT = "$"


class Pic2Word(nn.Module):
    """phi over a frozen CLIP."""

    def __init__(self, config: Config, clip: Clip) -> None:
        super().__init__()
        self.config, self.clip = config, [clip]  # in a list: frozen, so no part of the module
        self.inputs = Inputs(images={"clip": Frozen(clip)})
        layers: list[nn.Module] = []
        width = clip.dim
        for _ in range(2):
            layers += [nn.Linear(width, config.hidden), nn.Dropout(config.dropout), nn.ReLU()]
            width = config.hidden
        self.phi = nn.Sequential(*layers, nn.Linear(width, clip.token_width))

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        """(B, D), of unit length."""
        texts = filled(self.config.template, batch.words, SLOT)
        return l2norm(self.clip[0].encode_pseudo(texts, self.phi(batch.reference["clip"]), SLOT))

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """(N, D), of unit length."""
        return l2norm(images["clip"])

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """AdamW, with decay of weights alone."""
        config, named = self.config, list(self.phi.named_parameters())
        groups = [
            {"params": [p for n, p in named if n.endswith("weight")], "weight_decay": config.weight_decay},
            {"params": [p for n, p in named if n.endswith("bias")], "weight_decay": 0.0},
        ]
        return {"phi": torch.optim.AdamW(groups, config.lr, (0.9, config.beta2), config.eps)}

    def losses(self, batch: TrainBatch) -> Iterator[tuple[str, Tensor, Mapping[str, float | Tensor]]]:
        """Symmetric contrast of pictures and their pseudo-words."""
        # An equal picture twice would be a wrong negative of itself.
        pictures = torch.unique(torch.cat([batch.reference["clip"], batch.target["clip"]]), dim=0)
        loss = self.contrast(pictures)
        yield "phi", loss, {"phi": loss.detach()}

    def contrast(self, pictures: Tensor) -> Tensor:
        """The loss of n different pictures, (n, D) un-normalised."""
        clip = self.clip[0]
        texts = [self.config.train_template] * len(pictures)
        written = l2norm(clip.encode_pseudo(texts, self.phi(pictures), SLOT))
        logits = clip.logit_scale * written @ l2norm(pictures).T
        own = torch.arange(len(pictures), device=pictures.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Pic2Word:
    """A new phi; CLIP is frozen."""
    return Pic2Word(config, encoders.clip(config.clip))
