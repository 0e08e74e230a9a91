"""What sweep.json holds, as typed values: read once, checked field by field (docs/add-a-sweep.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cirbench.runs.record_types import Fields

__all__ = ["Axis", "Objective", "Point", "SeedScore", "StudyArm", "StudyData", "read_study"]

SCHEMA = 1
"""Version of the format of sweep.json; record.json has its own."""

@dataclass(frozen=True)
class Objective:
    """What points are compared by: a metric under a protocol on a split, `maximize` or `minimize`."""

    split: str
    protocol: str
    metric: str
    direction: str


@dataclass(frozen=True)
class Axis:
    """The values of a field: one of `choices`, or a number from `low` to `high`, `step` apart or on a `log` scale."""

    choices: tuple[Any, ...] = ()
    low: float = math.nan
    high: float = math.nan
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class StudyArm:
    """A method of a sweep and the `space` that points are drawn from, knob -> axis."""

    label: str
    method: str
    space: Mapping[str, Axis]


@dataclass(frozen=True)
class SeedScore:
    """One run of a point: name of its folder, its id, and the objective it reached."""

    run: str
    id: str
    objective: float


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Attributes:
        number: its position in the sweep.
        label: readable name.
        method, variant: as on the command line.
        values, fixed: knobs that the sweep varies, and those it sets for all points.
        state: `complete`, `running`, `pruned`, `fail` or `waiting`.
        value: mean objective over seeds, None before it is complete.
        seeds: seed -> its run.
        error: of a failed one.
    """

    number: int
    label: str
    method: str
    variant: str
    values: Mapping[str, Any]
    fixed: Mapping[str, Any]
    state: str
    value: float | None
    seeds: Mapping[str, SeedScore]
    error: str | None


@dataclass(frozen=True)
class StudyData:
    """`sweep.json` (docs/add-a-sweep.md)."""

    schema: int
    study: str
    name: str
    question: str
    note: str
    tuning: bool
    dataset: str
    seeds: tuple[int, ...]
    sampler: str
    objective: Objective
    arms: tuple[StudyArm, ...]
    total: int
    points: tuple[Point, ...]
    runs: tuple[str, ...]


def read_study(data: Any) -> StudyData:
    """A parsed `sweep.json`, checked.

    Raises:
        ValueError: naming the first field that is missing or of a wrong type.
    """
    o = Fields(data)
    seeds = tuple(o.items("seeds"))
    if not seeds or not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise ValueError("seeds is not a list of whole numbers")
    goal = o.part("objective")
    return StudyData(
        schema=o.whole("schema"), study=o.text("study"), name=o.text("name"), question=o.text("question"),
        note=o.text("note"), tuning=o.flag("tuning"), dataset=o.text("dataset"), seeds=seeds,
        sampler=o.text("sampler"), objective=Objective(
            goal.text("split"), goal.text("protocol"), goal.text("metric"),
            goal.choice("direction", "maximize", "minimize") if "direction" in goal.value else "maximize",
        ),
        arms=tuple(_arm(arm) for arm in o.rows("arms")), total=o.whole("total"),
        points=tuple(_point(point) for point in o.rows("points")), runs=o.texts("runs"),
    )


def _arm(o: Fields) -> StudyArm:
    space = o.part("space")
    return StudyArm(o.text("label"), o.text("method"), {name: _axis(space, name) for name in space.value})


def _axis(space: Fields, name: str) -> Axis:
    value = space.value[name]
    if isinstance(value, list):
        if not value or any(isinstance(choice, list | dict) for choice in value):
            raise ValueError(f"{space.where(name)} is not a list of choices")
        return Axis(tuple(value))
    o = Fields(value, space.where(name))
    axis = Axis((), o.number("low"), o.number("high"), o.flag("log", False), o.number("step", None))
    if axis.low > axis.high or (axis.log and axis.low <= 0) or (axis.step is not None and axis.step <= 0):
        raise ValueError(f"{space.where(name)} is not a range: low {axis.low}, high {axis.high}, step {axis.step}")
    return axis


def _point(o: Fields) -> Point:
    return Point(
        number=o.whole("number"), label=o.text("label"), method=o.text("method"), variant=o.text("variant"),
        values=o.mapping("values"), fixed=o.mapping("fixed"), state=o.text("state"), value=o.number("value", None),
        seeds={
            seed: SeedScore(s.text("run"), s.text("id"), s.number("objective")) for seed, s in o.parts("seeds").items()
        },
        error=o.text("error", None),
    )
