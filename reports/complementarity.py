"""What several runs find between them: which queries only one of them hits, and what an oracle over them would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cirbench.runs.record import Record
from cirbench.types import CirbenchError

from .collect import Arm, collect, metric_names, values_of

__all__ = ["complementarity"]


def complementarity(records: Sequence[Record], protocol: str) -> list[dict[str, Any]]:
    """A row for each recall of a protocol, of runs that answered the same queries.

    Returns:
        Rows of `metric`; `any` and `all`, percent of queries that at least one run hits (the oracle), or every one;
        `only`, percent that each alone hits, in the order given. Averaged as the protocol averages.

    Raises:
        CirbenchError: other queries or galleries.
    """
    tests = collect(records)
    if len(tests) > 1:
        raise CirbenchError(
            f"{records[0].name} and {records[1].name} answered different queries or ranked different galleries, so it "
            "cannot be told which queries only one of them hits."
        )
    out = []
    for metric in metric_names([Arm("", list(records))], protocol):
        if not metric.startswith("R@"):
            continue
        found = [values_of(record, protocol, metric) for record in records]
        if any(values is None for values in found):
            continue
        hits = np.stack([np.nan_to_num(values) > 0 for values in found if values is not None])
        weights, count = tests[0].weights(protocol, metric), hits.sum(0)

        def share(of: np.ndarray, weights: np.ndarray | None = weights) -> float:
            return 100 * float(np.average(of, weights=weights))

        out.append({
            "metric": metric, "any": share(count > 0), "all": share(count == len(hits)),
            "only": [share(mine & (count == 1)) for mine in hits],
        })
    return out
