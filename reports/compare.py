"""Runs on the same queries, seeds averaged within a query: differences with intervals, tests, and what differs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cirbench.runs.record import Record, is_finished
from cirbench.scoring import inference, statistics
from cirbench.types import CirbenchError

from .collect import Arm, TestSet, arm_values, collect, flat, identity, metric_names, rows_of
from .differences import difference, error_of

__all__ = ["compare", "differing_inputs", "other_seeds"]


def other_seeds(record: Record) -> list[Record]:
    """The run and those beside it that differ from it in the seed alone, by seed, one of each."""
    key, by_seed = identity(record.run.inputs), {record.run.inputs.seed: record}
    for folder in sorted(record.folder.resolve().parent.iterdir()):
        if is_finished(folder):
            other = Record(folder)
            if identity(other.run.inputs) == key:
                by_seed.setdefault(other.run.inputs.seed, other)
    return sorted(by_seed.values(), key=lambda r: r.run.inputs.seed)


def differing_inputs(a: Record, b: Record) -> dict[str, tuple[Any, Any]]:
    """Everything the two runs depend on that is not equal: knobs by name, the rest by field."""
    out: dict[str, tuple[Any, Any]] = {}
    for left, right in (
        (flat(a.run.inputs), flat(b.run.inputs)),
        tuple({k: r.run.inputs.raw[k] for k in ("method", "dataset", "fingerprint", "images", "seed", "weights")}
              for r in (a, b)),
    ):
        for name in dict.fromkeys([*left, *right]):
            if left.get(name) != right.get(name):
                out[name] = (left.get(name), right.get(name))
    return out


def compare(arms: Sequence[Sequence[Record]], protocol: str = "") -> list[list[dict[str, Any]]]:
    """The first against each of the others, one row a metric; p is Holm-corrected over all rows there are.

    Args:
        arms: two or more, each the runs of one thing over its seeds.
        protocol: another than the first's default.

    Returns:
        For each other arm its rows: means `a` and `b` over seeds with `a_std` and `b_std` (None for one seed), `delta`
        = b - a in points with its interval `low` to `high`, `p` and `over` (`queries and seeds`, or `queries` where
        one side has a single seed: then they are about these runs, not about the methods), and for R@K `detectable`,
        the difference that so many queries and seeds find with probability 0.8. With one seed each, R@K also has
        `only_a`, `only_b` and `mcnemar`, the exact test of hits.

    Raises:
        CirbenchError: other queries or another gallery, the same runs twice, or a protocol that some lack.
    """
    first, pairs = arms[0], []
    for other in arms[1:]:
        pairs.append(_pair(first, other, protocol))
    flat_p = statistics.holm([row["p"] for rows in pairs for row in rows])
    return [[row | {"p": flat_p.pop(0)} for row in rows] for rows in pairs]


def _pair(a: Sequence[Record], b: Sequence[Record], protocol: str) -> list[dict[str, Any]]:
    one, two = a[0], b[0]
    shared = {r.id for r in a} & {r.id for r in b}
    if shared:
        raise CirbenchError(
            f"both sides hold the run {min(shared)}: they differ in the seed alone. Use --one-seed."
        )
    tests = collect([*a, *b])
    if len(tests) > 1:
        raise CirbenchError(
            f"{one.name} and {two.name} answered different queries or ranked different galleries "
            f"({len(one.queries)} and {len(two.queries)} queries); they cannot be compared query by query."
        )
    name = protocol or one.run.default_protocol
    common = [p for p in one.run.protocols if all(p in r.run.protocols for r in (*a, *b))]
    if name not in common:
        raise CirbenchError(f"protocol {name!r} was not scored by both. Both have: {', '.join(common) or 'none'}.")
    sides = [Arm("", list(side)) for side in (a, b)]
    rows = [_row(tests[0], sides, name, metric) for metric in metric_names(sides, name)]
    out = [row for row in rows if row is not None]
    if not out:
        raise CirbenchError(f"{one.name} and {two.name} share no metric under {name!r} that is kept query by query.")
    return out


def _row(test: TestSet, sides: Sequence[Arm], protocol: str, metric: str) -> dict[str, Any] | None:
    found = difference(sides[0], sides[1], protocol, metric)
    if found is None:
        return None
    clusters = test.clusters[rows_of(sides[0].records[0], protocol)]
    numbers = [statistics.mean_std(side.scores(protocol, metric)) for side in sides]
    error = error_of(found, clusters, test.weights(protocol, metric))
    std_a, std_b = (None if math.isnan(std) else std for _, std in numbers)
    row: dict[str, Any] = {
        "protocol": protocol, "queries": len(clusters), "metric": metric, "a": numbers[0][0], "b": numbers[1][0],
        "a_std": std_a, "b_std": std_b,
        "delta": numbers[1][0] - numbers[0][0], "low": 100 * error.low, "high": 100 * error.high,
        "over": "queries and seeds" if error.seeds else "queries",
    }
    if metric.startswith("R@"):
        if all(len(side.records) == 1 for side in sides):
            x, y = (arm_values(side, protocol, metric) for side in sides)
            assert x is not None and y is not None
            row["only_a"], row["only_b"], row["mcnemar"] = statistics.mcnemar(x > 0, y > 0)
        smallest = 100 * inference.detectable(error.error, error.freedom)
        row["detectable"] = None if math.isnan(smallest) else smallest
    row["p"] = error.p
    return row
