"""Ranks against the definition: a slow loop that sorts in exact arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cirbench.scoring import metrics, ranking
from cirbench.scoring.ranking import View, rank
from cirbench.types import CirbenchError


def slow_order(scores: np.ndarray, targets: set[int], allowed: set[int]) -> list[int]:
    """The pessimistic order: by score, and among equals everything else before a target."""
    return sorted(allowed, key=lambda n: (-scores[n], n in targets, n))


def slow_best(scores: np.ndarray, targets: set[int], allowed: set[int]) -> int:
    order = slow_order(scores, targets, allowed)
    return next((place for place, n in enumerate(order, 1) if n in targets), 0)


def random_case(rng: np.random.Generator, tied: bool, rows: int, images: int) -> tuple:
    dim = 6
    # Whole numbers are represented exactly, so their products tie exactly.
    draw = (lambda *s: rng.integers(-2, 3, s).astype(np.float32)) if tied else (
        lambda *s: rng.standard_normal(s).astype(np.float32)
    )
    queries, gallery = draw(rows, dim), draw(images, dim)
    targets = [rng.choice(images, rng.integers(0, 4), replace=False) for _ in range(rows)]
    dropped = rng.integers(-1, images, rows)
    return queries, gallery, targets, dropped


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("images", [5, 97, 4096, 5000])
def test_ranks_equal_a_slow_loop(tied: bool, images: int) -> None:
    rng = np.random.default_rng(images + tied)
    rows = 300 if images < 1000 else 20
    queries, gallery, targets, dropped = random_case(rng, tied, rows, images)
    members = rng.random((3, images)) < 0.7
    member_of = rng.integers(0, 3, rows)
    views = [
        View(targets, np.full(rows, -1), every_target=True), View(targets, dropped),
        View(targets, dropped, members, member_of, every_target=True),
    ]
    found, top, _ = rank(torch.from_numpy(queries), torch.from_numpy(gallery), views, top=7, top_view=2)
    # The reference takes its scores from a product of the same precision; exact for whole numbers.
    scores = (torch.from_numpy(queries) @ torch.from_numpy(gallery).T).numpy()
    if not tied:
        scores = np.concatenate([
            b.numpy() for b in [ranking.dot(ranking._padded(torch.from_numpy(queries), 512), torch.from_numpy(gallery))]
        ])[:rows]
    everything = set(range(images))
    for row in range(rows):
        mine = set(targets[row].tolist())
        for number, allowed in enumerate([
            everything, everything - {int(dropped[row])},
            set(np.flatnonzero(members[member_of[row]]).tolist()) - {int(dropped[row])},
        ]):
            present = mine & allowed
            expected = slow_best(scores[row], present, allowed)
            assert found[number].best[row] == expected
            if number != 1 and tied:
                order = slow_order(scores[row], present, allowed)
                every = found[number].every[row]
                assert sorted(every[every > 0]) == [p for p, n in enumerate(order, 1) if n in present]
            if expected and tied:
                best = max(scores[row][n] for n in present)
                ties = sum(scores[row][n] == best for n in allowed - present)
                assert found[number].ties[row] == ties
        allowed = set(np.flatnonzero(members[member_of[row]]).tolist()) - {int(dropped[row])}
        if tied:
            by_position = sorted(allowed, key=lambda n: (-scores[row][n], n))[:7]
            assert [t for t in top[row] if t >= 0] == by_position


def test_constant_scores_put_the_target_last() -> None:
    gallery = torch.ones(50, 4)
    views = [View([np.array([0])] * 3, np.full(3, -1))]
    found, _, _ = rank(torch.ones(3, 4), gallery, views)
    assert found[0].best.tolist() == [50, 50, 50]
    assert found[0].ties.tolist() == [49, 49, 49]


@pytest.mark.parametrize("images", [9, 4095, 4097, 9001])
def test_equal_embeddings_tie_wherever_they_stand(images: int) -> None:
    generator = torch.Generator().manual_seed(images)
    gallery = torch.randn(images, 48, generator=generator)
    copy = torch.randn(48, generator=generator)
    places = sorted({0, 1, images // 2, images - 2, images - 1})
    gallery[places] = copy
    queries = torch.randn(70, 48, generator=generator)
    for target in places:
        found, _, _ = rank(queries, gallery, [View([np.array([target])] * 70, np.full(70, -1))])
        assert set(found[0].ties.tolist()) == {len(places) - 1}


def test_blocks_and_memory_do_not_change_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, gallery, targets, dropped = random_case(rng, True, 130, 900)
    view = View(targets, dropped, every_target=True)
    args = (torch.from_numpy(queries), torch.from_numpy(gallery), [view])
    whole = rank(*args, top=20)
    monkeypatch.setattr(ranking, "BLOCK", (32, 128))
    monkeypatch.setattr(ranking, "KEEP", 0)
    parts = rank(*args, top=20)
    assert np.array_equal(whole[0][0].best, parts[0][0].best)
    assert np.array_equal(whole[0][0].ties, parts[0][0].ties)
    assert all(np.array_equal(a, b) for a, b in zip(whole[0][0].every, parts[0][0].every, strict=True))
    assert np.array_equal(whole[1], parts[1])


def test_nan_is_refused() -> None:
    with pytest.raises(CirbenchError, match="NaN"):
        rank(torch.tensor([[float("nan")]]), torch.ones(2, 1), [View([np.array([0])], np.array([-1]))])


@pytest.mark.parametrize("wrong", [0, 1], ids=["the target's", "another image's"])
def test_a_score_that_is_nan_is_refused(wrong: int) -> None:
    """No comparison with NaN holds: a target of such a score would be first, such another image would not count."""
    def score(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        found = queries @ gallery.T
        found[:, wrong] = torch.nan
        return found

    with pytest.raises(CirbenchError, match="NaN among the scores"):
        rank(torch.ones(1, 4), torch.ones(3, 4), [View([np.array([0])], np.array([-1]))], score)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_gallery_order_and_unrelated_images(seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    queries, gallery, targets, _ = random_case(rng, tied, 8, 30)
    view = View(targets, np.full(8, -1))
    q, g = torch.from_numpy(queries), torch.from_numpy(gallery)
    base = rank(q, g, [view])[0][0].best
    order = rng.permutation(30)
    place = np.argsort(order)
    moved = View([place[t] for t in targets], np.full(8, -1))
    # Ties count against the method whatever the order, so a permutation changes nothing even with ties.
    assert np.array_equal(base, rank(q, g[torch.from_numpy(order)], [moved])[0][0].best)
    more = torch.cat([g, torch.from_numpy(rng.standard_normal((5, 6)).astype(np.float32))])
    grown = rank(q, more, [view])[0][0].best
    assert (grown >= base).all()
    for k in (1, 5, 10):
        assert metrics.recall_at(grown, k) <= metrics.recall_at(base, k)


def test_dropping_the_reference_never_hurts() -> None:
    rng = np.random.default_rng(3)
    queries, gallery, targets, dropped = random_case(rng, True, 200, 60)
    dropped = np.array([d if d not in t else -1 for d, t in zip(dropped, targets, strict=True)])
    q, g = torch.from_numpy(queries), torch.from_numpy(gallery)
    kept, gone = rank(q, g, [View(targets, np.full(200, -1)), View(targets, dropped)])[0]
    assert (gone.best <= kept.best).all()


def test_metrics_by_definition() -> None:
    ranks = np.array([1, 3, 0, 10, 2])
    assert metrics.recall_at(ranks, 1) == 20.0
    assert metrics.recall_at(ranks, 3) == pytest.approx(60.0)
    assert metrics.median_rank(ranks) == 2.5
    assert metrics.mean_rank(ranks) == 4.0
    assert np.isnan(metrics.recall_at(np.array([]), 1))
    assert metrics.average_precision_at(np.array([1]), 1, 5) == 1.0
    assert metrics.average_precision_at(np.array([4, 0]), 2, 5) == pytest.approx(1 / 8)
    with pytest.raises(ValueError, match="not a metric"):
        metrics.parse("recall")


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(1, 50))
def test_average_precision_equals_a_loop(ranks: list[int], k: int) -> None:
    found = sorted({r for r in ranks if r})
    total = sum((place + 1) / r for place, r in enumerate(found) if r <= k)
    got = metrics.average_precision_at(np.array(found or [0]), max(len(found), 1), k)
    assert got == pytest.approx(total / min(max(len(found), 1), k))
