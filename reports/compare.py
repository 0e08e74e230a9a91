"""Two runs on the same queries: differences with intervals, tests, and the inputs that differ."""

from __future__ import annotations

from typing import Any

from cirbench.reports.collect import collect, flat, metric_names, rows_of, values_of

from cirbench import statistics
from cirbench.records import Record
from cirbench.types import CirbenchError

__all__ = ["compare_runs", "differing_inputs"]


def differing_inputs(a: Record, b: Record) -> dict[str, tuple[Any, Any]]:
    """Everything the two runs depend on that is not equal: knobs by name, the rest by field."""
    out: dict[str, tuple[Any, Any]] = {}
    for left, right in (
        (flat(a.data["inputs"]), flat(b.data["inputs"])),
        tuple({k: r.data["inputs"].get(k) for k in ("method", "dataset", "fingerprint", "images", "seed", "weights")}
              for r in (a, b)),
    ):
        for name in dict.fromkeys([*left, *right]):
            if left.get(name) != right.get(name):
                out[name] = (left.get(name), right.get(name))
    return out


def compare_runs(a: Record, b: Record, protocol: str = "") -> list[dict[str, Any]]:
    """One row a metric: both numbers, B - A with its interval, p, and McNemar's counts where hits are yes or no.

    Raises:
        CirbenchError: other queries or another gallery, or a protocol that either lacks.
    """
    if a.id == b.id:
        raise CirbenchError(f"{a.name} and {b.name} are the same run ({a.id}). Give two different ones.")
    tests = collect([a, b])
    if len(tests) > 1:
        raise CirbenchError(
            f"{a.name} and {b.name} answered different queries or ranked different galleries "
            f"({len(a.queries)} and {len(b.queries)} queries); they cannot be compared query by query."
        )
    name = protocol or a.data["default_protocol"]
    common = [p for p in a.data["protocols"] if p in b.data["protocols"]]
    if name not in common:
        raise CirbenchError(f"protocol {name!r} was not scored by both runs. Both have: {', '.join(common) or 'none'}.")
    test = tests[0]
    clusters = test.clusters[rows_of(a, name)]
    out, differences = [], []
    for metric in metric_names(test.arms, name):
        x, y = values_of(a, name, metric), values_of(b, name, metric)
        if x is None or y is None or len(x) != len(y):
            continue
        numbers = [r.data["protocols"][name]["metrics"][metric] for r in (a, b)]
        weights = test.weights(name, metric)
        low, high = 100 * statistics.bootstrap_interval(y - x, clusters, weights=weights)
        row = {
            "protocol": name, "queries": len(x), "metric": metric, "a": numbers[0], "b": numbers[1],
            "delta": numbers[1] - numbers[0], "low": float(low), "high": float(high),
        }
        if metric.startswith("R@"):
            row["only_a"], row["only_b"], row["mcnemar"] = statistics.mcnemar(x > 0, y > 0)
        scaled = y - x if weights is None else (y - x) * weights
        differences.append(float(statistics.paired_permutation(scaled, clusters)))
        out.append(row)
    if not out:
        raise CirbenchError(f"{a.name} and {b.name} share no metric under {name!r} that is kept query by query.")
    return [row | {"p": p} for row, p in zip(out, statistics.holm(differences), strict=True)]
