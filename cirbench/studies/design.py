"""A sweep in memory: arms, points, the plans of its runs, and what names the study."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cirbench.runs import planning
from cirbench.seeds import digest

__all__ = ["MAX_POINTS", "Arm", "Objective", "Point", "Range", "Sweep"]

MAX_POINTS = 10_000


@dataclass(frozen=True)
class Range:
    """An interval of numbers that a sampler draws from; a grid needs a step."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step or 1, int)

    @property
    def count(self) -> int:
        """How many values a step gives; a tiny one gives more than can be listed."""
        assert self.step
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def values(self) -> list[float]:
        """low, low + step, ..., high."""
        assert self.step
        return [
            self.low + i * self.step if self.whole else round(self.low + i * self.step, 12) for i in range(self.count)
        ]


@dataclass(frozen=True)
class Arm:
    """One method in one or more variants, what is fixed for it and what varies; `place` is its key in the file."""

    label: str
    method: str
    variants: tuple[str, ...] = ("",)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    points: tuple[Mapping[str, Any], ...] = ({},)
    space: Mapping[str, list[Any] | Range] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True)
class Objective:
    """What is compared: a metric under a named protocol, on the split `select`; never on `report`."""

    protocol: str
    metric: str
    direction: str = "maximize"


def short(value: Any) -> str:
    """A value with four significant digits, enough to tell a sampler's draws apart."""
    return f"{value:.4g}" if isinstance(value, float) and len(repr(value)) > 8 else str(value)


@dataclass(frozen=True)
class Point:
    """One point of the space: what a trial runs, once per seed."""

    arm: str
    method: str
    variant: str
    values: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """For people: what differs from the other points."""
        varied = ", ".join(f"{k.partition('.')[2]}={short(v)}" for k, v in self.values.items())
        return " ".join(p for p in (self.arm, self.variant, varied) if p)


@dataclass(frozen=True)
class Sweep:
    """A checked sweep; see docs/add-a-sweep.md for the file. `asked` names a method given instead of the file's own."""

    name: str
    question: str
    file: str
    dataset: str
    seeds: tuple[int, ...]
    sampler: str
    arms: tuple[Arm, ...]
    objective: Objective
    trials: int | None = None
    timeout: float | None = None
    retries: int = 1
    pruner: str = "none"
    variant: str = ""
    note: str = ""
    root: Path | None = None
    asked: str = ""

    @property
    def tuning(self) -> bool:
        """Whether the sampler uses earlier results, so that its best point is the best of many tries."""
        return self.sampler in ("tpe", "gp")

    def points(self) -> list[Point]:
        """Every point of a grid, in file order."""
        out = []
        for arm in self.arms:
            axes = [v.values() if isinstance(v, Range) else v for v in arm.space.values()]
            for variant, fixed, row in itertools.product(arm.variants, arm.points, itertools.product(*axes)):
                values = {**fixed, **dict(zip(arm.space, row, strict=True))}
                out.append(Point(arm.label, arm.method, variant, values, arm.fixed))
        return out

    @property
    def total(self) -> int:
        """How many points will be run."""
        if self.sampler == "grid":
            return min(len(self.points()), self.trials or MAX_POINTS)
        assert self.trials is not None
        return self.trials

    def plan(self, point: Point, seed: int) -> planning.Plan:
        """The ordinary run of one seed of a point."""
        over = {**point.fixed, **point.values}
        return planning.plan(point.method, self.dataset, point.variant, seed=seed, root=self.root, over=over)

    def definition(self) -> dict[str, Any]:
        """Everything that identifies this study, as JSON values."""
        def axis(values: list[Any] | Range) -> Any:
            if isinstance(values, Range):
                return {"low": values.low, "high": values.high, "log": values.log, "step": values.step}
            return values

        return {
            "name": self.name, "dataset": self.dataset, "seeds": list(self.seeds), "sampler": self.sampler,
            "pruner": self.pruner, "variant": self.variant,
            "objective": {"split": "select", "protocol": self.objective.protocol, "metric": self.objective.metric},
            "arms": [
                {
                    "label": a.label, "method": a.method, "variants": list(a.variants), "fixed": dict(a.fixed),
                    "points": [dict(p) for p in a.points], "space": {k: axis(v) for k, v in a.space.items()},
                }
                for a in self.arms
            ],
        }

    def study(self) -> str:
        """Name of the study: another design, or code that may compute another number, makes another study."""
        some = {p.method: planning.code(self.plan(p, self.seeds[0])) for p in self.corners()}
        parts = [self.name, self.asked, self.dataset.removesuffix(".py").split("/")[-1]]
        return "-".join([*filter(None, parts), digest([self.definition(), some])[:10]])

    def corners(self) -> list[Point]:
        """Every point of a grid; of a continuous space the points at each end of each field."""
        if self.sampler == "grid":
            return self.points()
        out = []
        for arm in self.arms:
            first = {k: v.low if isinstance(v, Range) else v[0] for k, v in arm.space.items()}
            out.append(Point(arm.label, arm.method, arm.variants[0], first, arm.fixed))
            for key, axis in arm.space.items():
                ends = [axis.high] if isinstance(axis, Range) else axis[1:]
                out += [Point(arm.label, arm.method, arm.variants[0], {**first, key: e}, arm.fixed) for e in ends]
        return out
