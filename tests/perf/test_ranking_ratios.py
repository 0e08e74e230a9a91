"""What ranking costs beside the bare matrix product that it cannot do without."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cirbench.scoring.ranking import View, rank
from cirbench.scoring.score_blocks import BLOCK

pytest.importorskip("pytest_benchmark")
#: B queries over CIRCO's gallery of N images, D as RN50x4's.
B, N, D = 512, 123_403, 640


@pytest.fixture(scope="module")
def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return tuple(torch.nn.functional.normalize(torch.randn(n, D), dim=1) for n in (B, N))  # type: ignore[return-value]


def views(what: str) -> list[View]:
    """One protocol; the four of FashionIQ (two galleries of three categories each, reference kept or not); CIRCO's two."""
    rng = np.random.default_rng(0)
    category, of = np.sort(rng.integers(0, 3, B)), np.arange(N) * 3 // N
    original = np.stack([of == c for c in range(3)])
    val = original & (rng.random(N) < 0.7)
    none, reference = np.full(B, -1), rng.integers(0, N, B)
    if what == "one":
        return [View([np.array([t]) for t in rng.integers(0, N, B)], none)]
    if what == "circo":
        many = [rng.choice(N, rng.integers(1, 9), replace=False) for _ in range(B)]
        return [View([m[:1] for m in many], none), View(many, none, every_target=True)]
    targets = [np.flatnonzero(val[c])[rng.integers(val[c].sum(), size=1)] for c in category]
    return [View(targets, kept, gallery, category) for gallery in (original, val) for kept in (none, reference)]


@pytest.mark.benchmark(group="ranking")
@pytest.mark.parametrize(("what", "top", "goal"), [
    ("one", 0, 1.25), ("one", 50, 1.25), ("fashioniq", 50, 1.5), ("circo", 50, 1.5),
])
def test_ranking_against_the_product(what: str, top: int, goal: float, embeddings, ratio) -> None:
    q, g = embeddings
    wanted, threads = views(what), torch.get_num_threads()

    def product() -> None:
        for row in range(0, B, BLOCK[0]):
            for column in range(0, N, BLOCK[1]):
                q[row : row + BLOCK[0]] @ g[column : column + BLOCK[1]].T

    torch.set_num_threads(1)
    try:
        name = f"ranking, {what}{f' and top {top}' * bool(top)} / matrix product"
        ratio(name, product, lambda: rank(q, g, wanted, top=top), goal)
    finally:
        torch.set_num_threads(threads)
