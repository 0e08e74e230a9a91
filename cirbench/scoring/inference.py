"""One answer for everybody who asks whether two methods differ: an error with two sources, queries and training seeds.

The mean of a method over its queries and seeds varies because other queries could have been asked and because other
seeds could have been drawn. The two are crossed: every seed answers every query. With y (S, Q) the values of a method,

    queries   spread of the per-query means over seeds, summed within clusters (queries that share a reference image)
    seeds     spread of the per-seed means
    both      what is left of y without query and seed means; each of the two above holds it once, so one is taken off

The variance of a difference is queries + seeds - both, never less than the larger of the first two; its distribution
is Student's t with degrees of freedom after Satterthwaite, where a variance from few clusters or few different values
counts for few. The p-value and the interval are of the same distribution, so that they agree. docs/statistics.md holds
the simulation that this was chosen by, and where it is weak.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cirbench.scoring.statistics import holm

__all__ = ["Estimate", "contrast", "detectable", "estimate", "groups", "mean_interval"]

#: A variance of no more than this is none: what rounding leaves of equal values.
TINY = 1e-18


@dataclass(frozen=True)
class Estimate:
    """A difference of two means and its error.

    Attributes:
        difference: in the unit of the values.
        error: its standard error.
        freedom: degrees of freedom, inf where nothing varies.
        low, high: ends of the interval.
        p: two-sided p-value of no difference; 1 where nothing differs anywhere.
        seeds: whether the spread over training seeds is part of the error. Without it nothing is said about methods,
            only about these two runs.
    """

    difference: float
    error: float
    freedom: float
    low: float
    high: float
    p: float
    seeds: bool


#: What no query says anything about.
UNKNOWN = Estimate(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, False)


def _clustered(values: np.ndarray, weights: np.ndarray, clusters: np.ndarray) -> tuple[float, float, float]:
    """Weighted mean of (Q,) values, the variance of that mean over clusters, and its degrees of freedom."""
    total = weights.sum()
    mean = float((weights * values).sum() / total)  # no product: its last bits depend on the number of threads
    count = int(clusters.max()) + 1
    sums = np.bincount(clusters, weights * (values - mean), count) / total
    sizes = np.bincount(clusters, weights, count) / total
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    squares = sums**2
    whole = float(squares.sum())
    effective = 1 / float((sizes**2).sum())
    if len(sizes) < 2 or whole <= TINY:
        return mean, 0.0, max(effective - 1, 1.0)
    # A cluster's sum lacks its own share of the mean (CR2 of an intercept).
    variance = float((squares / (1 - np.minimum(sizes, 0.5))).sum())
    kurtosis = len(sums) * float((squares**2).sum()) / whole**2
    freedom = min(effective - 1, 2 * len(sums) / max(kurtosis - 1, 1e-9))
    return mean, variance, max(freedom, 1.0)


def _parts(y: np.ndarray, weights: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Of (S, Q) values: variance of the mean by seeds, and by seeds and queries together."""
    seeds = len(y)
    share = weights / weights.sum()
    means = (y * share).sum(1)
    by_seed = float(means.var(ddof=1)) / seeds
    rest = y - y.mean(0) - (means - means.mean())[:, None]
    sums = np.stack([np.bincount(clusters, share * row) for row in rest])
    return by_seed, float((sums**2).sum()) / (seeds * (seeds - 1))


