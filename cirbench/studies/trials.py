"""The point of a sweep that a trial runs.

Its attribute `point` holds it, set as soon as the worker knows. The trial's number would not do: a second try at a
failed point takes a number too, and the point of that number would never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from optuna.trial import FrozenTrial, Trial, TrialState

__all__ = ["placed_point", "point_of", "unplaced", "vacant"]


def placed_point(trial: FrozenTrial | Trial) -> int:
    """The point of a placed trial; in older versions the trial's number."""
    return int(trial.user_attrs.get("point", trial.number))


def unplaced(trial: FrozenTrial) -> bool:
    """Whether a trial was created and has no point yet: its worker is about to set it, or died before."""
    return trial.state == TrialState.RUNNING and not trial.user_attrs.keys() & {"point", "worker", "void"}


def point_of(trial: FrozenTrial) -> int | None:
    """The point of a trial, or None if it is void or not placed yet."""
    return None if "void" in trial.user_attrs or unplaced(trial) else placed_point(trial)


def vacant(trials: Sequence[FrozenTrial], total: int, number: int | None = None) -> int | None:
    """The first point below `total` that no trial has, or None.

    Storages hand numbers out one by one. So two machines that ask at the same moment, each seeing that the other has
    set its point yet, still choose different ones: the lower number has the first.

    Args:
        trials: every trial of the study.
        total: how many points there are.
        number: of the trial to be placed; None for one that is not created yet.
    """
    taken = {point_of(trial) for trial in trials}
    ahead = sum(unplaced(trial) and (number is None or trial.number < number) for trial in trials)
    return next(islice((n for n in range(total) if n not in taken), ahead, None), None)
