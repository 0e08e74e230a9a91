"""DWC, Dynamic Weighted Combiner for Mixed-Modal Image Retrieval (Huang et al., AAAI 2024, arXiv 2312.06179).

Idea: image and text do not matter equally in every query. The *Editable Modality De-equalizer* (EMD) edits each
modality using the other and learns one weight per query between them. The *soft-similarity label generator* (SSG)
replaces one-hot labels by labels that reflect which targets of a batch look alike. Two streams, frozen CLIP features
and a CNN trained end to end, teach each other and rank by the weighted sum of their cosines.

Where the authors' released code departs from its apparent intent, the intended behaviour is our default and theirs is
the variant `as-released` (ours | theirs):
- the teacher of mutual enhancement compares queries with *targets* | with reference images (`teacher_image`);
- soft labels carry no gradient | they do (`detach_soft_labels`);
- padding is not attended to, pooled or normalised over | it is, so a query depends on its batch (`padding_mask`);
- reference and target are flipped together | each by itself (`train.flip`);
- the CNN's pictures are normalised as in its pretraining | as in CLIP's (`cnn_statistics`);
- CLIP and CNN have input sizes of their own | one size for both (`clip_size`, `cnn_size`; not set by the variant);
- words of a text's template are in the vocabulary | unknown words, since it is that of bare captions (no field).
Not followed in any variant: choosing the epoch on the test set (that is `train.selection=test-oracle`), layers that are
allocated and never used, and a second pass of the reference through the CNN that only moves batch statistics.
Shapes: B queries, D features, L words, C channels, h x w regions. Letters: V the CNN's map, W the words' states, f_I
and f_T the edited image and text, lambda the weight between them, q the query, t a target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from cirbench.models.encoders import Clip, Cnn, Encoders
from cirbench.models.layers import (
    GeM,
    Inception1d,
    Inception2d,
    adam,
    composition,
    contrastive,
    distillation,
    gate,
    hard_labels,
    l2norm,
    side_by_side,
    similarities,
)
from cirbench.models.lstm_text import LstmText, build_vocabulary
from cirbench.settings import SCENES_STREAMS, Field, Settings
from cirbench.types import CirbenchError, Explanation, Frozen, Inputs, Pixels, QueryBatch, TrainBatch, TrainView


class Config(Settings):
    """Every knob of DWC, with the released code's value as default; the list above says where not."""

    streams: Literal["both", "clip", "cnn"] = Field("both", description="which streams are trained and ranked with")
    clip: str = Field("RN50-quickgelu:openai", description="CLIP (`cirbench list backbones` has the forms of its name)")
    clip_size: int | None = Field(None, ge=16, description="CLIP's input side in pixels; null for its own")
    freeze_clip: bool = Field(True, description="keep CLIP frozen (its features are then computed once)")
    cnn: str = Field("resnet50.tv_in1k", description="timm CNN of the CNN stream")
    cnn_size: int = Field(224, ge=16, description="CNN's input side in pixels")
    cnn_pretrained: bool = Field(True, description="start the CNN from its pretrained weights")
    cnn_statistics: Literal["imagenet", "clip", "model"] = Field(
        "imagenet", description="mean and standard deviation that normalise the CNN's pictures"
    )
    clip_dim: int = Field(1024, ge=8, description="D of the CLIP stream")
    cnn_dim: int = Field(1024, ge=8, multiple_of=8, description="D of the CNN stream, and of its LSTM states")
    word_dim: int = Field(512, ge=4, description="width of a word's embedding before the LSTM")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout rate in projections, gates and the weight")
    gem_p: float = Field(3.0, gt=0, description="initial power of GeM pooling")
    word_temperature: float = Field(7.0, gt=0, description="temperature of the softmax over words, per region")
    region_temperature: float = Field(4.0, gt=0, description="temperature of the softmax over regions, per word")
    padding_mask: bool = Field(True, description="hide padding from attention, convolution and pooling")
    editors: Literal["both", "image", "text", "none"] = Field("both", description="modalities that are edited (EMD)")
    weighting: Literal["learned", "constant", "per-channel"] = Field(
        "learned", description="lambda between the modalities: one per query, a constant, or one per channel (EMD)"
    )
    modality_weight: float = Field(0.5, ge=0, le=1, description="share of the image if the weight is constant")
    unit_parts: bool = Field(False, description="scale f_I and f_T to unit length before they are weighted")
    fusion: Literal["emd", "sum", "concat", "hadamard", "tirg", "combiner"] = Field(
        "emd", description="how f_I and f_T become q: EMD's weighted sum, or another composition (layers.py)"
    )
    soft_label_weight: float = Field(0.2, ge=0, le=1, description="share of soft labels (SSG); 0 for hard labels")
    temperature: float = Field(0.07, gt=0, description="tau of the contrastive loss")
    soft_label_temperature: float = Field(0.07, gt=0, description="tau of the soft labels")
    soft_label_source: Literal["target", "reference", "text", "teacher", "uniform"] = Field(
        "target", description="what softens labels: targets, references, texts, the other stream's targets, or none"
    )
    soft_label_similarity: Literal["dot", "cosine", "euclidean", "gaussian"] = Field(
        "dot", description="similarity of two of them; the vectors have unit length, so dot and cosine agree"
    )
    soft_label_width: float = Field(1.0, gt=0, description="sigma of the Gaussian similarity")
    detach_soft_labels: bool = Field(True, description="no gradient through soft labels")
    contrastive_weight: float = Field(1.0, ge=0, description="weight of the contrastive loss")
    contrastive_direction: Literal["query-to-target", "symmetric"] = Field(
        "query-to-target", description="softmax over targets per query, or also over queries per target (mean of both)"
    )
    mutual_weight: float = Field(1.0, ge=0, description="weight of mutual enhancement between the streams; 0 for none")
    mutual_scale: float = Field(10.0, gt=0, description="similarities are multiplied by this before its softmax")
    teacher_image: Literal["target", "reference"] = Field(
        "target", description="images that the teacher compares queries with"
    )
    clip_share: float = Field(0.5, ge=0, le=1, description="weight of the CLIP stream's cosine in the final score")
    clip_lr: float = Field(1e-4, gt=0, description="learning rate of the CLIP stream (Adam)")
    cnn_lr: float = Field(1e-4, gt=0, description="learning rate of the CNN stream (Adam)")
    weight_decay: float = Field(1e-6, ge=0, description="weight decay of both optimisers")


