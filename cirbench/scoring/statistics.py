"""Intervals, paired tests and their corrections: pure functions of arrays.

Every test here is over *queries*. Queries that share a reference image are not independent, so intervals resample
reference images, not queries. Nothing below says anything about the spread over training seeds; `mean_std` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = [
    "average_ranks", "bootstrap_interval", "cluster_codes", "detectable_effect", "holm", "mcnemar", "mean_std",
    "paired_permutation", "spearman",
]


def cluster_codes(labels: Sequence[str]) -> np.ndarray:
    """(Q,) labels -> (Q,) int64 codes 0.., equal labels equal codes, numbered in order of appearance."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=np.int64)


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); the deviation of a single value is NaN: unknown, not 0.

    Example:
        >>> mean_std([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    if not len(values):
        return math.nan, math.nan
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan


def _cluster_sums(values: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    """(Q, M) values -> (C, M) sums over clusters."""
    if clusters is None:
        return values
    out = np.zeros((int(clusters.max()) + 1, values.shape[1]))
    np.add.at(out, clusters, values)
    return out


def bootstrap_interval(
    values: np.ndarray, clusters: np.ndarray | None = None, *, weights: np.ndarray | None = None,
    confidence: float = 0.95, resamples: int = 2000, seed: int = 0,
) -> np.ndarray:
    """Percentile bootstrap intervals of (weighted) means, whole clusters drawn with replacement.

    Columns share their resamples: a column of differences has the interval of the paired difference.

    Args:
        values: (Q,) or (Q, M), one row a query, e.g. hits as 0 and 1.
        clusters: (Q,) codes 0.. C - 1; None makes every query its own.
        weights: (Q,) weight of each query in the mean; None for equal ones.
        confidence: coverage, between 0 and 1.
        resamples: how many; 2000 fixes the ends to about a fiftieth of the interval's width.
        seed: of the resampling; equal input gives equal output.

    Returns:
        (2,) or (2, M): low, high in the unit of `values`, rounded to nine decimals; NaN without queries.
    """
    values = np.asarray(values)
    if not len(values):
        return np.full((2, *values.shape[1:]), math.nan)
    columns = values.reshape(len(values), -1)
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    sums = _cluster_sums(columns * weight[:, None], clusters)
    sizes = _cluster_sums(weight[:, None], clusters)
    both = np.concatenate([sums, sizes], 1)[sizes[:, 0] > 0]
    generator = np.random.default_rng(seed)
    count = len(both)
    means = np.empty((resamples, columns.shape[1]))
    # How often each cluster is drawn, times the sums: one matrix product for all columns. In blocks, for memory.
    block = max(1, 2_000_000 // count)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, count, size=(rows, count))
        drawn += np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        totals = times.astype(np.float64) @ both
        means[start : start + rows] = totals[:, :-1] / totals[:, -1:]
    tail = 100 * (1 - confidence) / 2
    ends = np.percentile(means, [tail, 100 - tail], axis=0)
    # The number of threads changes the summation order of a matrix product, hence its last bits: round them away.
    return np.round(ends, 9).reshape(2, *values.shape[1:])


def mcnemar(a: np.ndarray, b: np.ndarray) -> tuple[int, int, float]:
    """Exact McNemar test of two methods' hits on the same queries.

    Returns:
        (queries only a hits, queries only b hits, two-sided p).

    Example:
        >>> mcnemar(np.array([1, 1, 1, 0], bool), np.array([0, 0, 0, 0], bool))
        (3, 0, 0.25)
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    only_a, only_b = int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a))
    return only_a, only_b, _sign_test(only_a, only_b)


def _sign_test(first: int, second: int) -> float:
    """Two-sided exact binomial p for `first` of `first + second` at probability 1/2."""
    total = first + second
    few = min(first, second)
    if total <= 1000:
        return min(1.0, 2 * sum(math.comb(total, k) for k in range(few + 1)) / 2**total)
    # Summed from the largest term down, relative to it, so that thousands of pairs do not overflow.
    log_top = _log_choose(total, few) - total * math.log(2)
    term, tail = 1.0, 1.0
    for k in range(few, 0, -1):
        term *= k / (total - k + 1)
        tail += term
        if term < 1e-17 * tail:
            break
    return min(1.0, 2 * math.exp(log_top + math.log(tail)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def paired_permutation(
    difference: np.ndarray, clusters: np.ndarray | None = None, *, resamples: int = 9999, seed: int = 0
) -> np.ndarray:
    """Two-sided p-value of a zero mean of paired differences, by flipping the signs of whole clusters at random.

    Works for hits averaged over seeds and for graded values, where McNemar does not. The observed arrangement counts
    as one of those drawn, so p is never 0.

    Args:
        difference: (Q,) or (Q, M), score of one method minus the other's, per query.
        clusters: (Q,) codes 0.. C - 1; None makes every query its own.
        resamples: sign patterns drawn, shared by all columns.
        seed: of the draws.

    Returns:
        () or (M,) p-values.
    """
    difference = np.asarray(difference, dtype=np.float64)
    sums = _cluster_sums(difference.reshape(len(difference), -1), clusters)
    sums = sums[np.any(sums != 0, axis=1)]
    count = len(sums)
    observed = np.abs(sums.sum(0))
    extreme = np.zeros(sums.shape[1])
    generator = np.random.default_rng(seed)
    # A relative tolerance: sums of equal terms in another order differ in the last bits.
    bar = observed - 1e-9 * np.abs(sums).sum(0)
    block = max(1, 2_000_000 // max(count, 1))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        bits = np.frombuffer(generator.bytes(-(-rows * count // 8)), dtype=np.uint8)
        signs = np.unpackbits(bits, count=rows * count).reshape(rows, count).astype(np.float64)
        flipped = 2.0 * (signs @ sums) - sums.sum(0)
        extreme += np.count_nonzero(np.abs(flipped) >= bar, axis=0)
    return ((extreme + 1) / (resamples + 1)).reshape(difference.shape[1:])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; the order of the input is kept.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected: dict[int, float] = {}
    highest = 0.0
    for place, i in enumerate(order):
        corrected[i] = highest = max(highest, min(1.0, (len(order) - place) * p_values[i]))
    return [corrected[i] for i in range(len(p_values))]


def detectable_effect(queries: int, discordant: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest difference in recall that a paired test of this size detects with this power, in percentage points.

    Args:
        queries: how many are compared.
        discordant: share of queries that exactly one of the two methods hits, 0..1.
        alpha: two-sided level.
        power: probability of finding a difference of the size returned.

    Normal approximation of McNemar's test (Miettinen 1968): with d the share discordant, a difference `delta` has
    variance d - delta^2 under the alternative and d under the null.
    """
    if discordant <= 0:
        return math.nan
    from statistics import NormalDist

    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    low, high = 0.0, discordant
    needed = lambda delta: (  # noqa: E731
        z_alpha * math.sqrt(discordant) + z_power * math.sqrt(max(0.0, discordant - delta * delta))
    )
    if math.sqrt(queries) * high < needed(high):
        return math.nan  # even all discordant queries on one side would not be detected
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if math.sqrt(queries) * middle >= needed(middle) else (middle, high)
    return 100 * high


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation, ties at their average rank; NaN where one of the two is constant.

    Example:
        >>> spearman(np.array([1, 2, 3]), np.array([10, 30, 20]))
        0.5
    """
    first, second = average_ranks(a), average_ranks(b)
    first, second = first - first.mean(), second - second.mean()
    scale = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / scale if scale else math.nan


def average_ranks(values: np.ndarray) -> np.ndarray:
    """(Q,) -> (Q,) ranks from 1, ties at their average rank."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
