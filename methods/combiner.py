"""Combiner, the second stage of CLIP4Cir (Baldrati et al., CVPR 2022 workshops and demo; ACM TOMM 2023).

Idea: a residual between CLIP's own vectors. With x' and t' wide projections of image and text,
q = l2norm(W h([x'; t']) + (1 - s) x + s t), s = sigmoid(MLP([x'; t'])) a scalar per query. CLIP stays frozen, a target
is its own unit image vector, logits are 100 cos, in a softmax over the batch's targets.

The defaults are the paper's: CLIP RN50x4 with pictures padded towards 1.25 (`targetpad`), features as CLIP gives them,
no projection of the targets, and on FashionIQ no flips and the captions of a query drawn anew every epoch: a and b, b
and a, a alone, or b alone. `like-dwc` has DWC's encoders, projections, loss, optimiser and budget, over both streams;
`like-dwc-clip` and `like-dwc-cnn` over one. The first stage, CLIP fine-tuned under a sum, is the variant `clip4cir-1`
of methods/sum.py: `two-stage` does it first and goes on with its CLIP, `--set method.clip=run:FOLDER` takes that of a
finished run.

Differences from the paper and its code:
- the checkpoint is the last, unless `train.selection` says otherwise; theirs is the best on the validation split,
  which is also reported;
- several targets of a batch that are hits share the label; in the paper the others count as wrong;
- the paper's batch of 4096 needs as many training triplets: lower `train.batch_size` on smaller sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cirbench.models.encoders import Encoders
from cirbench.models.layers import gate
from cirbench.models.two_stream import Streams, WeightedStreams, build_streams
from cirbench.settings import SCENES_STREAMS, Field, StreamSettings, like_dwc
from cirbench.types import TrainView


class Config(StreamSettings):
    """The paper's values where they are not DWC's."""

    streams: Literal["both", "clip", "cnn"] = Field("clip", description="which streams are trained and ranked with")
    clip: str = Field(
        "RN50x4-quickgelu:openai", description="CLIP (`cirbench list backbones` has the forms of its name)"
    )
    clip_resize: Literal["crop", "squash", "pad", "targetpad"] | None = Field(
        "targetpad", description="how pictures are made square for CLIP; null for the model's own way"
    )
    project: bool = Field(False, description="learn projections of CLIP's features; false uses them as they are")
    unit_features: bool = Field(False, description="scale vectors of the CLIP stream to unit length before composing")
    projection: int = Field(2560, ge=4, description="width of x' and t'")
    hidden: int = Field(5120, ge=4, description="width of h, and of the MLP behind s")
    temperature: float = Field(0.01, gt=0, description="tau of the contrastive loss")
    clip_lr: float = Field(2e-5, gt=0, description="learning rate of the CLIP stream")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of both optimisers")


VARIANTS: dict[str, dict[str, Any]] = {
    "two-stage": {"clip": "after:sum clip4cir-1"},
    "like-dwc": like_dwc(Config),
    "like-dwc-clip": like_dwc(Config, "clip"),
    "like-dwc-cnn": like_dwc(Config, "cnn"),
}

TRAIN = {"epochs": 300, "batch_size": 4096}

#: Widths are four and eight times the method's D here, as in the paper.
_SCENES = {**SCENES_STREAMS, "projection": 512, "hidden": 1024}

#: Rates on `scenes`: the best on `select` of a grid run for every trained method (sweeps/rates.toml).
_LIKE_DWC = {**_SCENES, "clip_lr": 0.004, "cnn_lr": 0.002, "dropout": 0.2}

DATASETS = {
    "fashioniq": {"train.form": "four-ways", "train.flip": "none"},
    "scenes": _SCENES,
    "scenes/two-stage": {"clip": "after:sum clip4cir-1"},
    "scenes/like-dwc": _LIKE_DWC,
    "scenes/like-dwc-clip": _LIKE_DWC,
    "scenes/like-dwc-cnn": _LIKE_DWC,
}


class Combiner(nn.Module):
    """W h([x'; t']) + (1 - s) x + s t: (B, D), (B, D) -> (B, D), and the share of the image 1 - s (B, 1).

    Args:
        dim: D.
        projection: width of x' and t'.
        hidden: width of h, and of the MLP behind s.
        dropout: after every ReLU.
    """

    def __init__(self, dim: int, projection: int, hidden: int, dropout: float) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout))

        self.image, self.text = block(dim, projection), block(dim, projection)
        self.hidden = block(2 * projection, hidden)
        self.output = nn.Linear(hidden, dim)
        self.share = gate(2 * projection, hidden, 1, dropout)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The composition, and 1 - s."""
        both = torch.cat([self.text(text), self.image(image)], 1)
        share = self.share(both)
        return self.output(self.hidden(both)) + share * text + (1 - share) * image, 1 - share


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Streams:
    """Streams (two_stream.py) around `Combiner`."""
    return build_streams(
        config, encoders, train, state,
        lambda name, dim: Combiner(dim, config.projection, config.hidden, config.dropout), kind=WeightedStreams,
    )
