"""A small `scenes`, small methods on it, and how to run them from a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cirbench.runs import execution, planning
from cirbench.runs.record import Record

DATA = {
    "data.train_scenes": 48, "data.select_scenes": 8, "data.report_scenes": 12, "data.distractors": 12,
}
#: Narrow streams: what is tested does not depend on width.
NARROW = {"clip": "scenes-small", "clip_dim": 32, "cnn_dim": 16, "word_dim": 8}


def plan(method: str, variant: str = "", seed: int = 0, **over: Any) -> planning.Plan:
    """A plan on the small dataset; `over` has `__` for the dot."""
    from cirbench.plugins import find_method

    fields = find_method(method).config.model_fields
    narrow = {f"method.{k}": v for k, v in NARROW.items() if k in fields}
    given = {k.replace("__", "."): v for k, v in over.items()}
    trained = find_method(method).train.get("epochs", 1) > 0
    base = {"train.epochs": 1, "train.batch_size": 32} if trained else {}
    return planning.plan(method, "scenes", variant, seed=seed, over={**DATA, **narrow, **base, **given})


def run(method: str, out: Path, variant: str = "", seed: int = 0, force: bool = False, **over: Any) -> Record:
    """Run it."""
    return execution.run(plan(method, variant, seed, **over), execution.Options(out=out, device="cpu", force=force))
