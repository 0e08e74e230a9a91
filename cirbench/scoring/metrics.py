"""Metrics: pure functions of ranks. No state, no device, no printing.

A rank is 1-based; 0 means that no target of the query is in its gallery, which never counts as a hit.
CIR's Recall@K is what information retrieval calls Success@K: the share of queries with *any* target in the first K.
"""

from __future__ import annotations

import math
import re

import numpy as np

_NAME = re.compile(r"^(R|Rs|mAP)@([1-9][0-9]*)$")
_MEAN = re.compile(r"^mean\((.+)\)$")


def parts(name: str) -> list[str]:
    """`mean(R@10,R@50)` -> its metrics; any other name -> itself.

    Example:
        >>> parts("mean(R@5,Rs@1)")
        ['R@5', 'Rs@1']
    """
    match = _MEAN.match(name)
    return [part.strip() for part in match[1].split(",")] if match else [name]


def parse(name: str) -> tuple[str, int]:
    """`R@10` -> ("R", 10). `MdR` and `MR` (median and mean rank) have cut-off 0.

    Raises:
        ValueError: not the name of a metric.
    """
    if name in ("MdR", "MR"):
        return name, 0
    match = _NAME.match(name)
    if not match:
        raise ValueError(f"{name!r} is not a metric. Metrics are R@K, Rs@K, mAP@K, MdR, MR and mean(...) of these")
    return match[1], int(match[2])


def hits(ranks: np.ndarray, k: int) -> np.ndarray:
    """(R,) ranks -> (R,) bool: a target is among the first k."""
    return (ranks >= 1) & (ranks <= k)


def recall_at(ranks: np.ndarray, k: int) -> float:
    """Share of rows with any target in the first k, in percent; NaN for no rows.

    Example:
        >>> recall_at(np.array([1, 5, 0]), 5)
        66.66666666666667
    """
    return 100.0 * float(np.count_nonzero(hits(ranks, k))) / len(ranks) if len(ranks) else math.nan


def average_precision_at(target_ranks: np.ndarray, targets: int, k: int) -> float:
    """AP@k of one query with the denominator min(targets, k) (CIRCO), 0..1.

    Args:
        target_ranks: ranks of the targets that were ranked; 0 for those that were not.
        targets: how many targets the query has.
        k: cut-off.

    Example:
        >>> average_precision_at(np.array([1, 3]), 2, 5)
        0.8333333333333333
    """
    if targets == 0:
        return math.nan
    found = np.sort(target_ranks[(target_ranks >= 1) & (target_ranks <= k)])
    return float(np.sum(np.arange(1, len(found) + 1) / found)) / min(targets, k)


def median_rank(ranks: np.ndarray) -> float:
    """Median rank of the best target, over rows that have one; NaN for none."""
    found = ranks[ranks >= 1]
    return float(np.median(found)) if len(found) else math.nan


def mean_rank(ranks: np.ndarray) -> float:
    """Mean rank of the best target, over rows that have one; NaN for none."""
    found = ranks[ranks >= 1]
    return float(np.mean(found)) if len(found) else math.nan


def of_ranks(name: str, ranks: np.ndarray) -> float:
    """The metric of that name as a function of best ranks; `Rs@K` and `mAP@K` need more than those.

    Raises:
        ValueError: not a metric of best ranks.
    """
    kind, k = parse(name)
    if kind == "R":
        return recall_at(ranks, k)
    if kind == "MdR":
        return median_rank(ranks)
    if kind == "MR":
        return mean_rank(ranks)
    raise ValueError(f"{name} is not a function of best ranks")
