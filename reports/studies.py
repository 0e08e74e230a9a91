"""Sweeps: their points by the objective, and how much each knob matters to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cirbench.runs.record_types import RunData
from cirbench.runs.store import Study
from cirbench.runs.study_types import Axis, Point, StudyData
from cirbench.scoring import statistics
from cirbench.types import CirbenchError

from .collect import TestSet

__all__ = ["Importance", "PointRow", "StudyPart", "importance", "studies"]

TUNING = ("tpe", "gp")
#: Fewer finished points say nothing of importance. Resamples of the points give its spread.
LEAST, RESAMPLES = 10, 50


@dataclass(frozen=True)
class PointRow:
    """One point of a sweep.

    Attributes:
        label: for people.
        state: `complete`, `pruned`, `fail` or what else it is in.
        seeds: how many seeds were run.
        mean, std: of the objective over seeds; NaN without runs, and for one seed.
        reported: mean on the reported split, NaN where its runs are not in the report.
        error: of a failed one.
    """

    label: str
    state: str
    seeds: int
    mean: float
    std: float
    reported: float
    error: str


@dataclass(frozen=True)
class Importance:
    """Share of one knob in what makes a point good, with its 95 % range over resamples of so many `points`."""

    knob: str
    share: float
    low: float
    high: float
    points: int


@dataclass(frozen=True)
class StudyPart:
    """A sweep in a report: its design, its points best first, and the importance of its knobs."""

    sweep: StudyData
    rows: list[PointRow]
    tuning: bool
    importance: list[Importance]

    @property
    def finished(self) -> int:
        """Points that ran with every seed."""
        return self._in("complete")

    @property
    def pruned(self) -> int:
        """Points that were stopped early."""
        return self._in("pruned")

    @property
    def failed(self) -> int:
        """Points that failed."""
        return self._in("fail")

    def _in(self, state: str) -> int:
        return sum(row.state == state for row in self.rows)


def studies(test: TestSet, sweeps: Sequence[Study], metric: str) -> list[StudyPart]:
    """The sweeps whose runs are in a test set: points by the mean objective (on `select`), best first.

    `metric` is what their runs reached on the reported split, beside it.
    """
    runs = {record.id: record.run for arm in test.arms for record in arm.records}
    out = []
    for study in sweeps:
        sweep = study.sweep
        if not any(scored.id in runs for point in sweep.points for scored in point.seeds.values()):
            continue
        rows = [_point_row(point, runs, metric) for point in sweep.points]
        sign = 1 if sweep.objective.direction == "minimize" else -1
        rows.sort(key=lambda r: (math.isnan(r.mean), sign * r.mean, r.label))
        out.append(StudyPart(sweep, rows, sweep.sampler in TUNING or sweep.tuning, importance(study)))
    return out


def _point_row(point: Point, runs: Mapping[str, RunData], metric: str) -> PointRow:
    mean, std = statistics.mean_std([float(scored.objective) for scored in point.seeds.values()])
    here = [runs[scored.id] for scored in point.seeds.values() if scored.id in runs]
    reported = [run.protocols[run.default_protocol].metrics.get(metric) for run in here]
    return PointRow(
        point.label, point.state, len(point.seeds), mean, std,
        statistics.mean_std([float(v) for v in reported if v is not None])[0], point.error or "",
    )


def importance(study: Study) -> list[Importance]:
    """How much each knob decides whether a point is among the best tenth (PED-ANOVA, Watanabe et al. 2023).

    Computed by Optuna from the points of `sweep.json`. Shares of 1 over the knobs, highest first, with the 95 %
    range over resamples of the points. Empty for grids, and where there are too few points or knobs.

    Raises:
        CirbenchError: points outside the space that the sweep names.
    """
    sweep = study.sweep
    if sweep.sampler == "grid" or len(sweep.arms) != 1 or len(sweep.arms[0].space) < 2:
        return []
    sign = -1.0 if sweep.objective.direction == "minimize" else 1.0
    points = [(p.values, sign * p.value) for p in sweep.points if p.value is not None]
    values = [(v, y) for v, y in points if set(v) == set(sweep.arms[0].space)]
    if len(points) < LEAST or not values:
        return []
    try:
        return _importance(values, _distributions(sweep.arms[0].space))
    except (ValueError, TypeError) as error:  # of Optuna, which checks each value against the space
        raise CirbenchError(
            f"{study.folder / 'sweep.json'} is damaged: a point is not in its space ({error}). Repeat `cirbench sweep`."
        ) from None


def _importance(values: Sequence[tuple[Mapping[str, Any], float]], space: Mapping[str, Any]) -> list[Importance]:
    shares = _shares(values, space)
    generator = np.random.default_rng(0)
    resampled: dict[str, list[float]] = {name: [] for name in shares}
    for _ in range(RESAMPLES):
        drawn = [values[n] for n in generator.integers(0, len(values), len(values))]
        for name, share in _shares(drawn, space).items():
            resampled[name].append(share)
    out = []
    for name, share in sorted(shares.items(), key=lambda item: (-item[1], item[0])):
        low, high = np.percentile(resampled[name], [2.5, 97.5])
        out.append(Importance(name, share, float(low), float(high), len(values)))
    return out


def _distributions(space: Mapping[str, Axis]) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    out: dict[str, Any] = {}
    for name, axis in space.items():
        if axis.choices:
            out[name] = CategoricalDistribution(axis.choices)
        elif isinstance(axis.low, int) and isinstance(axis.high, int) and isinstance(axis.step, int | None):
            out[name] = IntDistribution(axis.low, axis.high, log=axis.log, step=axis.step or 1)
        else:
            out[name] = FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)
    return out


def _shares(points: Sequence[tuple[Mapping[str, Any], float]], space: Mapping[str, Any]) -> dict[str, float]:
    """Knob -> its share; sums to 1 unless all points are alike."""
    import warnings

    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.trial import create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction="maximize")
        study.add_trials([
            create_trial(params=dict(values), distributions=dict(space), value=y) for values, y in points
        ])
        importances = PedAnovaImportanceEvaluator().evaluate(study)
    total = sum(importances.values())
    return {name: value / total if total > 0 else 1 / len(importances) for name, value in importances.items()}
