"""The learning rate over training: by settings, and by a method's own `start_epoch`."""

from __future__ import annotations

import math
from typing import Any, cast

import torch

from cirbench import process
from cirbench.runs.checkpoint import forked
from cirbench.seeds import derive
from cirbench.settings import TrainSettings
from cirbench.types import Method, MethodError, OptionalHooks

__all__ = ["epoch_factor", "learning_rate"]


def learning_rate(settings: TrainSettings, step: int, steps: int, per_epoch: int) -> float:
    """Factor of the learning rate at a step.

    Args:
        settings: of training.
        step: 0-based, over all epochs.
        steps: how many there are in all.
        per_epoch: how many an epoch has, for drops that are counted in epochs.
    """
    factor = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    done = step / max(steps, 1)
    if settings.schedule == "linear":
        factor *= min(1.0, 2 * (1 - done))
    elif settings.schedule == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * done))
    elif settings.schedule == "cosine-after-warmup":
        after = max(step - settings.warmup, 0) / max(steps - settings.warmup, 1)
        factor *= 0.5 * (1 + math.cos(math.pi * after))
    elif settings.schedule == "step":
        factor *= settings.decay_factor ** _drops(settings, step, per_epoch)
    return factor


def _drops(settings: TrainSettings, step: int, per_epoch: int) -> int:
    """How often the rate has dropped before a step."""
    every = settings.decay_epochs * per_epoch or settings.decay_every
    if settings.last_decay:
        step = min(step, settings.last_decay * per_epoch - 1)
    return step // every


def epoch_factor(method: Method, epoch: int, seed: int, device: torch.device) -> float:
    """The factor that a method's `start_epoch` gives the rate of one epoch; 1 without the hook.

    What it draws depends on the seed and the epoch alone, and the draws of training go on as if it had drawn nothing,
    so that calling it once more in the middle of an epoch, where a run is resumed, changes nothing.

    Raises:
        MethodError: it returns anything but None or a finite number >= 0.
    """
    if not hasattr(method, "start_epoch"):
        return 1.0
    hook = cast(OptionalHooks, method).start_epoch
    own = forked(device, derive(seed, "start_epoch", epoch))
    with process.unchanged(hook, f" at the start of epoch {epoch}"), own:
        found: Any = hook(epoch)
    if found is None:
        return 1.0
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found) or found < 0:
        received = f"{found!r:.60}" if isinstance(found, int | float | str) else type(found).__name__
        raise MethodError(
            hook, f"`start_epoch` returned {received} for epoch {epoch}; it must return the factor of this epoch's "
            "learning rate, a finite number >= 0, or None for 1."
        )
    return float(found)