VARIANTS: dict[str, dict[str, Any]] = {
    # Parts removed.
    "no-emd": {"editors": "none", "weighting": "constant"},
    "no-ssg": {"soft_label_weight": 0.0},
    "no-mutual": {"mutual_weight": 0.0},
    "bare": {"editors": "none", "weighting": "constant", "soft_label_weight": 0.0, "mutual_weight": 0.0},
    "clip-only": {"streams": "clip"},
    "cnn-only": {"streams": "cnn"},
    # Editors, and the weight between the modalities.
    "no-editors": {"editors": "none"},
    "image-editor": {"editors": "image"},
    "text-editor": {"editors": "text"},
    "fixed-lambda": {"weighting": "constant"},
    "lambda-image": {"weighting": "constant", "modality_weight": 1.0},
    "lambda-text": {"weighting": "constant", "modality_weight": 0.0},
    "lambda-per-channel": {"weighting": "per-channel"},
    "unit-parts": {"unit_parts": True},
    # Another composition in place of EMD, with DWC's losses.
    **{f"fusion-{other}": {"editors": "none", "fusion": other}
       for other in ("sum", "concat", "hadamard", "tirg", "combiner")},
    # Soft labels.
    **{f"ssg-{weight}": {"soft_label_weight": weight} for weight in (0.1, 0.3, 0.5, 1.0)},
    **{f"ssg-{likeness}": {"soft_label_similarity": likeness} for likeness in ("euclidean", "gaussian")},
    **{f"ssg-{source}": {"soft_label_source": source} for source in ("reference", "text", "teacher", "uniform")},
    "ssg-gradient": {"detach_soft_labels": False},
    # Losses, and the released code's other readings.
    "symmetric": {"contrastive_direction": "symmetric"},
    "mutual-reference": {"teacher_image": "reference"},
    "mutual-tau-1": {"mutual_scale": 1.0},
    "clip-share-0.3": {"clip_share": 0.3},
    "clip-share-0.7": {"clip_share": 0.7},
    "clip-statistics": {"cnn_statistics": "clip"},
    "padding-as-words": {"padding_mask": False},
    "as-released": {
        "teacher_image": "reference", "detach_soft_labels": False, "padding_mask": False,
        "cnn_statistics": "clip", "train.flip": "independent",
    },
}

