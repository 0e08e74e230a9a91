"""The learning rate over training."""

from __future__ import annotations

import math

from cirbench.settings import TrainSettings


def learning_rate(settings: TrainSettings, step: int, steps: int) -> float:
    """Factor of the learning rate at a step, 0-based."""
    factor = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    done = step / max(steps, 1)
    if settings.schedule == "linear":
        factor *= min(1.0, 2 * (1 - done))
    elif settings.schedule == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * done))
    elif settings.schedule == "step":
        factor *= settings.decay_factor ** (step // settings.decay_every)
    return factor
