"""Named fields with defaults, units and bounds; and how command-line text becomes their values."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from cirbench.types import CirbenchError, shown

__all__ = [
    "SCENES_STREAMS", "TUNE", "Field", "Settings", "StreamSettings", "TrainSettings", "like_dwc", "nearest",
    "parse_assignments", "resolve",
]


class Settings(BaseModel):
    """Base of every group of knobs: frozen, no unknown field, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )

    @classmethod
    def enough(cls) -> dict[str, Any]:
        """Field -> the value that is enough for `cirbench check`, for fields whose real values would make it slow.

        Declared as `Field(default, json_schema_extra={"check": value})`.
        """
        return cls._marked("check")

    @classmethod
    def neutral(cls) -> dict[str, Any]:
        """Field -> the value at which it changes nothing, for fields that are newer than existing records.

        Declared as `Field(default, json_schema_extra={"neutral": value})`.
        """
        return cls._marked("neutral")

    @classmethod
    def _marked(cls, mark: str) -> dict[str, Any]:
        extras = {name: info.json_schema_extra for name, info in cls.model_fields.items()}
        return {name: more[mark] for name, more in extras.items() if isinstance(more, dict) and mark in more}

    def identity(self) -> dict[str, Any]:
        """The values that identify a run: all fields except those that are neutral or never affect a result.

        So a new field at its neutral value changes no identity.
        """
        extras = {name: info.json_schema_extra or {} for name, info in type(self).model_fields.items()}
        neutral, out = self.neutral(), {}
        for name, value in self.model_dump().items():
            more = extras[name]
            silent = isinstance(more, dict) and more.get("identity") is False
            if not silent and not (name in neutral and neutral[name] == value):
                out[name] = value
        return out


class TrainSettings(Settings):
    """How a method is trained; everything here is part of a run's identity."""

    epochs: int = Field(
        50, ge=0, le=1_000_000, description="passes over the training triplets; 0 leaves the method as built"
    )
    batch_size: int = Field(
        32, ge=2, le=1_000_000, description="triplets per step; an incomplete last batch is dropped"
    )
    schedule: str = Field(
        "constant", pattern="^(constant|linear|cosine|cosine-after-warmup|step)$",
        description="learning rate over time: constant; decaying to 0 (linear: over the second half; cosine: over all "
        "steps; cosine-after-warmup: from the end of the warm-up); or step, a drop every decay_every steps",
    )
    decay_every: int = Field(50_000, ge=1, description="schedule=step: steps from one drop to the next")
    decay_epochs: int = Field(
        0, ge=0, description="schedule=step: epochs from one drop to the next, instead of decay_every; 0 for that",
        json_schema_extra={"neutral": 0},
    )
    last_decay: int = Field(
        0, ge=0, description="schedule=step: no drop at or after this epoch, the first being 0; 0 for no end",
        json_schema_extra={"neutral": 0},
    )
    decay_factor: float = Field(0.1, gt=0, le=1, description="schedule=step: the rate is multiplied by this at a drop")
    warmup: int = Field(0, ge=0, description="steps over which the learning rate rises linearly from 0")
    clip_norm: float = Field(0.0, ge=0, description="gradient norm is clipped to this; 0 for no clipping")
    flip: str = Field(
        "none", pattern="^(none|joint|independent)$",
        description="random horizontal flips in training: of reference and target together, or each by itself",
    )
    crop: Literal["none", "random", "resized"] = Field(
        "none", description="cuts in training, of every picture by itself: random, `size` out of the larger picture "
        "that an input keeps (`Pixels.stored`), which is cut from the centre in evaluation; resized, a random share of "
        "the area (crop_scale) enlarged or reduced to `size`",
        json_schema_extra={"neutral": "none"},
    )
    crop_scale: tuple[float, float] = Field(
        (0.75, 1.33), description="crop=resized: smallest and largest share of the area, 0 < low <= high; a cut that "
        "does not fit is drawn again",
        json_schema_extra={"neutral": (0.75, 1.33)},  # type: ignore[dict-item]
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of a moving average of the weights, updated once a step; the average is "
        "what is evaluated, chosen and kept; 0 for none", json_schema_extra={"neutral": 0.0},
    )
    ema_warmup: bool = Field(
        True, description="ema: at update n, from 0, the decay is at most (1 + n) / (10 + n)",
        json_schema_extra={"neutral": True},
    )
    amp: str = Field("off", pattern="^(off|bf16|fp16)$", description="autocast precision; fp16 needs CUDA")
    selection: str = Field(
        "last", pattern="^(last|select|test-oracle)$",
        description="which checkpoint is reported: the last; the best on `select`; or the best on `report` itself, "
        "and then every number is marked so",
    )
    protocol: str = Field(
        "", description="protocol whose text form is used in training and whose metric selects; empty for the default"
    )
    form: str = Field(
        "", description="text form used in training, if not the protocol's; of several strings per query one is drawn "
        "every epoch"
    )
    captions: str = Field(
        "", description="text file of further captions, one a line, for methods that learn from captions",
        json_schema_extra={"neutral": ""},
    )
    pictures: str = Field(
        "", description="folder of further pictures, for methods that look at the training pictures beforehand",
        json_schema_extra={"neutral": ""},
    )
    eval_every: int = Field(1, ge=1, description="epochs between evaluations on the split that selects")
    seconds_between_checkpoints: float = Field(
        20.0, ge=0, description="for resuming; 0 writes a checkpoint after every step. No effect on results",
        json_schema_extra={"identity": False},
    )

    @field_validator("crop_scale")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = value
        if not 0 < low <= high:
            raise ValueError("must be two numbers, 0 < low <= high")
        return value


