"""What each switch of a protocol is worth on one model: gallery, reference, text form, and what counts as a hit."""

from __future__ import annotations

from typing import Any

import numpy as np

from cirbench.runs.record import Record
from cirbench.scoring import inference
from cirbench.types import Protocol

from .collect import collect, rows_of, values_of

__all__ = ["translate"]

#: Fields of a protocol by which a number changes, and how each is told.
SWITCHES = {
    "gallery": "gallery {}", "drop_reference": "reference {}", "form": "text {}", "hit": "hits: {}",
    "average": "mean over {}",
}


def translate(record: Record) -> list[dict[str, Any]]:
    """The summary metric of every protocol that a run was scored under, the default one first.

    Returns:
        Rows of `protocol`, `known_as`, `metric`, `value` (percent), `switches` (what is unlike the default protocol),
        and the difference `delta` from the default in points with its 95 % interval `low` to `high` over queries,
        clustered by reference. `delta` is None where the summary metric is another; the interval where the two
        protocols have other rows, where the metric is a mean of several, or where it is not kept query by query.
    """
    first = record.run.default_protocol
    names = list(dict.fromkeys([first, *record.run.protocols]))
    (test,) = collect([record])
    base = record.definition(first)
    metric = base.summary if base else next(iter(record.run.protocols[first].metrics))
    out = []
    for name in names:
        definition, scores = record.definition(name), record.run.protocols[name].metrics
        own = definition.summary if definition and definition.summary in scores else next(iter(scores))
        row: dict[str, Any] = {
            "protocol": name, "known_as": list(definition.known_as) if definition else [], "metric": own,
            "value": scores[own], "switches": _switches(base, definition), "delta": None, "low": None, "high": None,
        }
        here, there = scores[own], record.run.protocols[first].metrics.get(metric)
        if name != first and own == metric and here is not None and there is not None:
            row["delta"] = here - there
            row["low"], row["high"] = _interval(test, record, first, name, metric)
        out.append(row)
    return out


def _switches(base: Protocol | None, other: Protocol | None) -> list[str]:
    if base is None or other is None:
        return []
    said = {True: "dropped", False: "kept"}
    return [
        text.format(said.get(value, value) if field == "drop_reference" else value)
        for field, text in SWITCHES.items() if (value := getattr(other, field)) != getattr(base, field)
    ]


def _interval(test: Any, record: Record, one: str, two: str, metric: str) -> tuple[float | None, float | None]:
    parts = _parts(metric)
    values = [[values_of(record, name, part) for part in parts] for name in (one, two)]
    if any(v is None for side in values for v in side):
        return None, None
    x, y = (np.mean([np.nan_to_num(v) for v in side if v is not None], axis=0) for side in values)
    rows, others = rows_of(record, one), rows_of(record, two)
    weights = [test.weights(name, part) for name in (one, two) for part in parts]
    alike = all((w is None) == (weights[0] is None) and (w is None or np.array_equal(w, weights[0])) for w in weights)
    if not np.array_equal(rows, others) or not alike:
        return None, None
    error = inference.contrast(y - x, test.clusters[rows], weights[0])
    return 100 * error.low, 100 * error.high


def _parts(metric: str) -> list[str]:
    """The metrics that a mean such as `mean(R@10,R@50)` is of."""
    return metric[5:-1].split(",") if metric.startswith("mean(") else [metric]
