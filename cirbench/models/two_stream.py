"""Two plain streams around any composition, shared by floors and rivals so that only the composition differs.

CLIP stream: unit-length projections of frozen CLIP features. CNN stream: GeM-pooled feature map and GeM-pooled LSTM
states, each through a linear layer; or, as papers differ, other pooling, a GRU, or texts as the frozen CLIP reads them.
Every stream is trained by in-batch contrast with its own optimiser; the score is the weighted sum of the streams'
cosines.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cirbench.models.encoders import Clip, Cnn, Encoders, ImageEncoder
from cirbench.models.layers import (
    GeM,
    adam,
    contrastive,
    draw_negatives,
    hard_labels,
    l2norm,
    radam,
    sgd,
    side_by_side,
    soft_triplet,
)
from cirbench.models.lstm_text import GruText, LstmText, build_vocabulary
from cirbench.settings import StreamSettings
from cirbench.types import Frozen, Inputs, QueryBatch, TrainBatch, TrainView

#: (stream name, D) -> module from (B, D) image and (B, D) text to (B, D), or to that and the share of the image (B, 1).
Compose = Callable[[str, int], nn.Module]
#: (C, D) -> module from a (B, C, h, w) map and (B, D) text to a (B, C, h, w) map.
ComposeMap = Callable[[int, int], nn.Module]


class ClipVectors(nn.Module):
    """CLIP features as one image vector and one text vector, (B, D), of unit length where the config says so."""

    def __init__(self, config: StreamSettings, clip: Clip | ImageEncoder) -> None:
        super().__init__()
        self.dim, self.unit = config.clip_dim if config.project else clip.dim, config.unit_features
        self.image_fc: nn.Module = nn.Identity()
        self.text_fc: nn.Module = nn.Identity()
        if config.project:
            self.image_fc = nn.Sequential(nn.Linear(clip.dim, self.dim), nn.ReLU(), nn.Dropout(config.dropout))
            self.text_fc = nn.Sequential(nn.Linear(clip.dim, self.dim), nn.ReLU(), nn.Dropout(config.dropout))

    def image(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, D)."""
        return l2norm(self.image_fc(features)) if self.unit else self.image_fc(features)

    def text(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, D)."""
        return l2norm(self.text_fc(features)) if self.unit else self.text_fc(features)


class CnnVectors(nn.Module):
    """A CNN's map and the states of words as one image vector and one text vector, (B, D), not normalised.

    Args:
        config: fields.
        cnn: for pictures.
        words: for texts; None where `reader` reads them.
        reader: a frozen CLIP, whose text features are given in the place of strings.
    """

    words: LstmText | GruText | None

    def __init__(
        self, config: StreamSettings, cnn: Cnn, words: LstmText | GruText | None, reader: Clip | None = None
    ) -> None:
        super().__init__()
        self.dim, self.cnn, self.words = config.cnn_dim, cnn, words
        self.plain, self.states_pooled = config.pooling == "plain", config.pooling == "gem" and words is not None
        if not self.plain:
            self.pool_image = GeM(config.gem_p, learned=config.gem_learned)
        if self.states_pooled:
            self.pool_text = GeM(config.gem_p, learned=config.gem_learned)
        self.text_dropout = nn.Dropout(config.text_dropout)
        self.image_fc = nn.Linear(cnn.info.channels, self.dim)
        self.text_fc: nn.Module = nn.Identity()
        if config.project_text:
            self.text_fc = nn.Linear(self.dim if reader is None else reader.dim, self.dim)

    def image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        return self.image_of_map(self.cnn(pixels))

    def image_of_map(self, feature_map: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, D)."""
        return self.image_fc(feature_map.mean((2, 3)) if self.plain else self.pool_image(feature_map))

    def text(self, texts: list[str] | Tensor) -> Tensor:
        """B strings, or (B, width) of the frozen CLIP -> (B, D); without a layer behind these, (B, width)."""
        if self.words is None:
            return self.text_fc(self.text_dropout(texts))
        states, mask = self.words(texts)
        pooled = self.pool_text(states.transpose(1, 2), mask) if self.states_pooled else self.words.last(states, mask)
        return self.text_fc(self.text_dropout(pooled))


