"""ARTEMIS, attention-based retrieval with text-explicit matching and implicit similarity (Delmas et al., ICLR 2022).

Idea (arXiv 2203.08101): two scores of a query and a target g. Explicit matching asks whether the target agrees with
the text t, implicit similarity whether it agrees with the reference r in what the text leaves alone. The text says, by
softmaxes A_E and A_I over the D channels, where each of them looks:

    EM = Tr(t) . n(A_E(t) * g),    IS = n(A_I(t) * r) . n(A_I(t) * g),    score = EM + IS,

n to unit length, Tr(t) = n(linear layer of t), A two linear layers with ReLU between; r, g and t are unit vectors. The
loss is the softmax over the batch's targets of exp(T) times the score, T learned from ln 14.29.

A gallery is scored without a tensor (B, N, D): EM = (Tr * A_E) . g / sqrt(A_E^2 . g^2), and IS likewise, so a query is
[Tr * A_E; A_E^2; n(A_I * r) * A_I; A_I^2] and `score` makes four products. There is no embedding of a query, so text
forms that average embeddings (`avg`) average these rows and mean little.

Two stages: `frozen_epochs` with the CNN's weights and the word vectors fixed (batch statistics move), the rate halved
every `frozen_halving`; then all is trained, from the rate that the first stage ended with, halved every `halving`.

The defaults are the paper's: ResNet-50, GeM with p = 3, a GRU in both directions, AdamW, 8 + 50 epochs; on FashionIQ,
where theirs hold each annotation twice, 16 + 100; on Fashion200K ResNet-18, batches of 128, 8 + 100. `em-only` and
`is-only` keep one score. `as-released` trains Fashion200K as the other data: the settings meant for it are skipped,
since the README writes its name in other letters than the script. `clip-only` has a frozen CLIP's vectors.

`like-dwc` has DWC's encoders, projections, optimiser, batches and budget, over both streams; `like-dwc-clip` and
`like-dwc-cnn` over one. Not alike: the score, hence the loss, a softmax with DWC's tau over scores from -2 to 2 instead
of cosines; and the vectors are made unit before they are composed. Scores of two streams are averaged by `clip_share`.

Differences from the authors' code (ours | theirs):
- words start at random, or from the file `vectors` names | from GloVe 840B;
- several targets of a batch that are hits share the label | count as wrong;
- words and padding are DWC's, without marks of beginning and end | letters only, with them;
- CIRR: pictures, through the CNN | given vectors of ResNet-152;
- the last epoch | FashionIQ and Fashion200K: the best on the split that is reported, or half of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cirbench.models.encoders import Encoders
from cirbench.models.layers import hard_labels, l2norm
from cirbench.models.two_stream import CnnVectors, Streams, build_streams
from cirbench.settings import SCENES_STREAMS, Field, StreamSettings, like_dwc
from cirbench.types import QueryBatch, TrainBatch, TrainView


class Config(StreamSettings):
    """The paper's values where they are not DWC's."""

    parts: Literal["both", "em", "is"] = Field(
        "both", description="the score: explicit matching with the text and implicit similarity, or one of them"
    )
    frozen_epochs: int = Field(8, ge=0, description="epochs of the first stage, the encoders' weights fixed")
    frozen_halving: int = Field(4, ge=0, description="first stage: epochs between halvings of the rate; 0 for none")
    halving: int = Field(10, ge=0, description="second stage: epochs between halvings of the rate; 0 for none")
    streams: Literal["both", "clip", "cnn"] = Field("cnn", description="which streams are trained and ranked with")
    clip_dim: int = Field(512, ge=8, description="D of the CLIP stream")
    cnn_dim: int = Field(512, ge=8, description="D of the CNN stream, and the width of the words' states")
    cnn_resize: Literal["crop", "squash", "pad"] = Field(
        "pad", description="how pictures are made square for the CNN", json_schema_extra={"neutral": "crop"}
    )
    cnn_pad: Literal["zero", "white"] = Field(
        "white", description="cnn_resize=pad: colour of what is added", json_schema_extra={"neutral": "zero"}
    )
    cnn_stored: int | None = Field(
        256, ge=16, description="side of the CNN's pictures before `cnn_size` is cut from them, from the centre in "
        "evaluation and in training as train.crop says; null for cnn_size", json_schema_extra={"neutral": None},
    )
    cnn_text: Literal["lstm", "bigru"] = Field(
        "bigru", description="CNN stream: what reads its texts: an LSTM, or a GRU in both directions",
        json_schema_extra={"neutral": "lstm"},
    )
    word_dim: int = Field(300, ge=4, description="width of a word's embedding")
    project_text: bool = Field(
        False, description="CNN stream: a linear layer behind the text's vector", json_schema_extra={"neutral": True}
    )
    pooling: Literal["gem", "gem-map", "plain"] = Field(
        "gem-map", description="CNN stream: GeM over the map and the last states; GeM over both; or the map's mean"
    )
    gem_learned: bool = Field(False, description="learn the power of GeM pooling", json_schema_extra={"neutral": True})
    loss: Literal["softmax"] = Field("softmax", description="the only one: in-batch softmax over scores")
    learn_temperature: bool = Field(True, description="learn a T per stream, logits exp(T) score, from exp(T) = 1/tau")
    optimizer: Literal["adam", "adamw", "radam", "sgd"] = Field(
        "adamw", description="of both streams; radam with AdamW's decay, SGD with momentum 0.9"
    )
    clip_lr: float = Field(5e-4, gt=0, description="learning rate of the CLIP stream")
    cnn_lr: float = Field(5e-4, gt=0, description="learning rate of the CNN stream")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of both optimisers")


def _like_dwc(streams: str) -> dict[str, Any]:
    cnn = StreamSettings.model_fields["cnn"].default  # on Fashion200K too
    return {**like_dwc(Config, streams), "cnn": cnn, "frozen_epochs": 0, "halving": 0}


VARIANTS: dict[str, dict[str, Any]] = {
    "em-only": {"parts": "em"},
    "is-only": {"parts": "is"},
    "clip-only": {"streams": "clip", "train.crop": "none"},
    "as-released": {},
    "like-dwc": _like_dwc("both"),
    "like-dwc-clip": _like_dwc("clip"),
    "like-dwc-cnn": _like_dwc("cnn"),
}

TRAIN = {"epochs": 58, "batch_size": 32, "crop": "random"}

#: Texts of `scenes` name places, so its pictures are neither cut nor flipped.
_PICTURES = {"cnn_resize": "crop", "cnn_stored": None, "train.crop": "none"}
_SCENES = {
    **SCENES_STREAMS, **_PICTURES, "clip_lr": 2e-3, "cnn_lr": 4e-3, "frozen_epochs": 2, "halving": 0,
    "train.epochs": 10,
}
_SCENES_LIKE_DWC = {**SCENES_STREAMS, "clip_lr": 2e-3, "cnn_lr": 2e-3, "dropout": 0.2}

DATASETS = {
    "fashioniq": {
        "frozen_epochs": 16, "frozen_halving": 8, "halving": 20, "train.epochs": 116, "train.form": "both",
        "train.flip": "independent",
    },
    "shoes": {"train.flip": "independent"},
    "fashion200k": {
        "cnn": "resnet18.tv_in1k", "halving": 20, "train.epochs": 108, "train.batch_size": 128,
        "train.flip": "independent",
    },
    "fashion200k/as-released": {"cnn": "resnet50.tv_in1k", "halving": 10, "train.epochs": 58, "train.batch_size": 32},
    "css3d": _PICTURES,
    "scenes": _SCENES,
    "scenes/like-dwc": _SCENES_LIKE_DWC,
    "scenes/like-dwc-clip": _SCENES_LIKE_DWC,
    "scenes/like-dwc-cnn": _SCENES_LIKE_DWC,
}


class TwoScores(nn.Module):
    """A reference and a text as the factors of EM and IS: (B, D), (B, D) -> (B, 4D), or (B, 2D) of one score.

    Args:
        dim: D.
        parts: `both`, `em` or `is`.
    """

    def __init__(self, dim: int, parts: str) -> None:
        super().__init__()

        def attention() -> nn.Sequential:
            return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

        self.explicit, self.implicit = parts != "is", parts != "em"
        if self.explicit:
            self.transform, self.attend_explicit = nn.Linear(dim, dim), attention()  # Tr, A_E
        if self.implicit:
            self.attend_implicit = attention()  # A_I

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """[Tr * A_E; A_E^2; n(A_I * r) * A_I; A_I^2], A times D, which cancels and keeps squares from underflow."""
        image, text, factors = l2norm(image), l2norm(text), []
        if self.explicit:
            a = self.attend_explicit(text).softmax(1) * image.shape[1]
            factors += [l2norm(self.transform(text)) * a, a.square()]
        if self.implicit:
            a = self.attend_implicit(text).softmax(1) * image.shape[1]
            factors += [l2norm(a * image) * a, a.square()]
        return torch.cat(factors, 1)


def scores(factors: Tensor, images: Tensor) -> Tensor:
    """EM + IS, or one of them: (B, 4D) or (B, 2D) of `TwoScores`, unit (N, D) -> (B, N)."""
    parts, squares = factors.split(images.shape[1], 1), images.square()
    found = [
        (first @ images.T) / (second @ squares.T).clamp(min=1e-24).sqrt()
        for first, second in zip(parts[::2], parts[1::2], strict=True)
    ]
    return found[0] if len(found) == 1 else found[0] + found[1]


class Artemis(Streams):
    """Streams whose queries are factors of a score; `scales` holds T."""

    config: Config

    def __init__(self, config: Config, *args: Any) -> None:
        super().__init__(config, *args)
        for name in self.scales:
            self.scales[name] = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def start_epoch(self, epoch: int) -> float:
        """Freezes the CNN and the word vectors in the first stage; the factor of the rate."""
        config, second = self.config, epoch - self.config.frozen_epochs
        cnn = self.vectors["cnn"] if "cnn" in self.names else None
        if isinstance(cnn, CnnVectors) and cnn.words is not None:
            cnn.cnn.requires_grad_(second >= 0)
            cnn.words.embedding_layer.requires_grad_(second >= 0)
        last = epoch if second < 0 else config.frozen_epochs - 1
        halvings = max(last, 0) // config.frozen_halving if config.frozen_halving else 0
        if second >= 0 and config.halving:
            halvings += second // config.halving
        return 0.5**halvings

    def factors(self, name: str, batch: QueryBatch) -> Tensor:
        """(B, 4D) or (B, 2D) of one stream."""
        return self.composers[name](self._image(name, batch.reference), self._text(name, batch))

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        """Factors of all streams side by side, the CLIP stream's first."""
        return torch.cat([self.factors(name, batch) for name in self.names], 1)

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """(N, D), unit vectors of all streams side by side."""
        return torch.cat([self.target(name, images) for name in self.names], 1)

    def score(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """The streams' scores, weighted by `clip_share`: -> (B, N)."""
        widths = [int(self.vectors[name].dim) for name in self.names]  # type: ignore[arg-type]
        each = queries.shape[1] // gallery.shape[1]
        pairs = zip(queries.split([each * d for d in widths], 1), gallery.split(widths, 1), strict=True)
        found = [scores(*pair) for pair in pairs]
        share = self.config.clip_share
        return found[0] if len(found) == 1 else share * found[0] + (1 - share) * found[1]

    def losses(self, batch: TrainBatch) -> Iterator[tuple[str, Tensor, Mapping[str, float | Tensor]]]:
        """Softmax over the scores of the batch's targets, stream by stream."""
        for name in self.optimizer_names():
            logits = scores(self.factors(name, batch), self.target(name, batch.target))
            scale = self.scales[name].exp() if name in self.scales else 1 / self.config.temperature
            loss = F.cross_entropy(scale * logits, hard_labels(batch.positives).to(logits.dtype))
            yield name, loss, {f"{name}/contrastive": loss.detach()}

    def contrasts(self, batch: TrainBatch) -> dict[str, tuple[Tensor, Tensor, float]]:
        """None: the score is no dot product."""
        return {}


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Streams:
    """Streams (two_stream.py) around `TwoScores`."""
    return build_streams(config, encoders, train, state, lambda name, dim: TwoScores(dim, config.parts), kind=Artemis)
