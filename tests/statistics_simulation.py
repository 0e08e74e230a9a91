"""How often `cirbench.scoring.inference` errs, on methods whose truth is known. Prints the tables of docs/statistics.md:

    python tests/statistics_simulation.py [replications]

Two methods of equal true mean answer the same queries. The value of a query under one seed is a latent number: of its
reference image, of the query, of the method on this query, of this seed on this query, and of this seed on all queries,
in points of the metric. A hit is a latent number below a bar; a graded value is its logistic function.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from scipy import stats

from cirbench.scoring.inference import contrast, detectable, estimate, mean_interval

#: Shares of the latent variance: reference image, query, method on a query, seed on a query.
SHARES = (0.3, 0.3, 0.2, 0.2)


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: S seeds, Q queries of C reference images, a hit rate, a seed's deviation in points."""

    seeds: int = 5
    queries: int = 1200
    clusters: int = 400
    rate: float = 0.4
    points: float = 0.0
    graded: bool = False

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values (S, Q) of both methods, and the clusters (Q,)."""
        of = np.arange(self.queries) if self.clusters >= self.queries else rng.integers(0, self.clusters, self.queries)
        _, of = np.unique(of, return_inverse=True)
        reference, query, method, noise = np.sqrt(SHARES)
        shared = reference * rng.standard_normal(self.queries)[of] + query * rng.standard_normal(self.queries)
        normal = NormalDist()
        bar = normal.inv_cdf(self.rate)
        out = []
        for _ in range(2):
            seed = rng.standard_normal((self.seeds, 1)) * self.points / 100 / normal.pdf(bar)
            latent = shared + method * rng.standard_normal(self.queries) + seed
            latent = latent + noise * rng.standard_normal((self.seeds, self.queries))
            out.append(1 / (1 + np.exp(2 * (latent - bar))) if self.graded else (latent < bar).astype(float))
        return out[0], out[1], of

    def truth(self) -> float:
        """The true mean of a hit rate, over queries and seeds."""
        normal = NormalDist()
        spread = self.points / 100 / normal.pdf(normal.inv_cdf(self.rate))
        return normal.cdf(normal.inv_cdf(self.rate) / (1 + spread**2) ** 0.5)


def errors(cell: Cell, replications: int, seed: int = 0) -> float:
    """Share of replications in which the methods are called different, which they are not."""
    rng = np.random.default_rng(seed)
    return float(np.mean([estimate(*cell.draw(rng)).p < 0.05 for _ in range(replications)]))


def paired_errors(cell: Cell, replications: int, seed: int = 0) -> float:
    """The same for differences taken seed by seed."""
    rng = np.random.default_rng(seed)
    drawn = (cell.draw(rng) for _ in range(replications))
    return float(np.mean([contrast(b - a, of).p < 0.05 for a, b, of in drawn]))


def coverage(cell: Cell, replications: int, seed: int = 0) -> float:
    """Share of replications in which the interval of one method's mean holds the true mean."""
    rng, truth = np.random.default_rng(seed), cell.truth()
    held = 0
    for _ in range(replications):
        a, _, of = cell.draw(rng)
        low, high = mean_interval(a, of)
        held += low <= truth <= high
    return held / replications


def power(cell: Cell, replications: int, seed: int = 0) -> tuple[float, float]:
    """The difference that is said to be detectable, in points, and how often a true one of that size is found."""
    rng = np.random.default_rng(seed)
    found = [estimate(*cell.draw(rng)) for _ in range(replications)]
    size = float(np.mean([detectable(e.error, e.freedom) for e in found]))
    return 100 * size, float(np.mean([
        abs(e.difference + size) / e.error > stats.t.ppf(0.975, e.freedom) for e in found
    ]))


def main(replications: int) -> None:
    """The tables."""
    print("| seeds | queries | clusters | what | 0 points | 0.7 points | 2 points |\n|--:|--:|--:|---|--:|--:|--:|")
    for seeds in (1, 2, 3, 5, 10):
        for queries, clusters in ((200, 200), (400, 12), (1200, 400), (4000, 1000), (33_480, 29_789)):
            for what, base in (("hits", Cell()), ("rare hits, 1 %", Cell(rate=0.01)), ("graded", Cell(graded=True))):
                if (queries > 4000 and (what != "hits" or seeds > 5)) or (seeds in (3, 10) and what != "hits"):
                    continue
                cell = replace(base, seeds=seeds, queries=queries, clusters=clusters)
                count = replications // 4 if queries > 4000 else replications
                tried = (0.0, 0.7, 2.0) if cell.rate > 0.1 else (0.0, 0.2)
                row = [f"{100 * errors(replace(cell, points=p), count):.1f}" for p in tried if seeds > 1 or not p]
                row += [""] * (3 - len(row))
                print(f"| {seeds} | {queries:,} | {clusters:,} | {what} | {' | '.join(row)} |", flush=True)
    print("\n| seeds | queries | clusters | rate | a seed's points | coverage |\n|--:|--:|--:|--:|--:|--:|")
    for seeds, queries, clusters, rate, points in (
        (1, 400, 12, 0.4, 0), (5, 400, 12, 0.4, 0), (1, 200, 200, 0.01, 0), (1, 1200, 200, 0.01, 0),
        (5, 1200, 200, 0.01, 0), (1, 1200, 400, 0.4, 0), (5, 1200, 400, 0.4, 0.7), (5, 4000, 1000, 0.4, 2),
        (2, 1200, 400, 0.1, 0.7), (10, 4000, 1000, 0.1, 2),
    ):
        cell = Cell(seeds, queries, clusters, rate, points)
        found = 100 * coverage(cell, replications)
        print(f"| {seeds} | {queries:,} | {clusters:,} | {rate:g} | {points:g} | {found:.1f} |", flush=True)
    print("\n| seeds | a seed's points | detectable | power there |\n|--:|--:|--:|--:|")
    for seeds, points in ((1, 0.0), (3, 0.7), (5, 0.0), (5, 0.7), (10, 2.0)):
        size, share = power(Cell(seeds, points=points), replications)
        print(f"| {seeds} | {points:g} | {size:.2f} | {share:.2f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
