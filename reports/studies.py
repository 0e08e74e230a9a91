"""Sweeps: their points by the objective, and how much each knob matters to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cirbench.reports.collect import TestSet

from cirbench.runs.store import Study
from cirbench.scoring import statistics

__all__ = ["importance", "studies"]

TUNING = ("tpe", "gp")
#: Fewer finished points say nothing of importance. Resamples of the points give its spread.
LEAST, RESAMPLES = 10, 50
SHOWN = 20


def studies(test: TestSet, found: Sequence[Study], metric: str) -> list[dict[str, Any]]:
    """The sweeps whose runs are in a test set: points by the mean objective (on `select`), best first.

    `metric` is what their runs reached on the reported split, beside it.
    """
    at = {record.id: (record, arm) for arm in test.arms for record in arm.records}
    out = []
    for study in found:
        data = study.data
        if not any(s.get("id") in at for point in data["points"] for s in point.get("seeds", {}).values()):
            continue
        rows = []
        for point in data["points"]:
            seeds = list(point.get("seeds", {}).values())
            mean, std = statistics.mean_std([float(s["objective"]) for s in seeds])
            mine = [at[s["id"]][0] for s in seeds if s.get("id") in at]
            reported = [r.data["protocols"][r.data["default_protocol"]]["metrics"].get(metric) for r in mine]
            rows.append({
                "label": point.get("label", "?"), "state": point.get("state", "?"), "seeds": len(seeds),
                "mean": mean, "std": std, "error": point.get("error") or "",
                "reported": statistics.mean_std([float(v) for v in reported if v is not None])[0],
            })
        minimize = data["objective"].get("direction") == "minimize"
        rows.sort(key=lambda r: (math.isnan(r["mean"]), r["mean"] if minimize else -r["mean"], r["label"]))
        out.append({
            "data": data, "rows": rows, "tuning": data.get("sampler") in TUNING or bool(data.get("tuning")),
            "objective": data["objective"], "importance": importance(data),
            "finished": sum(r["state"] == "complete" for r in rows),
            "pruned": sum(r["state"] == "pruned" for r in rows), "failed": sum(r["state"] == "fail" for r in rows),
        })
    return out


def importance(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How much each knob decides whether a point is among the best tenth (PED-ANOVA, Watanabe et al. 2023).

    Computed by Optuna from the points of `sweep.json`. Shares of 1 over the knobs, highest first, with the 95 %
    range over resamples of the points. Empty for grids, and where there are too few points or knobs.
    """
    if data.get("sampler", "grid") == "grid" or len(data.get("arms") or []) != 1:
        return []
    points = [(p["values"], float(p["value"])) for p in data["points"] if p.get("value") is not None]
    if len(points) < LEAST or len(data["arms"][0].get("space") or {}) < 2:
        return []
    space = _distributions(data["arms"][0]["space"])
    sign = -1.0 if data["objective"].get("direction") == "minimize" else 1.0
    values = [(v, sign * y) for v, y in points if set(v) == set(space)]
    found = _shares(values, space)
    generator = np.random.default_rng(0)
    resampled: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(RESAMPLES):
        drawn = [values[n] for n in generator.integers(0, len(values), len(values))]
        for name, share in _shares(drawn, space).items():
            resampled[name].append(share)
    out = []
    for name, share in sorted(found.items(), key=lambda item: (-item[1], item[0])):
        low, high = np.percentile(resampled[name], [2.5, 97.5])
        out.append({"knob": name, "share": share, "low": float(low), "high": float(high), "points": len(values)})
    return out


def _distributions(space: Mapping[str, Any]) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    out: dict[str, Any] = {}
    for name, axis in space.items():
        if isinstance(axis, list):
            out[name] = CategoricalDistribution(axis)
            continue
        low, high, log, step = axis["low"], axis["high"], bool(axis.get("log")), axis.get("step")
        if isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int)):
            out[name] = IntDistribution(low, high, log=log, step=step or 1)
        else:
            out[name] = FloatDistribution(low, high, log=log, step=step)
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
        found = PedAnovaImportanceEvaluator().evaluate(study)
    total = sum(found.values())
    return {name: value / total if total > 0 else 1 / len(found) for name, value in found.items()}