def estimate(
    a: np.ndarray, b: np.ndarray, clusters: np.ndarray | None = None, weights: np.ndarray | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Mean of b minus mean of a.

    Args:
        a: (S, Q) values of one method, a row a seed.
        b: (S', Q) of the other, on the same queries.
        clusters: (Q,) codes 0.. C - 1; None makes every query its own.
        weights: (Q,) weight of each query in the mean; None for equal ones.
        confidence: of the interval.

    Returns:
        The difference and its error; both variances where each method has two seeds or more, else that of queries.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    return _of(_error(b.mean(0) - a.mean(0), (a, b), clusters, weights), confidence)


def contrast(
    values: np.ndarray, clusters: np.ndarray | None = None, weights: np.ndarray | None = None, confidence: float = 0.95
) -> Estimate:
    """The mean of (S, Q) differences that were taken seed by seed: of variants of one method.

    The same seed gives variants the same initial weights and the same batches, so that what a seed does to both is
    gone from their difference. Other methods share no more than a number: use `estimate`.
    """
    values = np.atleast_2d(values)
    return _of(_error(values.mean(0), (values,), clusters, weights), confidence)


def mean_interval(
    y: np.ndarray, clusters: np.ndarray | None = None, weights: np.ndarray | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean of one method, of values between 0 and 1.

    Wilson's interval for as many independent queries as would have this variance (Korn and Graubard 1998), which holds
    for rare hits and few clusters, where the mean is not normal.

    Args:
        y: (S, Q) or (Q,) values in 0..1, a row a seed.
        clusters, weights, confidence: as in `estimate`.

    Returns:
        low, high, in 0..1; NaN without queries.
    """
    from scipy import special

    y = np.atleast_2d(y)
    found = _error(y.mean(0), (y,), clusters, weights)
    if found is None:
        return math.nan, math.nan
    mean, alike = found.mean, min(found.mean * (1 - found.mean) / max(found.variance, TINY), 1e12)
    if found.variance <= TINY:
        alike = found.clusters
    square = float(special.stdtrit(found.freedom, (1 + confidence) / 2)) ** 2 / max(alike, 1e-9)
    middle = (mean + square / 2) / (1 + square)
    reach = math.sqrt(max(square * (mean * (1 - mean) + square / 4), 0.0)) / (1 + square)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def detectable(error: float, freedom: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that a comparison with this error finds with this power, in the error's unit.

    Args:
        error: standard error of the difference, of `estimate`.
        freedom: its degrees of freedom.
        alpha: two-sided level.
        power: probability of finding a difference of the size returned.
    """
    from scipy import special

    if not error > 0 or not freedom > 0:
        return math.nan
    freedom = min(freedom, 1e6)
    bar = special.stdtrit(freedom, 1 - alpha / 2)
    return error * float(special.nctdtrinc(freedom, 1 - power, bar))


def groups(
    means: Sequence[float], p: Mapping[tuple[int, int], float], alpha: float = 0.05
) -> tuple[list[int], list[list[int]]]:
    """Ranks of methods that the data can separate, and the sets of methods that it cannot.

    Args:
        means: of the methods, higher is better.
        p: of every pair (i, j), i < j, uncorrected; Holm's correction over all pairs is made here. It holds however
            the pairs depend on each other, and unlike a studentised range it needs no equal variances.
        alpha: level of the family: the chance that any pair is called different where none is.

    Returns:
        For each method 1 + how many are better beyond chance; and the longest runs of neighbours by mean of which no
        two are separated, as lists of methods, best first.
    """
    pairs = list(p)
    corrected = dict(zip(pairs, holm([p[pair] for pair in pairs]), strict=True))

    def apart(i: int, j: int) -> bool:
        return corrected[min(i, j), max(i, j)] < alpha

    every = range(len(means))
    order = sorted(every, key=lambda n: -means[n])
    ranks = [1 + sum(means[j] > means[i] and apart(i, j) for j in every if j != i) for i in every]
    runs: list[list[int]] = []
    for first in range(len(order)):
        last = first
        while last + 1 < len(order) and not any(apart(order[n], order[last + 1]) for n in range(first, last + 1)):
            last += 1
        if not runs or order[last] not in runs[-1]:
            runs.append(order[first : last + 1])
    return ranks, runs


@dataclass(frozen=True)
class _Error:
    """A mean, the variance of it, the degrees of freedom, whether seeds are part of it, and the number of clusters."""

    mean: float
    variance: float
    freedom: float
    seeds: bool
    clusters: int


def _error(
    per_query: np.ndarray, methods: Sequence[np.ndarray], clusters: np.ndarray | None, weights: np.ndarray | None
) -> _Error | None:
    """The mean of (Q,) values over seeds, that come of methods of (S, Q) values each; None without queries."""
    count = len(per_query)
    if not count:
        return None
    weight = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    code = np.arange(count) if clusters is None else np.asarray(clusters)
    mean, queries, freedom = _clustered(per_query, weight, code)
    variance, terms = queries, [(queries, freedom)]
    seeded = all(len(y) > 1 for y in methods)
    if seeded:
        parts = [_parts(y, weight, code) for y in methods]
        seeds, both = (sum(part[n] for part in parts) for n in (0, 1))
        variance = max(queries + seeds - both, queries, seeds)
        # What is taken off makes a variance smaller, not its estimate surer: the terms stay whole.
        terms += [(part[0], len(y) - 1.0) for part, y in zip(parts, methods, strict=True)]
    if variance > TINY:
        freedom = variance**2 / sum(v**2 / f for v, f in terms if v > 0)
    return _Error(mean, variance, freedom, seeded, len(np.unique(code)))


def _of(found: _Error | None, confidence: float) -> Estimate:
    from scipy import special

    if found is None:
        return UNKNOWN
    difference = found.mean
    if found.variance <= TINY:
        same = abs(difference) <= 1e-12
        return Estimate(difference, 0.0, math.inf, difference, difference, 1.0 if same else 0.0, found.seeds)
    error = math.sqrt(found.variance)
    reach = error * float(special.stdtrit(found.freedom, (1 + confidence) / 2))
    p = float(2 * special.stdtr(found.freedom, -abs(difference) / error))
    return Estimate(difference, error, found.freedom, difference - reach, difference + reach, p, found.seeds)
