"""BASIC, training-free: centred similarities to image and text, kept to directions of things, multiplied.

Psomas et al., NeurIPS 2025 (arXiv 2510.25387). With unit vectors of frozen CLIP, x of the reference, g of a gallery
image and t of the text (the mean of "SUBJECT TEXT" and "TEXT SUBJECT" over some subjects, rescaled):

    x~ = P (x - m),  g~ = g - m,  t~ = t - m_t,

m the mean of the training pictures, m_t that of names of subjects, and P the projection onto the leading eigenvectors
with positive eigenvalues of (1 - s) C+ - s C-, C+ and C- being the second moments around m_t of names of subjects and
of styles: what a picture shows is kept, how it is shown is dropped. Then x~ is expanded: the mean of the 25 gallery
images g~ nearest to it and of x - m itself, weighted by exp(0.1 similarity) (1 for its own), projected again. At last

    s_i = max(0, (x~ . g~ - a) / |a|),  s_t = max(0, (t~ . g~ - b) / |b|),  score = s_i s_t - 0.1 (s_i + s_t)^2,

a and b the smallest similarity of two images, and of a text and an image, that was seen beforehand.

Differences from the authors' code:
- m, a and b of the training pictures and of `train.pictures` | of LAION-1M, and of generated pictures and texts;
- subjects are the most frequent phrases of the captions | 1,840 names;
- styles are the most frequent words between phrases in the training texts | about 1,000 names of styles;
- s_t is divided by |b| | by |a| (`as-released`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cirbench.models.encoders import Clip, Encoders
from cirbench.models.layers import l2norm
from cirbench.models.phrases import common_phrases, other_words
from cirbench.settings import Field, Settings
from cirbench.types import CirbenchError, Corpus, Frozen, Inputs, QueryBatch, TrainView


class Config(Settings):
    """Defaults are the authors' for ViT-L/14."""

    clip: str = Field("ViT-L-14:openai", description="frozen CLIP")
    subjects: int = Field(1840, ge=1, description="names of subjects, for m_t and C+")
    styles: int = Field(1000, ge=0, description="names of styles, for C-")
    style_share: float = Field(0.2, ge=0, le=1, description="s: weight of C- in P")
    directions: int = Field(250, ge=1, description="eigenvectors of P at most")
    context: int = Field(100, ge=0, description="subjects beside the text of a query; 0 for the text alone")
    neighbours: int = Field(25, ge=0, description="gallery images that expand a query; 0 for no expansion")
    sharpness: float = Field(0.1, ge=0, description="factor of similarities in the weights of the expansion")
    penalty: float = Field(0.1, ge=0, description="weight of (s_i + s_t)^2")
    text_scale: Literal["text", "image"] = Field("text", description="s_t is divided by |b|, or by |a|")


VARIANTS: dict[str, dict[str, Any]] = {
    "as-released": {"text_scale": "image"},
    "no-expansion": {"neighbours": 0},
    "no-projection": {"directions": 100_000, "styles": 0},
}

TRAIN = {"epochs": 0, "batch_size": 32}

DATASETS = {"scenes": {"clip": "scenes-small", "context": 10}}

TUNE = {"penalty": {"low": 0.0, "high": 0.5}, "style_share": {"low": 0.0, "high": 1.0}}

#: Pictures and texts whose similarities are compared for a and b; as many pairs as their square.
SEEN = 2000