def nearest(name: str, choices: Iterable[str]) -> str:
    """The choice most like `name`, or "" where none is close."""
    written = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(name.lower(), list(written), n=1, cutoff=0.5)
    return written[found[0]] if found else ""


def unknown(what: str, name: str, choices: Iterable[str], then: str = "") -> CirbenchError:
    """The error for a name that does not exist: what, received, nearest, all, what to do."""
    choices = list(choices)
    guess = nearest(name, choices)
    parts = [f"unknown {what} {name!r}."]
    if guess:
        parts.append(f"Did you mean {guess!r}?")
    if choices:
        parts.append(f"Valid: {', '.join(choices)}.")
    if then:
        parts.append(then)
    return CirbenchError(" ".join(parts))


#: A whole number of a field without an upper bound of its own: with more scenes, steps or columns no run would end.
LARGEST = 10_000_000


def _check_size(what: str, name: str, info: FieldInfo, value: object) -> None:
    """Refuse whole numbers beyond anything that ends or fits into memory; a seed may have 63 bits.

    Raises:
        CirbenchError: the field, the value and the bound.
    """
    bounded = any(hasattr(bound, "le") or hasattr(bound, "lt") for bound in info.metadata)
    if bounded or not isinstance(value, int) or isinstance(value, bool):
        return
    most = 2**63 - 1 if "seed" in name else LARGEST
    if abs(value) > most:
        raise CirbenchError(
            f"{what}.{name} = {shown(value)} is too large: a whole number without a bound of its own is at most "
            f"{most:,} ({info.description})."
        )


