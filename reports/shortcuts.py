"""Who answers the queries that neither the text nor the image answers alone: recall on those that need composition."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cirbench.scoring import inference

from .collect import Arm, TestSet, rows_of, seed_values
from .modalities import CELLS, SINGLE, Audit

__all__ = ["LabelRow", "RestRow", "labels", "rest"]

#: A dataset with more groups than this has no labels that one could read.
MOST = 24


@dataclass(frozen=True)
class RestRow:
    """What one method finds.

    Attributes:
        arm: the method.
        all, all_low, all_high: percent over all queries, with its 95 % interval (of queries, and of seeds if several).
        rest, low, high: the same over the queries that no single modality answers; NaN without any.
        cells: percent over each kind in `modalities.CELLS`, NaN without queries.
    """

    arm: Arm
    all: float
    all_low: float
    all_high: float
    rest: float
    low: float
    high: float
    cells: dict[str, float]


@dataclass(frozen=True)
class LabelRow:
    """Queries that the dataset labels so: how many, and how many of each kind in `modalities.CELLS`."""

    label: str
    count: int
    cells: dict[str, int]


def rest(test: TestSet, audit: Audit, protocol: str) -> list[RestRow]:
    """Every composing method on the queries that need composition, the best there first.

    Args:
        test: runs on the same queries.
        audit: of `modalities.audit`, whose metric is used.
        protocol: of the audit.
    """
    rows = rows_of(test.first, protocol)
    clusters, weights = test.clusters[rows], test.weights(protocol, audit.metric)
    out = []
    for arm in test.arms:
        values = seed_values(arm, protocol, audit.metric)
        if arm.method in (*SINGLE, "random") or values is None or values.shape[1] != len(audit.cell_of):
            continue

        def over(mask: np.ndarray, values: np.ndarray = values) -> tuple[float, float, float]:
            if not mask.any():
                return math.nan, math.nan, math.nan
            kept = None if weights is None else weights[mask]
            low, high = inference.mean_interval(values[:, mask], clusters[mask], kept)
            return 100 * float(np.average(values[:, mask].mean(0), weights=kept)), 100 * low, 100 * high

        cells = {name: over(audit.cell_of == n) for n, name in enumerate(CELLS)}
        out.append(RestRow(
            arm, *over(np.ones(values.shape[1], bool)), *cells["neither"], {name: c[0] for name, c in cells.items()}
        ))
    return sorted(out, key=lambda row: -math.inf if math.isnan(row.rest) else row.rest, reverse=True)


def labels(test: TestSet, audit: Audit, protocol: str) -> list[LabelRow]:
    """The dataset's own groups of queries against what the single modalities answer; none without groups."""
    groups = test.groups[rows_of(test.first, protocol)]
    names = list(dict.fromkeys(groups.tolist()))
    if not 1 < len(names) <= MOST or len(groups) != len(audit.cell_of):
        return []
    return [
        LabelRow(
            name, int((groups == name).sum()),
            {cell: int(((groups == name) & (audit.cell_of == n)).sum()) for n, cell in enumerate(CELLS)},
        )
        for name in names
    ]
