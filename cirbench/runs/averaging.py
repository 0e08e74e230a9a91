"""A moving average of the weights: raw weights are trained, their average is evaluated, chosen and kept.

At update n, from 0, with decay d = min(ema, (1 + n) / (10 + n)) (without warm-up d = ema),

    average <- d average + (1 - d) weights,    the average before update 0 being the weights that training starts from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cirbench.runs.checkpoint import to_cpu

__all__ = ["Average", "evaluated"]


class Average:
    """The average of the weights that optimizers train; all other parameters, and buffers, are simply the method's.

    Args:
        method: with the weights that training starts from.
        trained: the parameters of its optimizers.
        decay: < 1.
        warmup: lower the decay of the first updates.
    """

    def __init__(self, method: nn.Module, trained: list[Tensor], decay: float, warmup: bool) -> None:
        self.decay, self.warmup, self.updates = decay, warmup, 0
        chosen = {id(p) for p in trained}
        self.weights: dict[str, Tensor] = {
            name: p for name, p in method.named_parameters()
            if id(p) in chosen and (p.is_floating_point() or p.is_complex())
        }
        # In float32 at least: (1 - d) of a difference is lost in half precision.
        self.means: dict[str, Tensor] = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self.weights.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights; once a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        for name, mean in self.means.items():
            # A weight that was never trained is its own average, to the bit.
            mean.lerp_(self.weights[name].detach().to(mean.dtype), 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def keep(self) -> None:
        """Give the method the average for good."""
        for name, weight in self.weights.items():
            weight.copy_(self.means[name])

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """The method has the average inside the block, and its raw weights behind it."""
        raw = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.keep()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(raw[name])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"means": to_cpu(self.means), "updates": self.updates}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.updates = int(state["updates"])
        for name, mean in self.means.items():
            mean.copy_(state["means"][name])


def evaluated(average: Average | None) -> contextlib.AbstractContextManager[None]:
    """A block in which the method has the weights that are evaluated: the average where there is one."""
    return contextlib.nullcontext() if average is None else average.swapped()
