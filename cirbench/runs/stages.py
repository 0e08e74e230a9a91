"""Methods in two stages: `after:METHOD VARIANT` stands for the CLIP that a run of another method trains first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from cirbench.runs import planning
from cirbench.runs.planning import Plan
from cirbench.types import CirbenchError

__all__ = ["AFTER", "first_stages", "settled", "started"]

AFTER = "after:"


def first_stages(planned: Plan) -> dict[str, Plan]:
    """Field of the method -> the run whose CLIP it wants: on the same data, with the same seed.

    Raises:
        CirbenchError: no such method or variant, or one without a CLIP of its own.
    """
    out: dict[str, Plan] = {}
    for field, value in planned.config.model_dump().items():
        if not isinstance(value, str) or not value.startswith(AFTER):
            continue
        name, _, variant = value.removeprefix(AFTER).strip().partition(" ")
        if not name:
            raise CirbenchError(
                f"method.{field} = {value!r} names no method. Write {AFTER}METHOD or {AFTER}METHOD VARIANT."
            )
        try:
            first = planning.plan(
                name, _name(planned), variant.strip(), seed=planned.seed, root=planned.root,
                over={f"data.{knob}": chosen for knob, chosen in planned.knobs.model_dump().items()},
            )
        except CirbenchError as error:
            raise CirbenchError(f"method.{field} = {value!r}: {error}") from None
        config = first.config.model_dump()
        if why := _untrained(first, config):
            raise CirbenchError(
                f"method.{field} = {value!r}: this run trains no CLIP ({why}), so nothing can be built on it. "
                f"CLIP4Cir's first stage is {AFTER}sum clip4cir-1."
            )
        if config.get(field) == value:
            raise CirbenchError(f"method.{field} = {value!r}: this stage comes after itself. Name another variant.")
        out[field] = first
    return out


def _untrained(first: Plan, config: Mapping[str, object]) -> str:
    """Why a run leaves no CLIP of its own behind, or ""."""
    if "clip" not in config:
        return f"{first.method.name} has no field `clip`"
    if config.get("freeze_clip", True):
        return "freeze_clip is true" if "freeze_clip" in config else f"{first.method.name} has no field `freeze_clip`"
    return "" if first.train.epochs else "train.epochs is 0"


def _name(planned: Plan) -> str:
    """The dataset as `planning.plan` finds it again."""
    module = planned.dataset
    return planned.facts.name if module.__name__.startswith("cirbench.datasets.") else str(module.__file__)


def settled(planned: Plan, make: Callable[[Plan], Path]) -> Plan:
    """The plan with `run:FOLDER` for every stage before it.

    Args:
        planned: what is to be run.
        make: does a run, or finds it finished, and returns its folder.
    """
    stages = first_stages(planned)
    return _with(planned, {field: f"run:{make(first)}" for field, first in stages.items()}) if stages else planned


def started(planned: Plan) -> Plan:
    """The plan with the CLIPs that its first stages start from: equal in time and memory, before they are trained."""
    stages = first_stages(planned)
    return _with(planned, {field: first.config.model_dump()["clip"] for field, first in stages.items()})


def _with(planned: Plan, values: Mapping[str, str]) -> Plan:
    if not values:
        return planned
    before = planned.config.model_dump()
    written = {field: before[field] for field in values}
    return replace(planned, config=planned.config.model_copy(update=dict(values)), stages=written)