def parse_assignments(assignments: Sequence[str], scopes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["method.x=1", ...]` -> {scope: {field: value}}; values are JSON where they parse, else text.

    Raises:
        CirbenchError: no `=`, no scope, an unknown scope, or one field set twice to different values.
    """
    out: dict[str, dict[str, Any]] = {scope: {} for scope in scopes}
    for text in assignments:
        key, eq, raw = text.partition("=")
        key, raw = key.strip(), raw.strip()
        if not eq or not key:
            raise CirbenchError(f"--set {text!r} is not of the form scope.field=value, e.g. --set train.epochs=4.")
        scope, dot, name = key.partition(".")
        if not dot or not name:
            raise CirbenchError(
                f"--set {text!r} names no scope. Write {' or '.join(f'{s}.{key}=...' for s in scopes)}."
            )
        if scope not in scopes:
            raise unknown("scope", scope, scopes, f"In --set {text!r}.")
        try:
            value = json.loads(raw)
        except json.JSONDecodeError:
            value = raw
        except (ValueError, RecursionError):  # Python reads no number of thousands of digits, and no endless nesting
            raise CirbenchError(
                f"--set {key}=...: the value, {len(raw):,} characters long, is a number of too many digits or nested "
                "too deeply."
            ) from None
        if name in out[scope] and out[scope][name] != value:
            raise CirbenchError(
                f"--set gives {key} twice: {shown(out[scope][name])} and {shown(value)}. Keep one of them."
            )
        out[scope][name] = value
    return out


def resolve(kind: type[Settings], what: str, *layers: Mapping[str, Any]) -> Settings:
    """`kind` with the layers applied in order, later ones winning.

    Args:
        kind: the settings class.
        what: scope as the user writes it (`method`, `data`, `train`).
        *layers: field -> value.

    Raises:
        CirbenchError: an unknown field (with the nearest one), or a value of the wrong type or range.
    """
    merged: dict[str, Any] = {}
    fields = list(kind.model_fields)
    for layer in layers:
        for name, value in layer.items():
            if name not in kind.model_fields:
                raise unknown(f"field {what}.{name}: {what} has no field", name, fields)
            merged[name] = value
    for name, value in merged.items():
        # Python's true is 1; whoever writes it for a number means something else.
        if isinstance(value, bool) and "bool" not in str(kind.model_fields[name].annotation):
            raise CirbenchError(
                f"{what}.{name} = {str(value).lower()} is not a value of this field "
                f"({kind.model_fields[name].description})."
            )
        _check_size(what, name, kind.model_fields[name], value)
    try:
        made = kind(**merged)
    except CirbenchError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "?"
        info = kind.model_fields.get(name.split(".")[0])
        wanted = f" ({info.description})" if info is not None and info.description else ""
        default = f" The default is {info.default!r}." if info is not None and info.default is not None else ""
        raise CirbenchError(
            f"{what}.{name} = {shown(first.get('input'))}: {first['msg'][0].lower()}{first['msg'][1:]}."
            f"{wanted}{default}"
        ) from None
    except Exception as error:  # a validator of a plugin
        raise CirbenchError(
            f"{kind.__module__}.{kind.__qualname__} fails for these settings: {type(error).__name__}: {error}."
        ) from error
    for name, value in made.model_dump().items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            raise CirbenchError(
                f"{what}.{name} = {shown(value)} cannot be kept in a record: values must be JSON (numbers, texts, "
                "true, false, lists)."
            ) from None
    return made


class StreamSettings(Settings):
    """Fields of methods that compose an image vector with a text vector, over the CLIP stream, the CNN stream or both.

    The defaults are DWC's, so that methods differ only in the composition. `neutral` is the value under
    which a run computes what it computed before the field existed; a method that overrides the field repeats it.
    """

    streams: Literal["both", "clip", "cnn"] = Field("both", description="which streams are trained and ranked with")
    clip: str = Field("RN50-quickgelu:openai", description="CLIP (`cirbench list backbones` has the forms of its name)")
    clip_size: int | None = Field(None, ge=16, description="CLIP's input side in pixels; null for its own")
    freeze_clip: bool = Field(True, description="keep CLIP frozen (its features are then computed once)")
    clip_resize: Literal["crop", "squash", "pad", "targetpad"] | None = Field(
        None, description="how pictures are made square for CLIP; null for the model's own way"
    )
    clip_mode: Literal["train", "eval"] = Field(
        "train", description="freeze_clip=false: eval keeps CLIP's batch statistics and dropout in evaluation mode "
        "while its weights are trained", json_schema_extra={"neutral": "train"},
    )
    project: bool = Field(True, description="learn projections of CLIP's features; false uses them as they are")
    unit_features: bool = Field(True, description="scale vectors of the CLIP stream to unit length before composing")
    cnn: str = Field(
        "resnet50.tv_in1k", description="timm CNN of the CNN stream: NAME.TAG, NAME:FILE, hf-hub:OWNER/NAME"
    )
    cnn_size: int = Field(224, ge=16, description="CNN's input side in pixels")
    cnn_interpolation: Literal["bicubic", "bilinear"] = Field(
        "bicubic", description="interpolation of the CNN's pictures", json_schema_extra={"neutral": "bicubic"}
    )
    cnn_resize: Literal["crop", "squash", "pad"] = Field(
        "crop", description="how pictures are made square for the CNN", json_schema_extra={"neutral": "crop"}
    )
    cnn_pad: Literal["zero", "white"] = Field(
        "zero", description="cnn_resize=pad: colour of what is added", json_schema_extra={"neutral": "zero"}
    )
    cnn_stored: int | None = Field(
        None, ge=16, description="side of the CNN's pictures before `cnn_size` is cut from them, from the centre in "
        "evaluation and in training as train.crop says; null for cnn_size", json_schema_extra={"neutral": None},
    )
    cnn_pretrained: bool = Field(True, description="start the CNN from its pretrained weights")
    clip_dim: int = Field(1024, ge=8, description="D of the CLIP stream")
    cnn_dim: int = Field(1024, ge=8, description="D of the CNN stream, and of its LSTM states")
    word_dim: int = Field(512, ge=4, description="width of a word's embedding before the LSTM")
    cnn_text: Literal["lstm", "bigru", "clip"] = Field(
        "lstm", description="CNN stream: what reads its texts: an LSTM, a GRU in both directions, or the frozen "
        "CLIP, as one vector", json_schema_extra={"neutral": "lstm"},
    )
    vectors: str = Field(
        "", description="CNN stream: file of word vectors (GloVe, fastText) that words start from; empty for none",
        json_schema_extra={"neutral": "", "vectors": True},
    )
    project_text: bool = Field(
        True, description="CNN stream: a linear layer behind the text's vector", json_schema_extra={"neutral": True}
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout rate in projections")
    text_dropout: float = Field(
        0.0, ge=0, lt=1, description="CNN stream: dropout rate of the pooled text, before its linear layer",
        json_schema_extra={"neutral": 0.0},
    )
    pooling: Literal["gem", "gem-map", "plain"] = Field(
        "gem", description="CNN stream: GeM over map and states; or over the map alone, and the state after the last "
        "word; or the map's mean and that state"
    )
    gem_p: float = Field(3.0, gt=0, description="power of GeM pooling, at the start where it is learned")
    gem_learned: bool = Field(True, description="learn the power of GeM pooling", json_schema_extra={"neutral": True})
    loss: Literal["softmax", "soft-triplet"] = Field(
        "softmax", description="in-batch softmax; or log(1 + exp(d_pos - d_neg)) over random triplets (TIRG)"
    )
    triplets: int = Field(3, ge=1, description="soft-triplet: negatives drawn for each query and each target")
    temperature: float = Field(0.07, gt=0, description="tau of the contrastive loss")
    learn_temperature: bool = Field(False, description="learn a scale s per stream, logits = s^2 cos, from s^2 = 1/tau")
    clip_share: float = Field(0.5, ge=0, le=1, description="weight of the CLIP stream's cosine in the final score")
    optimizer: Literal["adam", "adamw", "radam", "sgd"] = Field(
        "adam", description="of both streams; radam with AdamW's decay, SGD with momentum 0.9"
    )
    eps: float = Field(
        1e-8, gt=0, description="epsilon in the denominator of Adam", json_schema_extra={"neutral": 1e-8}
    )
    clip_lr: float = Field(1e-4, gt=0, description="learning rate of the CLIP stream")
    cnn_lr: float = Field(1e-4, gt=0, description="learning rate of the CNN stream")
    backbone_rate: float = Field(1.0, ge=0, description="learning rate of the CNN itself, as a multiple of cnn_lr")
    weight_decay: float = Field(1e-6, ge=0, description="weight decay of both optimisers")


#: What `StreamSettings` methods need on scenes: DWC's sizes, rates and epochs there.
SCENES_STREAMS: Mapping[str, Any] = {
    "clip": "scenes-small", "cnn": "scenes-cnn", "cnn_size": 48, "clip_dim": 256, "cnn_dim": 128, "word_dim": 64,
    "clip_lr": 1e-3, "cnn_lr": 1e-3,
    "train.epochs": 8, "train.batch_size": 64, "train.schedule": "linear", "train.warmup": 30,
}


#: What `cirbench sweep tune` draws from: ranges of continuous fields by the names that methods share. A method with
#: other fields declares `TUNE`. `when`: only where other fields have one of these values.
TUNE: Mapping[str, Mapping[str, Any]] = {
    "temperature": {"low": 0.01, "high": 0.5, "log": True},
    "lr": {"low": 3e-5, "high": 1e-2, "log": True},
    "clip_lr": {"low": 3e-5, "high": 1e-2, "log": True, "when": {"streams": ("both", "clip")}},
    "cnn_lr": {"low": 3e-5, "high": 1e-2, "log": True, "when": {"streams": ("both", "cnn")}},
    "weight_decay": {"low": 1e-7, "high": 1e-2, "log": True},
    "dropout": {"low": 0.0, "high": 0.8},
    "fusion_dropout": {"low": 0.0, "high": 0.8},
    "soft_label_weight": {"low": 0.0, "high": 1.0},
    "soft_label_temperature": {"low": 0.01, "high": 0.5, "log": True},
    "mutual_weight": {"low": 0.01, "high": 1.0, "log": True, "when": {"streams": ("both",)}},
    "clip_share": {"low": 0.1, "high": 0.9, "when": {"streams": ("both",)}},
}


def like_dwc(config: type[StreamSettings], streams: str = "both") -> dict[str, Any]:
    """The overrides that give a rival DWC's encoders, loss, optimiser and budget, and keep its own composition."""
    own = config.model_fields
    shared = {n: f.default for n, f in StreamSettings.model_fields.items() if f.default != own[n].default}
    # Fields that a rival's DATASETS may change as well are repeated here: a variant wins over them. Flips are turned
    # off again where a dataset's texts name left and right (runs/planning.py).
    return {
        **shared, "streams": streams, "loss": "softmax",
        "train.epochs": 50, "train.batch_size": 32, "train.schedule": "constant", "train.form": "",
        "train.flip": "joint", "train.crop": "none", "train.ema": 0.0,
    }
