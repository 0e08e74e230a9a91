"""Sum, the parameter-free composition: q = l2norm(image + text) (CLIP4Cir's `sum`, ARTEMIS' late fusion).

The floor that every learned composition has to beat, over the same encoders, streams, loss and budget. Only the
projections are trained; `zero-shot` trains nothing, and neither does `sum-raw`, where CLIP's vectors keep their own
lengths before they are added.

`clip4cir-1` is CLIP4Cir's first stage (Baldrati et al., CVPR 2022 workshops; ACM TOMM 2023): CLIP itself is trained, in
evaluation mode throughout, on q = l2norm(x + t) of its own vectors, which are not scaled before they are added. Its
differences from the authors' code:
- full precision | fp16 autocast (`train.amp=fp16` on a GPU);
- the last checkpoint | the best on the validation split, which is also reported (`train.selection=test-oracle`);
- several targets of a batch that are hits share the label | the others count as wrong.

`bge-vl` is MegaPairs' composition (Zhou et al., ACL 2025, arXiv 2412.14475) over its plain CLIPs, BAAI/BGE-VL-base and
-large (`--backbone hf-hub:BAAI/BGE-VL-large`): q = l2norm(text + image) of their own vectors, not scaled first. The
texts of FashionIQ and CIRCO are its authors' (`comma`, `megapairs`). Its differences from the authors' code:
- nothing is trained: how their weights were trained is not released;
- texts are cut at CLIP's 77 tokens | the evaluation of FashionIQ asks for 64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cirbench.models.encoders import Encoders
from cirbench.models.two_stream import Streams, build_streams
from cirbench.settings import SCENES_STREAMS, StreamSettings
from cirbench.types import TrainView


class Config(StreamSettings):
    """Encoders, sizes and rates are DWC's."""


VARIANTS: dict[str, dict[str, Any]] = {
    "clip-only": {"streams": "clip"},
    "cnn-only": {"streams": "cnn"},
    "zero-shot": {"streams": "clip", "project": False, "train.epochs": 0},
    "sum-raw": {"streams": "clip", "project": False, "unit_features": False, "train.epochs": 0},
    "clip4cir-1": {
        "streams": "clip", "clip": "RN50x4-quickgelu:openai", "clip_resize": "targetpad", "freeze_clip": False,
        "clip_mode": "eval", "project": False, "unit_features": False, "temperature": 0.01, "optimizer": "adamw",
        "eps": 1e-7, "weight_decay": 0.01, "clip_lr": 2e-6,
        "train.epochs": 100, "train.batch_size": 128, "train.flip": "none",
    },
    "bge-vl": {
        "streams": "clip", "clip": "hf-hub:BAAI/BGE-VL-base", "project": False, "unit_features": False,
        "train.epochs": 0,
    },
}

TRAIN = {"epochs": 50, "batch_size": 32}

#: Rates on `scenes`: the best on `select` of a grid run for every trained method (sweeps/rates.toml).
DATASETS = {
    "fashioniq/clip4cir-1": {"train.form": "four-ways"},
    "fashioniq/bge-vl": {"train.protocol": "fiq-original-keep-comma"},
    "circo/bge-vl": {"train.protocol": "circo-keep-megapairs"},
    "scenes": {**SCENES_STREAMS, "clip_lr": 0.004, "cnn_lr": 0.004, "dropout": 0.2},
    # A small CLIP needs another rate; this one was not tuned.
    "scenes/clip4cir-1": {"clip": "scenes-small", "clip_lr": 1e-4, "train.epochs": 8, "train.batch_size": 64},
    # No such weights are packaged: the composition alone, as in `sum-raw`.
    "scenes/bge-vl": {"clip": "scenes-small"},
}


class Sum(nn.Module):
    """(B, D), (B, D) -> (B, D)."""

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """image + text."""
        return image + text


def build(config: Config, encoders: Encoders, train: TrainView, state: Mapping[str, Any] | None = None) -> Streams:
    """See two_stream.py."""
    return build_streams(config, encoders, train, state, lambda name, dim: Sum())