class Streams(nn.Module):
    """A method made of a composition: `Method` of types.py.

    Args:
        config: fields.
        clip, cnn, words: the encoders, None for a stream that is off; an image encoder where no text is read.
        compose: makes the composition of each stream.
        uses_image, uses_text: the inputs that the composition reads; the other is not computed.
        compose_map: makes the CNN stream's composition where it edits the feature map, which is then pooled and
            projected like a target's.
        reader: the frozen CLIP that reads the CNN stream's texts, in the place of `words`.
    """

    def __init__(
        self, config: StreamSettings, clip: Clip | ImageEncoder | None, cnn: Cnn | None,
        words: LstmText | GruText | None, compose: Compose,
        uses_image: bool = True, uses_text: bool = True, compose_map: ComposeMap | None = None,
        reader: Clip | None = None,
    ) -> None:
        super().__init__()
        self.on_map = compose_map is not None
        self.config, self.uses_image, self.uses_text = config, uses_image, uses_text
        self.vectors, self.composers = nn.ModuleDict(), nn.ModuleDict()
        images: dict[str, Any] = {}
        texts: dict[str, Frozen] = {}
        self.trained_clip = clip if clip is not None and not config.freeze_clip else None
        if clip is not None:
            self.vectors["clip"] = ClipVectors(config, clip)
            images["clip"] = Frozen(clip) if self.trained_clip is None else clip.pixels
            if self.trained_clip is None and isinstance(clip, Clip):
                texts["clip"] = Frozen(clip)
        if cnn is not None:
            self.vectors["cnn"] = CnnVectors(config, cnn, words, reader)
            images["cnn"] = cnn.info.pixels
            if reader is not None:
                texts["clip"] = Frozen(reader)
        for name, vectors in self.vectors.items():
            if isinstance(vectors, CnnVectors) and compose_map is not None:
                self.composers[name] = compose_map(vectors.cnn.info.channels, vectors.dim)
            else:
                self.composers[name] = compose(name, int(vectors.dim))  # type: ignore[arg-type]
        self.inputs, self.names = Inputs(images, texts), list(self.vectors)
        #: s of `logits = s^2 cos`: TIRG scales queries and targets by it.
        self.scales = nn.ParameterDict()
        if config.learn_temperature:
            scale = config.temperature**-0.5
            self.scales.update({n: nn.Parameter(torch.tensor(scale)) for n in self.optimizer_names()})
        self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Streams:
        """Training mode, except for a CLIP whose statistics stay fixed (`clip_mode`)."""
        super().train(mode)
        if self.trained_clip is not None and self.config.clip_mode == "eval":
            self.trained_clip.eval()
        return self

    def _image(self, name: str, images: Mapping[str, Tensor]) -> Tensor:
        x = images[name]
        if name == "clip" and self.trained_clip is not None:
            x = self.trained_clip.encode_images(x)
        return self.vectors[name].image(x)  # type: ignore[operator]

    def _text(self, name: str, batch: QueryBatch) -> Tensor:
        if name == "cnn":
            read_words = self.vectors[name].words is not None
            return self.vectors[name].text(batch.words if read_words else batch.text["clip"])  # type: ignore[operator]
        x = batch.text["clip"] if self.trained_clip is None else self.trained_clip.encode_texts(batch.words)
        return self.vectors[name].text(x)  # type: ignore[operator]

    def compose(self, name: str, batch: QueryBatch) -> tuple[Tensor, Tensor | None]:
        """Unit (B, D) of one stream, and the share of the image (B, 1) if the composition has one."""
        vectors = self.vectors[name]
        if self.on_map and isinstance(vectors, CnnVectors):
            edited = self.composers[name](vectors.cnn(batch.reference[name]), self._text(name, batch))
            return l2norm(vectors.image_of_map(edited)), None
        image = self._image(name, batch.reference) if self.uses_image else None
        text = self._text(name, batch) if self.uses_text else None
        out = self.composers[name](image, text)
        return (l2norm(out[0]), out[1]) if isinstance(out, tuple) else (l2norm(out), None)

    def query(self, name: str, batch: QueryBatch) -> Tensor:
        """Unit (B, D) of one stream."""
        return self.compose(name, batch)[0]

    def target(self, name: str, images: Mapping[str, Tensor]) -> Tensor:
        """Unit (N, D) of one stream."""
        return l2norm(self._image(name, images))

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        """(B, D), D of all streams together."""
        return side_by_side({name: self.query(name, batch) for name in self.names}, self.config.clip_share)

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """(N, D), D of all streams together."""
        return side_by_side({name: self.target(name, images) for name in self.names}, self.config.clip_share)

    def losses(self, batch: TrainBatch) -> Iterator[tuple[str, Tensor, Mapping[str, float | Tensor]]]:
        """In-batch contrast or random triplets, stream by stream."""
        for name in self.optimizer_names():
            loss = self.matching(name, self.query(name, batch), self.target(name, batch.target), batch.positives)
            yield name, loss, {f"{name}/{self.kind_of_loss}": loss.detach()}

    @property
    def kind_of_loss(self) -> str:
        """What logs call the loss of `matching`."""
        return "triplet" if self.config.loss == "soft-triplet" else "contrastive"

    def matching(self, name: str, queries: Tensor, targets: Tensor, positives: Tensor) -> Tensor:
        """The loss of a stream's unit queries (B, D) and unit targets (B, D), of which (B, B) bool are hits."""
        temperature: float | Tensor = self.config.temperature
        if name in self.scales:
            temperature = self.scales[name].square().reciprocal()
        if self.config.loss == "soft-triplet":
            scale = temperature**-0.5
            return soft_triplet(scale * queries, scale * targets, draw_negatives(positives, self.config.triplets))
        return contrastive(queries, targets, hard_labels(positives).to(queries.dtype), temperature)

    def contrasts(self, batch: TrainBatch) -> dict[str, tuple[Tensor, Tensor, float]]:
        """Stream -> unit queries (B, D), unit targets (B, D), temperature: what `losses` compares."""
        return {
            name: (
                self.query(name, batch), self.target(name, batch.target),
                float(self.scales[name].detach()) ** -2 if name in self.scales else self.config.temperature,
            )
            for name in self.optimizer_names()
        }

    def _groups(self, name: str) -> list[dict[str, Any]]:
        """Parameter groups of a stream: the CNN itself at its own rate, then everything else."""
        modules: list[nn.Module] = [self.vectors[name], self.composers[name]]
        if name == "clip" and self.trained_clip is not None:
            modules.append(self.trained_clip)
        vectors = self.vectors[name]
        slow: set[int] = set()
        if isinstance(vectors, CnnVectors) and self.config.backbone_rate != 1:
            slow = {id(p) for p in vectors.cnn.parameters()}
        every = [p for m in modules for p in m.parameters() if p.requires_grad]
        rest = [p for p in every if id(p) not in slow]
        if name in self.scales:
            rest.append(self.scales[name])
        rate = (self.config.clip_lr if name == "clip" else self.config.cnn_lr) * self.config.backbone_rate
        groups: list[dict[str, Any]] = [{"params": rest}] if rest else []
        return [*groups, {"params": [p for p in every if id(p) in slow], "lr": rate}] if slow else groups

    def optimizer_names(self) -> list[str]:
        """Streams with parameters to train."""
        return [n for n in self.names if any(p.requires_grad for p in self.vectors[n].parameters())
                or any(p.requires_grad for p in self.composers[n].parameters())
                or (n == "clip" and self.trained_clip is not None)]

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One for each trained stream."""
        config, out = self.config, dict[str, torch.optim.Optimizer]()
        for name in self.optimizer_names():
            groups, lr = self._groups(name), config.clip_lr if name == "clip" else config.cnn_lr
            if config.optimizer == "sgd":
                out[name] = sgd(groups, lr, config.weight_decay)
            elif config.optimizer == "radam":
                out[name] = radam(groups, lr, config.weight_decay, config.eps)
            else:
                out[name] = adam(groups, lr, config.weight_decay, config.eps, config.optimizer == "adamw")
        return out

    def extra_state(self) -> dict[str, Any]:
        """The vocabulary of the CNN stream's words."""
        cnn = self.vectors["cnn"] if "cnn" in self.names else None
        words = cnn.words if isinstance(cnn, CnnVectors) else None
        return {"vocabulary": words.vocabulary} if words is not None else {}


