"""Losses and logs of steps as plain numbers: at once on the CPU, every few steps together from another device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from cirbench.types import Method, MethodError

#: Steps between readings. To read a number of a GPU is to wait until it has caught up, and then it waits for the host.
INTERVAL = {"cpu": 1}
ELSEWHERE = 20

#: What `take_step` returns: name of an optimizer, its loss, logs whose values may lie on a device.
Steps = Sequence[tuple[str, Tensor, Mapping[str, Any]]]


class Readings:
    """What the steps since the last reading yielded.

    Args:
        method: whose `losses` are told of in errors.
        device: of training.
    """

    def __init__(self, method: Method, device: torch.device) -> None:
        self.method, self.every = method, INTERVAL.get(device.type, ELSEWHERE)
        self._waiting: list[tuple[dict[str, Any], Steps, str]] = []

    @property
    def at_once(self) -> bool:
        """Whether a loss is read before its step, so that one that is not finite changes no weight."""
        return self.every == 1

    def add(self, entry: dict[str, Any], steps: Steps, place: str) -> None:
        """Keep a step; `entry["losses"]` is filled when it is read.

        Args:
            entry: a line of the log.
            steps: what `take_step` returned.
            place: where in training this is, for messages.
        """
        self._waiting.append((entry, steps, place))
        if len(self._waiting) >= self.every:
            self.read()

    def read(self) -> None:
        """Fill all lines that wait.

        Raises:
            MethodError: a loss that is not finite; the first, with its place.
        """
        waiting, self._waiting = self._waiting, []
        every = (one for _, steps, _ in waiting for one in steps)
        values = iter(numbers([x for _, loss, logs in every for x in (loss, *logs.values())]))
        for entry, steps, place in waiting:
            found: dict[str, Any] = {}
            for name, _, logs in steps:
                if not math.isfinite(value := next(values)):
                    refuse(self.method, name, value, place)
                found |= {key: _written(next(values)) for key in logs}
            entry["losses"] = found


def refuse(method: Method, name: str, value: float, place: str) -> NoReturn:
    """The error about a loss that is not finite."""
    raise MethodError(
        method.losses, f"the loss of {name!r} is {value} at {place}. Lower its learning rate, add train.warmup or "
        "train.clip_norm, or turn train.amp off."
    )


def checked_logs(method: Method, name: str, logs: Any, place: str, at_once: bool) -> dict[str, Any]:
    """The logs of one loss; tensors of one number become numbers, or else are copied on their device.

    Raises:
        MethodError: not a dict of numbers and tensors of one number.
    """
    out = dict[str, Any]()
    wrong = None if isinstance(logs, Mapping) else type(logs).__name__
    for key, value in logs.items() if isinstance(logs, Mapping) else ():
        single = hasattr(value, "item") and math.prod(getattr(value, "shape", (2,))) == 1
        later = single and not at_once and isinstance(value, Tensor) and not value.is_complex()
        # It may be a weight, which the step is about to change.
        one = value.detach().clone() if later else value.item() if single else value
        if not isinstance(key, str) or not (later or isinstance(one, int | float)):
            wrong = f"{type(value).__name__} under {key!r:.60}"
            break
        out[key] = one
    if wrong:
        raise MethodError(
            method.losses, f"the logs of {name!r} at {place} hold {wrong}; `losses` must yield a dict of names and "
            "numbers."
        )
    return out


def numbers(values: Sequence[Any]) -> list[Any]:
    """Numbers and tensors of one number as plain numbers; those of a device are fetched together."""
    far = [n for n, x in enumerate(values) if isinstance(x, Tensor) and x.device.type != "cpu"]
    out = [x.item() if isinstance(x, Tensor) and x.device.type == "cpu" else x for x in values]
    if far:
        # A single transfer, in the widest type that the device has.
        widest = torch.float32 if values[far[0]].device.type == "mps" else torch.float64
        fetched = torch.stack([values[n].reshape(()).to(widest) for n in far]).tolist()
        for n, one in zip(far, fetched, strict=True):
            out[n] = one if values[n].is_floating_point() else int(one)
    return out


def _written(value: Any) -> Any:
    """JSON has no NaN, and a log must never cost a run."""
    return value if math.isfinite(value) else None