#: The release's batches; it runs 201 epochs and keeps the best on the test set, which is a recipe of `reproduce`.
TRAIN = {"epochs": 50, "batch_size": 32}

#: What a dataset needs beyond the release's values. `scenes` is sized for two CPU cores.
#: There the release's weight of mutual enhancement lowers R@1 in so short a training (the teacher's softmax is softer
#: than the contrastive one); on `select`, 0.1 was chosen over 1 and over scale 30 with weight 1. The rates are the
#: best on `select` of a grid run for every trained method (sweeps/rates.toml).
DATASETS = {"scenes": {**SCENES_STREAMS, "clip_lr": 0.004, "cnn_lr": 0.004, "dropout": 0.2, "mutual_weight": 0.1}}


#: Vectors that a loss compares, unit (B, D) each: `query`, `target`, and if needed `reference` and `text`.
Vectors = dict[str, Tensor]
Logs = dict[str, Tensor]


class _Stream(Protocol):
    """The interface of both streams; inputs are what `Dwc.image` and `Dwc.text` return."""

    def query(self, image: Tensor, text: Any, /) -> tuple[Tensor, Tensor | None]: ...
    def target(self, image: Tensor, /) -> Tensor: ...
    def text_alone(self, text: Any, /) -> Tensor: ...


def edited(config: Config) -> tuple[bool, bool]:
    """Whether EMD edits the image, and the text."""
    return config.editors in ("both", "image"), config.editors in ("both", "text")


class Combine(nn.Module):
    """Adaptive weighting: q = l2norm(lambda f_I + (1 - lambda) f_T), lambda = sigmoid(MLP([f_I; f_T])).

    With another `fusion` it is that composition.
    """

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__()
        self.config = config
        if config.fusion != "emd":
            self.other = composition(config.fusion, dim, config.dropout)
        elif config.weighting != "constant":
            self.weight = gate(2 * dim, dim, 1 if config.weighting == "learned" else dim, config.dropout)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """f_I (B, D), f_T (B, D) -> unit q (B, D); lambda (B, 1) or (B, D), None if a fusion has none."""
        if self.config.unit_parts:
            image, text = l2norm(image), l2norm(text)
        if self.config.fusion != "emd":
            query, share = self.other(image, text)
            return l2norm(query), share
        if self.config.weighting == "constant":
            weight = image.new_full((image.shape[0], 1), self.config.modality_weight)
        else:
            weight = self.weight(torch.cat([image, text], 1))
        return l2norm(weight * image + (1 - weight) * text), weight


