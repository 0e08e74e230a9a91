"""One pass over the gallery equals two passes with masks to the last bit: ranks, ties, first images and their scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import two_passes
from hypothesis import given, settings
from hypothesis import strategies as st

from cirbench.scoring import counting, score_blocks
from cirbench.scoring.ranking import View, dot, rank


def embeddings(rng: np.random.Generator, rows: int, images: int, tied: bool, dim: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    if tied:  # whole numbers, whose products are exact
        q, g = rng.integers(-2, 3, (rows, dim)), rng.integers(-2, 3, (images, dim))
    else:
        q, g = rng.standard_normal((rows, dim)), rng.standard_normal((images, dim))
        g[rng.integers(0, images, images // 5)] = g[rng.integers(0, images)]  # copies of one picture
    return torch.from_numpy(q.astype(np.float32)), torch.from_numpy(g.astype(np.float32))


def some_views(rng: np.random.Generator, rows: int, images: int, most: int) -> list[View]:
    """Protocols of every kind: one target or many, the reference left in or out, galleries in rows' order or mixed."""
    many = [rng.choice(images, rng.integers(0, min(most, images) + 1), replace=False) for _ in range(rows)]
    one = [t[:1] for t in many]
    none, dropped = np.full(rows, -1), rng.integers(-1, images, rows)
    members = rng.random((4, images)) < 0.6
    own = np.zeros((rows, images), dtype=bool)
    own[np.arange(rows)[:, None], rng.integers(0, images, (rows, 5))] = True
    return [
        View(one, none), View(one, dropped), View(one, dropped, members, np.sort(rng.integers(0, 4, rows))),
        View(many, dropped, members, rng.integers(0, 4, rows)), View(many, dropped, every_target=True),
        View(many, none, members, rng.integers(0, 4, rows), every_target=True),
        View(one, none, own, np.arange(rows), every_target=True),
    ]


def same(queries: torch.Tensor, gallery: torch.Tensor, views: Sequence[View], top: int, top_view: int, score=dot) -> None:  # type: ignore[no-untyped-def]
    new, old = (f(queries, gallery, views, score, top, top_view) for f in (rank, two_passes.rank))
    for a, b in zip(new[0], old[0], strict=True):
        assert np.array_equal(a.best, b.best) and np.array_equal(a.ties, b.ties)
        assert (a.every is None) == (b.every is None)
        for x, y in zip(a.every or [], b.every or [], strict=True):
            assert np.array_equal(x, y)
    for x, y in zip(new[1:], old[1:], strict=True):
        assert x.dtype == y.dtype and np.array_equal(x, y)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("rows", "images", "most"), [(300, 90, 4), (270, 5000, 4), (40, 5000, 90), (30, 20_000, 6)])
def test_equal_to_two_passes(rows: int, images: int, most: int, tied: bool) -> None:
    rng = np.random.default_rng(rows + images + tied)
    queries, gallery = embeddings(rng, rows, images, tied)
    views = some_views(rng, rows, images, most)
    for top, view in ((50, 1), (7, 2), (1, 6), (0, 0)):
        same(queries, gallery, views, top, view)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 70), st.booleans(), st.sampled_from([0, 16, 1000]),
    st.integers(0, 20), st.sampled_from([0, 64]),
)
def test_equal_at_every_edge_of_small_blocks(
    seed: int, rows: int, images: int, tied: bool, keep: int, top: int, each: int
) -> None:
    rng = np.random.default_rng(seed)
    queries, gallery = embeddings(rng, rows, images, tied)
    with pytest.MonkeyPatch.context() as patch:
        for module in (score_blocks, two_passes):
            patch.setattr(module, "BLOCK", (4, 16))
            patch.setattr(module, "KEEP", keep)
        patch.setattr(counting, "EACH", each)
        same(queries, gallery, some_views(rng, rows, images, 4), top, int(rng.integers(0, 7)))


def cut(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """A score of a method's own, with many ties and images that it rules out."""
    found = (queries[:, None] * gallery).clamp(-1, 1).sum(2)
    return torch.where(found < -1, -torch.inf, found.round(decimals=1))


@pytest.mark.parametrize("keep", [0, 10_000])
def test_equal_for_a_methods_own_score(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_blocks, "KEEP_OWN", keep)
    monkeypatch.setattr(two_passes, "KEEP", keep)
    rng = np.random.default_rng(3)
    queries, gallery = embeddings(rng, 20, 4500, False)
    same(queries, gallery, some_views(rng, 20, 4500, 5), 30, 3, cut)


def test_where_products_depend_on_their_place_the_place_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that rounds another column of the same product otherwise: scores are read where they stand, as before."""
    def uneven(queries: torch.Tensor, images: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        found = queries @ images * torch.linspace(1, 1.1, images.shape[1])
        return found if out is None else out.copy_(found)

    rng = np.random.default_rng(5)
    queries, gallery = embeddings(rng, 9, 50, False)
    monkeypatch.setattr(torch, "mm", uneven)
    monkeypatch.setattr(score_blocks, "dot", lambda q, g: uneven(q, g.T))
    monkeypatch.setattr(score_blocks, "BLOCK", (4, 16))
    monkeypatch.setattr(score_blocks, "KEEP", 0)
    views = some_views(rng, 9, 50, 4)
    scores = score_blocks.Scores(queries[:4], gallery, score_blocks.dot)
    table = torch.cat([block.clone() for _, block in scores.blocks()], 1).numpy()
    found = rank(queries[:4], gallery, [View(views[0].targets[:4], np.full(4, -1))], score_blocks.dot)[0][0]
    for row, targets in enumerate(views[0].targets[:4]):
        others = np.delete(np.arange(50), targets)
        assert not len(targets) or found.best[row] == 1 + (table[row, others] >= table[row, targets[0]]).sum()


@pytest.mark.parametrize("k", [1, 3, 10, 60])
def test_first_images_of_a_device_equal_those_of_the_cpu(k: int) -> None:
    """On a device everything is sorted, without a word to the host."""
    from cirbench.scoring.first_images import FirstImages

    rng = np.random.default_rng(k)
    scores = torch.from_numpy(rng.integers(-3, 4, (7, 200)).astype(np.float32))
    scores[scores == -3] = -torch.inf
    here, there = FirstImages(7, k, scores), FirstImages(7, k, scores)
    for start in range(0, 200, 64):
        here.offer(start, scores[:, start : start + 64])
        there._merge_whole(start, scores[:, start : start + 64])
    for a, b in zip(here.end(), there.end(), strict=True):
        assert torch.equal(a, b)
