"""What the contract asks of a method's `start_epoch`, so that a run that is interrupted and resumed is the same run."""

from __future__ import annotations

from typing import Any

import torch

from cirbench.runs.schedule import epoch_factor
from cirbench.types import MethodError

__all__ = ["check_again", "check_epochs"]

#: Epochs that are looked at.
MOST = 200
#: (factor, parameter -> requires_grad, module -> training mode) of one epoch.
Start = tuple[float, dict[str, bool], dict[str, bool]]


def _started(made: Any, epoch: int, seed: int) -> Start:
    made.train()
    factor = epoch_factor(made, epoch, seed, torch.device("cpu"))
    flags = {name: p.requires_grad for name, p in made.named_parameters()}
    return factor, flags, {name: m.training for name, m in made.named_modules()}


def _difference(a: Start, b: Start) -> str:
    """What differs first, "" where nothing does."""
    if a[0] != b[0]:
        return f"the factor of the rate is {a[0]:g} or {b[0]:g}"
    for what, one, two in (("requires_grad", a[1], b[1]), ("the training mode", a[2], b[2])):
        for name in one:
            if one[name] != two.get(name):
                return f"{what} of {name or 'the method'!r} is {one[name]} or {two.get(name)}"
    return ""


def check_epochs(made: Any, fresh: Any, epochs: int, seed: int) -> None:
    """What `start_epoch` does depends on the epoch alone: a resumed run calls it for a later epoch first.

    Args:
        made, fresh: the method, built twice.
        epochs: of its training.
        seed: of the run.

    Raises:
        MethodError: what it returned, or what depends on earlier calls.
    """
    looked_at = range(min(epochs, MOST))
    forwards = [_started(made, epoch, seed) for epoch in looked_at]
    for epoch in reversed(looked_at):
        if told := _difference(forwards[epoch], _started(fresh, epoch, seed)):
            raise MethodError(
                made.start_epoch, f"what `start_epoch` does at epoch {epoch} depends on the epochs that it was called "
                f"for before: {told}. A resumed run begins with a later epoch: let all depend on the epoch alone."
            )


def check_again(made: Any, epoch: int, seed: int) -> None:
    """Called again after some steps of an epoch, as where a run is resumed, it changes no weight and no buffer.

    Raises:
        MethodError: the first that it changes.
    """
    before = {name: value.clone() for name, value in made.state_dict().items()}
    _started(made, epoch, seed)
    for name, value in made.state_dict().items():
        if not torch.equal(before[name], value):
            raise MethodError(
                made.start_epoch, f"`start_epoch` changes {name!r} when it is called again in the middle of epoch "
                f"{epoch}, as it is where a run is resumed, so an interrupted run would end with other weights. Let it "
                "set modes, requires_grad and the rate alone."
            )