class Basic(nn.Module):
    """A score of query and image over a frozen CLIP; what it knows beforehand stands in buffers."""

    image_mean: Tensor
    text_mean: Tensor
    projection: Tensor
    floors: Tensor

    def __init__(self, config: Config, clip: Clip, names: Mapping[str, list[str]]) -> None:
        super().__init__()
        self.config, self.clip, self.names = config, [clip], names
        self.inputs = Inputs(images={"clip": Frozen(clip)})
        self.register_buffer("image_mean", torch.zeros(clip.dim))
        self.register_buffer("text_mean", torch.zeros(clip.dim))
        self.register_buffer("projection", torch.eye(clip.dim))
        self.register_buffer("floors", -torch.ones(2))  # a, b
        self.known: dict[str, Tensor] = {}  # text vectors: many queries have equal texts

    def prepare(self, corpus: Corpus) -> None:
        """m, m_t, P, a and b."""
        pictures = l2norm(corpus.images["clip"])
        if len(pictures) < 2:
            raise CirbenchError(
                "basic centres pictures by the mean of the training pictures, and this dataset has fewer than two. "
                "Give it a folder: --set train.pictures=DIR."
            )
        subjects, styles = (self.vectors(self.names[kind]) for kind in ("subjects", "styles"))
        self.image_mean.copy_(pictures.double().mean(0))
        self.text_mean.copy_(subjects.double().mean(0))
        self.projection.copy_(projection(subjects, styles, self.config.style_share, self.config.directions))
        # All pairs of some pictures, and of them with their captions.
        chosen = torch.randperm(len(pictures))[:SEEN]
        gallery = pictures[chosen.to(pictures.device)] - self.image_mean
        said = [caption for n in chosen.tolist() for caption in corpus.captions[n][:1]] or self.names["subjects"]
        texts = self.vectors(said[:SEEN]) - self.text_mean
        self.floors.copy_(torch.stack([(gallery @ self.projection @ gallery.T).min(), (texts @ gallery.T).min()]))

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """n strings -> (n, D) of unit length."""
        device = self.image_mean.device
        with torch.no_grad():
            parts = [l2norm(self.clip[0].encode_texts(texts[n : n + 256])) for n in range(0, len(texts), 256)]
        return torch.cat(parts).to(device) if parts else torch.zeros((0, len(self.image_mean)), device=device)

    def text(self, words: str) -> Tensor:
        """(D,) of unit length: the mean of a text beside each subject, on both sides."""
        if words not in self.known:
            beside = self.names["subjects"][: self.config.context]
            said = [f"{s} {words}" for s in beside] + [f"{words} {s}" for s in beside]
            self.known[words] = l2norm(self.vectors(said or [words]).mean(0, keepdim=True))[0]
        return self.known[words]

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        """(B, 2D): x - m and t~ side by side."""
        texts = torch.stack([self.text(words) for words in batch.words])
        return torch.cat([l2norm(batch.reference["clip"]) - self.image_mean, texts - self.text_mean], 1)

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """(N, D): g~."""
        return l2norm(images["clip"]) - self.image_mean

    def adapt(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """(B, 2D), (N, D) -> (B, 2D): x~, expanded by the gallery, and t~."""
        centred, texts = queries.chunk(2, 1)
        image = centred @ self.projection
        count = min(self.config.neighbours, len(gallery))
        if count:
            near = (image @ gallery.T).topk(count, 1)
            weights = torch.cat([torch.ones_like(near.values[:, :1]), near.values], 1).mul(self.config.sharpness).exp()
            rows = torch.cat([centred[:, None], gallery[near.indices]], 1)
            image = (weights[:, :, None] * rows).sum(1) / weights.sum(1, keepdim=True) @ self.projection
        return torch.cat([image, texts], 1)

    def score(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """(B, 2D), (N, D) -> (B, N)."""
        image, text = queries.chunk(2, 1)
        a, b = self.floors
        by_image = ((image @ gallery.T - a) / a.abs()).clamp(min=0)
        by_text = ((text @ gallery.T - b) / (b if self.config.text_scale == "text" else a).abs()).clamp(min=0)
        return by_image * by_text - self.config.penalty * (by_image + by_text) ** 2

    def extra_state(self) -> dict[str, Any]:
        """The subjects beside a query's text."""
        return {"subjects": self.names["subjects"][: self.config.context]}


def projection(subjects: Tensor, styles: Tensor, share: float, most: int) -> Tensor:
    """P (D, D) from (n, D) names of subjects and (k, D) of styles, unit vectors."""
    subjects, styles = subjects.double(), styles.double()
    mean = subjects.mean(0)

    def moment(vectors: Tensor) -> Tensor:
        centred = vectors - mean
        return centred.T @ centred / max(len(vectors), 1)

    contrast = (1 - share) * moment(subjects) - share * moment(styles) + 1e-5
    values, directions = torch.linalg.eigh(contrast)
    # In ascending order. With fewer names than dimensions many values are zero but for rounding.
    kept = directions[:, values > 1e-10 * values[-1]][:, -most:]
    return (kept @ kept.T).float()


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Basic:
    """Nothing is learned; `prepare` fills the buffers."""
    clip = encoders.clip(config.clip)
    if state is not None:
        return Basic(config, clip, {"subjects": list(state.get("subjects", ())), "styles": []})
    subjects = common_phrases(train.captions, config.subjects)
    if not subjects:
        raise CirbenchError(
            "basic takes names of subjects from captions, and this dataset has none. Give it a text file with one "
            "caption or name a line: --set train.captions=names.txt."
        )
    return Basic(config, clip, {"subjects": subjects, "styles": other_words(train.texts, config.styles)})