class WeightedStreams(Streams):
    """Streams whose composition also returns the share of the image."""

    def modality_weights(self, batch: QueryBatch) -> dict[str, Tensor]:
        """Stream -> (B,) share of the image."""
        shares = {name: self.compose(name, batch)[1] for name in self.names}
        return {name: share[:, 0] for name, share in shares.items() if share is not None}


def build_streams(
    config: StreamSettings, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None, compose: Compose,
    uses_image: bool = True, uses_text: bool = True, kind: type[Streams] = Streams,
    compose_map: ComposeMap | None = None,
) -> Streams:
    """The streams of a config around a composition; `kind` is `Streams` or a subclass with more outputs."""
    clip: Clip | ImageEncoder | None = None
    cnn = words = reader = None
    if config.streams != "cnn":
        if uses_text or not config.freeze_clip:
            clip = encoders.clip(config.clip, config.freeze_clip, config.clip_size)
        else:
            clip = encoders.image(config.clip, config.clip_size)
        if config.clip_resize not in (None, clip.pixels.resize):
            clip = copy.copy(clip)  # other preprocessing, the same weights
            clip.pixels = dataclasses.replace(clip.pixels, resize=str(config.clip_resize))
    if config.streams != "clip":
        cnn = encoders.cnn(config.cnn, config.cnn_size, config.cnn_pretrained)
        pixels = dataclasses.replace(
            cnn.info.pixels, interpolation=config.cnn_interpolation, resize=config.cnn_resize, pad=config.cnn_pad,
            stored=config.cnn_stored,
        )
        cnn.info = dataclasses.replace(cnn.info, pixels=pixels)
        if config.cnn_text == "clip":
            reader = encoders.clip(config.clip)
        else:
            vocabulary = state["vocabulary"] if state else build_vocabulary(train.texts)
            words = encoders.words(vocabulary, config.word_dim, config.cnn_dim, config.cnn_text, config.vectors)
    return kind(config, clip, cnn, words, compose, uses_image, uses_text, compose_map, reader)