class ClipStream(nn.Module):
    """Pooled CLIP features (B, width) -> per-channel gates, the editors of this stream -> weighted sum."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        d = config.clip_dim
        self.edits_image, self.edits_text = edited(config)
        self.img_fc = nn.Sequential(nn.Linear(width, d), nn.ReLU(), nn.Dropout(config.dropout))
        self.txt_fc = nn.Sequential(nn.Linear(width, d), nn.ReLU(), nn.Dropout(config.dropout))
        if self.edits_image:
            self.gate_image = gate(2 * d, d, d, config.dropout)
        if self.edits_text:
            self.gate_text = gate(2 * d, d, d, config.dropout)
        self.combine = Combine(config, d)

    def target(self, image: Tensor) -> Tensor:
        """t (N, D), through the same layer as reference images."""
        return l2norm(self.img_fc(image))

    def text_alone(self, text: Tensor) -> Tensor:
        """w (B, D)."""
        return l2norm(self.txt_fc(text))

    def query(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """f_I = g_I i and f_T = g_T w, the gates g of both [i; w]; then q (B, D) and lambda."""
        i, w = self.target(image), self.text_alone(text)
        both = torch.cat([i, w], 1)
        f_i = self.gate_image(both) * i if self.edits_image else i
        f_t = self.gate_text(both) * w if self.edits_text else w
        return self.combine(f_i, f_t)


class CnnStream(nn.Module):
    """Feature map V and LSTM states W -> cross attention -> image and text editors -> weighted sum."""

    def __init__(self, config: Config, cnn: Cnn, text: LstmText) -> None:
        super().__init__()
        d, c, self.config = config.cnn_dim, cnn.info.channels, config
        self.edits_image, self.edits_text = edited(config)
        self.cnn, self.text = cnn, text
        self.img_fc, self.txt_fc = nn.Linear(c, d), nn.Linear(d, d)
        self.pool_target, self.pool_image, self.pool_text = GeM(config.gem_p), GeM(config.gem_p), GeM(config.gem_p)
        if self.edits_image or self.edits_text:
            self.to_words = Inception2d(c, d)
        if self.edits_image:
            self.mask_image, self.words_to_image = Inception2d(2 * d, c), Inception2d(d, c)
        if self.edits_text:
            self.mask_text, self.image_to_words = Inception1d(2 * d, d), Inception1d(d, d)
        self.combine = Combine(config, d)

    def words(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """B strings -> W (B, L, D), and which of them are real words, (B, L) bool."""
        return self.text(texts, padded_as_words=not self.config.padding_mask)

    def target(self, feature_map: Tensor) -> Tensor:
        """(N, C, h, w) -> t (N, D)."""
        return l2norm(self.img_fc(self.pool_target(feature_map)))

    def text_alone(self, texts: list[str]) -> Tensor:
        """B strings -> (B, D)."""
        words, mask = self.words(texts)
        return l2norm(self.txt_fc(self.pool_text(words.transpose(1, 2), mask)))

    def attend(self, v: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cross attention between words W (B, L, D) and regions of the map V (B, C, h, w).

        Returns:
            V~, the map at the words' width (B, D, h, w); S, the attended words of each region (B, D, h, w); R, the
            attended regions of each word (B, D, L); A, their affinities (B, L, h*w).
        """
        v = self.to_words(v).relu()
        flat = v.flatten(2)
        affinity = words @ flat
        over_words = (affinity / self.config.word_temperature).masked_fill(~mask[:, :, None], -torch.inf).softmax(1)
        over_regions = (affinity / self.config.region_temperature).softmax(2)
        said = (words.transpose(1, 2) @ over_words).view_as(v)
        seen = flat @ over_regions.transpose(1, 2)
        return v, said, seen, affinity

    def edit(self, v: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """EMD's editors: f_I (B, D), f_T (B, D), and the maps that explain them."""
        maps: dict[str, Tensor] = {"energy": v.square().mean(1)}
        edited_v, edited_w = v, words.transpose(1, 2)
        if self.edits_image or self.edits_text:
            v_words, said, seen, affinity = self.attend(v, words, mask)
            maps["affinity"] = affinity.masked_fill(~mask[:, :, None], -torch.inf).amax(1).view_as(v[:, 0])
        if self.edits_image:  # M_I = sigmoid(Inc([V~; S])), E_I = M_I V + ReLU(Inc(S))
            keep = self.mask_image(torch.cat([v_words, said], 1)).sigmoid()
            edited_v = keep * v + self.words_to_image(said).relu()
            maps["gate"] = keep.mean(1)
        if self.edits_text:  # M_T = sigmoid(Inc([W; R])), E_T = M_T W + ReLU(Inc(R))
            keep = self.mask_text(torch.cat([edited_w, seen], 1), mask).sigmoid()
            edited_w = keep * edited_w + self.image_to_words(seen, mask).relu()
            maps["words"] = keep.mean(1)
        return self.img_fc(self.pool_image(edited_v)), self.txt_fc(self.pool_text(edited_w, mask)), maps

    def query(self, feature_map: Tensor, texts: list[str]) -> tuple[Tensor, Tensor | None]:
        """(B, C, h, w), B strings -> q (B, D) and lambda."""
        image, text, _ = self.edit(feature_map, *self.words(texts))
        return self.combine(image, text)


class Dwc(nn.Module):
    """Both streams, their losses and their joint embedding; `clip` and `cnn` exist if the stream is on."""

    clip: ClipStream
    cnn: CnnStream

    def __init__(self, config: Config, clip: Clip | None, cnn: Cnn | None, text: LstmText | None) -> None:
        super().__init__()
        self.config = config
        self.streams: dict[str, _Stream] = {}
        images: dict[str, Pixels | Frozen] = {}
        texts: dict[str, Frozen] = {}
        # A frozen CLIP is not part of the module: its features come from the cache.
        self.trained_clip = clip if clip is not None and not config.freeze_clip else None
        if clip is not None:
            self.clip = self.streams["clip"] = ClipStream(config, clip.dim)
            images["clip"] = clip.pixels if self.trained_clip is not None else Frozen(clip)
            if self.trained_clip is None:
                texts["clip"] = Frozen(clip)
        if cnn is not None and text is not None:
            self.cnn = self.streams["cnn"] = CnnStream(config, cnn, text)
            images["cnn"] = cnn.info.pixels
        self.inputs = Inputs(images, texts)
        if config.soft_label_source == "teacher" and len(self.streams) < 2:
            raise CirbenchError("method.soft_label_source=teacher needs the other stream: set method.streams=both.")
        self.to(memory_format=torch.channels_last)

    def image(self, stream: str, images: Mapping[str, Tensor]) -> Tensor:
        """A stream's input for a picture: (B, width) of CLIP, or the CNN's map V (B, C, h, w)."""
        if stream == "cnn":
            return self.cnn.cnn(images["cnn"])
        return images["clip"] if self.trained_clip is None else self.trained_clip.encode_images(images["clip"])

    def text(self, stream: str, batch: QueryBatch) -> Tensor | list[str]:
        """A stream's input for a text: (B, width) of CLIP, or the B strings."""
        if stream == "cnn":
            return batch.words
        return batch.text["clip"] if self.trained_clip is None else self.trained_clip.encode_texts(batch.words)

    def query(self, stream: str, batch: QueryBatch) -> tuple[Tensor, Tensor | None]:
        """q, unit (B, D) of one stream, and its lambda."""
        return self.streams[stream].query(self.image(stream, batch.reference), self.text(stream, batch))

    def target(self, stream: str, images: Mapping[str, Tensor]) -> Tensor:
        """t, unit (N, D) of one stream."""
        return self.streams[stream].target(self.image(stream, images))

    def encode_queries(self, batch: QueryBatch) -> Tensor:
        """(B, D), D of both streams together."""
        return side_by_side({name: self.query(name, batch)[0] for name in self.streams}, self.config.clip_share)

    def encode_images(self, images: Mapping[str, Tensor]) -> Tensor:
        """(N, D), D of both streams together."""
        return side_by_side({name: self.target(name, images) for name in self.streams}, self.config.clip_share)

    def labels(self, compared: Tensor, positives: Tensor) -> Tensor:
        """SSG: (B, D), (B, B) bool -> (B, B); p = a softmax_j(sim(x_i, x_j) / tau) + (1 - a) y, y the hard labels.

        x are the targets themselves (t_i . t_j), unless `soft_label_source` names others.
        """
        hard, share = hard_labels(positives).to(compared.dtype), self.config.soft_label_weight
        if share == 0:
            return hard
        if self.config.soft_label_source == "uniform":
            return share / len(hard) + (1 - share) * hard
        if self.config.detach_soft_labels:
            compared = compared.detach()
        alike = similarities(compared, self.config.soft_label_similarity, self.config.soft_label_width)
        return share * (alike / self.config.soft_label_temperature).softmax(1) + (1 - share) * hard

    def _vectors(self, name: str, batch: TrainBatch) -> Vectors:
        """Vectors of one stream, with references and texts only if a loss compares them."""
        stream, used = self.streams[name], {self.config.teacher_image, self.config.soft_label_source}
        image, text = self.image(name, batch.reference), self.text(name, batch)
        out = {"query": stream.query(image, text)[0], "target": self.target(name, batch.target)}
        if "reference" in used:
            out["reference"] = stream.target(image)
        if "text" in used:
            out["text"] = stream.text_alone(text)
        return out

    def _loss(self, name: str, own: Vectors, other: Vectors | None, positives: Tensor) -> tuple[str, Tensor, Logs]:
        """One stream's loss, contrastive and mutual enhancement; `other` is the stream that teaches it."""
        config, q, t = self.config, own["query"], own["target"]
        compared = own.get(config.soft_label_source, t)
        if config.soft_label_source == "teacher" and other is not None:
            compared = other["target"].detach()
        con = contrastive(q, t, self.labels(compared, positives), config.temperature)
        if config.contrastive_direction == "symmetric":
            con = (con + contrastive(t, q, self.labels(compared, positives.T), config.temperature)) / 2
        loss, logs = config.contrastive_weight * con, {f"{name}/contrastive": con.detach()}
        if other is not None and config.mutual_weight:
            mutual = distillation(other["query"] @ other[config.teacher_image].T, q @ t.T, config.mutual_scale)
            loss, logs[f"{name}/mutual"] = loss + config.mutual_weight * mutual, mutual.detach()
        return name, loss, logs

    def losses(self, batch: TrainBatch) -> Iterator[tuple[str, Tensor, Logs]]:
        """The CLIP stream against the CNN stream, a step, then the CNN stream against the stepped CLIP stream."""
        uses_teacher = self.config.mutual_weight > 0 or self.config.soft_label_source == "teacher"
        taught = len(self.streams) == 2 and uses_teacher
        # Computed once: the CLIP stream's step does not change the CNN stream.
        cnn = self._vectors("cnn", batch) if "cnn" in self.streams else None
        if "clip" in self.streams:
            yield self._loss("clip", self._vectors("clip", batch), cnn if taught else None, batch.positives)
        if cnn is not None:
            with torch.no_grad():
                clip = self._vectors("clip", batch) if taught else None
            yield self._loss("cnn", cnn, clip, batch.positives)

    def contrasts(self, batch: TrainBatch) -> dict[str, tuple[Tensor, Tensor, float]]:
        """Stream -> unit queries (B, D), unit targets (B, D), temperature: what the contrastive loss compares."""
        tau = self.config.temperature
        return {name: (self.query(name, batch)[0], self.target(name, batch.target), tau) for name in self.streams}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One per stream."""
        out: dict[str, torch.optim.Optimizer] = {}
        if "clip" in self.streams:
            trained = [] if self.trained_clip is None else list(self.trained_clip.parameters())
            out["clip"] = adam([*self.clip.parameters(), *trained], self.config.clip_lr, self.config.weight_decay)
        if "cnn" in self.streams:
            out["cnn"] = adam(self.cnn.parameters(), self.config.cnn_lr, self.config.weight_decay)
        return out

    def modality_weights(self, batch: QueryBatch) -> dict[str, Tensor]:
        """Stream -> (B,) share of the image; the CNN stream's image branch already contains text."""
        shares = {name: self.query(name, batch)[1] for name in self.streams}
        return {name: share.mean(1) for name, share in shares.items() if share is not None}

    def explain(self, batch: QueryBatch) -> Explanation:
        """Words weighted by the text editor, and maps over the reference picture, all from the CNN stream."""
        if "cnn" not in self.streams:
            return Explanation()
        _, _, maps = self.cnn.edit(self.image("cnn", batch.reference), *self.cnn.words(batch.words))
        if "gate" in maps:
            maps["gate x feature"] = maps["gate"] * maps["energy"]
        words = [
            [(word, float(kept)) for word, kept in zip(self.cnn.text.words(text), row, strict=False)]
            for text, row in zip(batch.words, maps.pop("words", ()), strict=False)
        ]
        return Explanation(words, maps)

    def extra_state(self) -> dict[str, Any]:
        """The vocabulary, without which the word embeddings are useless."""
        return {"vocabulary": self.cnn.text.vocabulary} if "cnn" in self.streams else {}


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Dwc:
    """A DWC for this training set; `state` is `extra_state` of a checkpoint."""
    clip = encoders.clip(config.clip, config.freeze_clip, config.clip_size) if config.streams != "cnn" else None
    if config.streams == "clip":
        return Dwc(config, clip, None, None)
    vocabulary = state["vocabulary"] if state else build_vocabulary(train.texts)
    cnn = encoders.cnn(config.cnn, config.cnn_size, config.cnn_pretrained, config.cnn_statistics)
    return Dwc(config, clip, cnn, encoders.lstm(vocabulary, config.word_dim, config.cnn_dim))
