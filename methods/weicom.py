"""WeiCom, training-free: similarities to image and text are made comparable over the gallery, then weighted.

Psomas et al., IGARSS 2024 (arXiv 2405.15587). With unit vectors, a_j = x . g_j and b_j = t . g_j for the images j of
the query's gallery, and mu, s their mean and unbiased standard deviation there,

    score_j = (1 - lambda) Phi((a_j - mu_a) / s_a) + lambda Phi((b_j - mu_b) / s_b),

Phi being the distribution function of the standard normal. The gallery includes the reference, whatever the protocol
drops. mu_a = x . m and s_a^2 = x^T C x with the gallery's mean m and covariance C, so no (B, N) table is kept.
`average` is the mean of the plain similarities, `product` that of the two where both are positive; neither needs the
gallery.

On `scenes` it is below both floors: a target's similarity to the reference is far in the tail over that gallery, where
Phi is flat, so the text decides almost alone.

Differences from the authors' code:
- lambda 0.5; their 0.3 for CLIP and 0.6 for RemoteCLIP were tuned on the reported data;
- texts as the dataset has them | the bare attribute ("blue");
- a spread of zero (a gallery of one image) counts as `floor` | divides by zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cirbench.models.encoders import Clip, Encoders
from cirbench.models.layers import l2norm
from cirbench.settings import Field, Settings
from cirbench.types import Frozen, Inputs, QueryBatch, TrainView


class Config(Settings):
    """The CLIP, and how its two similarities become one score."""

    clip: str = Field("ViT-L-14:openai", description="frozen CLIP")
    share: float = Field(0.5, ge=0, le=1, description="lambda: 0 ranks by the image, 1 by the text")
    kind: Literal["normalised", "average", "product"] = Field(
        "normalised", description="what is weighted: normalised similarities; or the plain ones, or their product"
    )
    floor: float = Field(1e-6, gt=0, description="smallest standard deviation that is divided by")


VARIANTS: dict[str, dict[str, Any]] = {"average": {"kind": "average"}, "product": {"kind": "product"}}

TRAIN = {"epochs": 0, "batch_size": 32}

DATASETS = {"scenes": {"clip": "scenes-small"}}

TUNE = {"share": {"low": 0.0, "high": 1.0}}


class WeiCom(nn.Module):
    """A score of query and image over a frozen CLIP; nothing is learned."""

    def __init__(self, config: Config, clip: Clip) -> None:
        super().__init__()
        self.config = config
        self.inputs = Inputs(images={"clip": Frozen(clip)}, texts={"clip": Frozen(clip)})

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        """(B, 2D): unit image and text side by side."""
        return torch.cat([l2norm(batch.reference["clip"]), l2norm(batch.text["clip"])], 1)

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """(N, D), of unit length."""
        return l2norm(images["clip"])

    def adapt(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """(B, 2D), (N, D) -> (B, 2D + 4): mean and spread of both similarities, where they are read."""
        if self.config.kind != "normalised":
            return queries
        # In double precision: x^T C x is a small difference of large sums.
        double = gallery.double()
        mean = double.mean(0)
        centred = double - mean
        covariance = centred.T @ centred / max(len(gallery) - 1, 1)
        statistics = []
        for part in queries.double().chunk(2, 1):
            spread = ((part @ covariance) * part).sum(1).clamp(min=0).sqrt().clamp(min=self.config.floor)
            statistics += [part @ mean, spread]
        return torch.cat([queries, torch.stack(statistics, 1).to(queries)], 1)

    def score(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """(B, 2D + 4), (N, D) -> (B, N)."""
        dim, share = gallery.shape[1], self.config.share
        image, text = queries[:, :dim] @ gallery.T, queries[:, dim : 2 * dim] @ gallery.T
        if self.config.kind == "product":
            return image.clamp(min=0) * text.clamp(min=0)
        if self.config.kind == "normalised":
            mu_a, s_a, mu_b, s_b = (queries[:, 2 * dim + n, None] for n in range(4))
            image, text = (torch.special.ndtr((v - m) / s) for v, m, s in ((image, mu_a, s_a), (text, mu_b, s_b)))
        return (1 - share) * image + share * text


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> WeiCom:
    """Nothing but the CLIP."""
    return WeiCom(config, encoders.clip(config.clip))
