"""Ranks against the definition: a slow loop that sorts in exact arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cirbench.scoring import metrics, ranking, score_blocks
from cirbench.scoring.ranking import View, rank
from cirbench.types import CirbenchError, MethodError


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
            b.numpy() for b in [ranking.dot(score_blocks.padded(torch.from_numpy(queries), 512), torch.from_numpy(gallery))]
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
    monkeypatch.setattr(score_blocks, "BLOCK", (32, 128))
    monkeypatch.setattr(score_blocks, "KEEP", 0)
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


# ------------------------------------------------------------------------------------- by hand

SCORES = torch.tensor([[5.0, 3.0, 3.0, 3.0, 1.0], [1.0, 2.0, 4.0, 4.0, 3.0]])


def by_hand(targets: list[list[int]], **rest: Any) -> tuple[ranking.Ranks, np.ndarray, np.ndarray]:
    """Ranks of the two rows of SCORES over five images, all targets asked for."""
    rest = {"dropped": np.full(2, -1), "every_target": True, **rest}
    view = View([np.array(t, dtype=np.int64) for t in targets], **rest)
    ranks, top, value = rank(SCORES, torch.eye(5), [view], top=4)
    return ranks[0], top, value


def every(found: ranking.Ranks) -> list[list[int]]:
    assert found.every is not None
    return [r.tolist() for r in found.every]


def test_every_target_by_hand() -> None:
    found, top, value = by_hand([[2, 0], [0, 3]])
    # Row 0: image 0, then 1 and 3 tied with target 2. Row 1: image 2 is tied with target 3; target 0 is last.
    assert every(found) == [[4, 1], [5, 2]] and found.best.tolist() == [1, 2] and found.ties.tolist() == [0, 1]
    assert top.tolist() == [[0, 1, 2, 3], [2, 3, 4, 1]] and value.tolist() == [[5, 3, 3, 3], [4, 4, 3, 2]]
    # Tied targets do not count against each other: they stand in the order given, after the others.
    assert every(by_hand([[3, 1], [2, 3]])[0]) == [[3, 4], [1, 2]]
    assert every(by_hand([[1, 3], [3, 1, 2]])[0]) == [[3, 4], [1, 4, 2]]
    assert every(by_hand([[1, 2, 3], [0, 4]])[0]) == [[2, 3, 4], [5, 3]]
    # Rows without a target, or with one alone.
    found, _, _ = by_hand([[], [4]])
    assert every(found) == [[], [3]] and found.best.tolist() == [0, 3] and found.ties.tolist() == [0, 0]
    found, _, _ = by_hand([[], []])
    assert every(found) == [[], []] and found.best.tolist() == [0, 0]


def test_dropped_images_neither_rank_nor_count() -> None:
    found, top, _ = by_hand([[2, 0], [3, 0]], dropped=np.array([0, 2]))
    assert every(found) == [[3, 0], [1, 4]] and found.best.tolist() == [3, 1] and found.ties.tolist() == [2, 0]
    assert top.tolist() == [[1, 2, 3, 4], [3, 4, 1, 0]]
    # The only target is the reference: it is nowhere.
    found, _, _ = by_hand([[0], [2]], dropped=np.array([0, 2]))
    assert every(found) == [[0], [0]] and found.best.tolist() == [0, 0] and found.ties.tolist() == [0, 0]


def test_rows_rank_the_images_of_their_own_gallery() -> None:
    members = np.array([[True, False, True, True, False], [False, True, False, True, True], [False] * 5])
    found, top, value = by_hand([[2, 1], [4, 2]], members=members, member_of=np.array([0, 1]))
    # Row 0 ranks 0, 2, 3; row 1 ranks 1, 3, 4.
    assert every(found) == [[3, 0], [2, 0]] and found.best.tolist() == [3, 2] and found.ties.tolist() == [1, 0]
    assert top.tolist() == [[0, 2, 3, -1], [3, 4, 1, -1]]
    assert value.tolist() == [[5, 3, 3, -np.inf], [4, 3, 2, -np.inf]]
    found, top, _ = by_hand([[2], [4]], members=members, member_of=np.array([2, 0]), dropped=np.array([-1, 0]))
    assert every(found) == [[0], [0]] and top.tolist() == [[-1] * 4, [2, 3, -1, -1]]


def test_blocks_are_filled_up_with_zeros_to_one_shape() -> None:
    given = torch.ones(3, 2)
    assert score_blocks.padded(given, 3) is given
    assert score_blocks.padded(given, 5).tolist() == [[1, 1]] * 3 + [[0, 0]] * 2


@pytest.mark.parametrize("keep", [0, 99])
def test_blocks_have_no_edges(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place of a target and of a dropped image, at the edges of blocks as well, against sorting."""
    monkeypatch.setattr(score_blocks, "BLOCK", (4, 4))
    monkeypatch.setattr(score_blocks, "KEEP", keep)
    images = 9
    scores = np.array([3, 1, 2, 3, 3, 1, 2, 3, 2])
    pairs = [(t, d) for t in range(images) for d in range(-1, images)]
    members = np.array([[True] * images, [n % 4 != 1 for n in range(images)]])
    view = View(
        [np.array([t]) for t, _ in pairs], np.array([d for _, d in pairs]), members, np.arange(len(pairs)) % 2, every_target=True
    )
    queries = torch.tensor([[1.0]] * len(pairs))
    (found,), top, _ = rank(queries, torch.tensor(scores)[:, None].float(), [view], top=3)
    for row, (target, dropped) in enumerate(pairs):
        allowed = set(np.flatnonzero(members[row % 2]).tolist()) - {dropped}
        best = slow_best(scores, {target} & allowed, allowed)
        assert found.best[row] == best and every(found)[row] == [best]
        assert found.ties[row] == (sum(scores[n] == scores[target] for n in allowed - {target}) if best else 0)
        assert top[row].tolist() == sorted(allowed, key=lambda n: (-scores[n], n))[:3]


@pytest.mark.parametrize("every_target", [False, True])
def test_types_and_shapes(every_target: bool) -> None:
    view = View([np.array([1]), np.array([0])], np.full(2, -1), every_target=every_target)
    (found,), top, value = rank(SCORES, torch.eye(5), [view], top=9)
    assert (found.every is not None) == every_target
    assert {found.best.dtype, found.ties.dtype, top.dtype} == {np.dtype(np.int32)} and value.dtype == np.float32
    assert all(r.dtype == np.int32 for r in found.every or ())
    assert rank(SCORES.double(), torch.eye(5).double(), [view], top=1)[2].dtype == np.float32
    assert top.shape == value.shape == (2, 9)
    assert (top[:, 5:] == -1).all() and np.isneginf(value[:, 5:]).all() and (top[:, :5] >= 0).all()
    # No rows are no error, and neither is not asking for the first images.
    (none,), top, value = rank(SCORES[:0], torch.eye(5), [View([], np.zeros(0, int), every_target=every_target)], top=3)
    assert none.best.shape == none.ties.shape == (0,) and none.best.dtype == none.ties.dtype == np.int32
    assert top.shape == value.shape == (0, 3) and (top.dtype, value.dtype) == (np.int32, np.float32)
    assert none.every == ([] if every_target else None)
    _, top, value = rank(SCORES, torch.eye(5), [view])
    assert top.shape == value.shape == (0, 0)


def test_double_precision_tells_scores_apart_that_single_precision_ties() -> None:
    queries, gallery = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[1.0 + 1e-12], [1.0]], dtype=torch.float64)
    view = View([np.array([0])], np.array([-1]), every_target=True)
    for q, g, best in ((queries, gallery, 1), (queries.float(), gallery.float(), 2)):
        (found,), top, _ = rank(q, g, [view], top=2)
        assert found.best.tolist() == [best] and every(found) == [[best]] and top.tolist() == [[0, 1]]


# ------------------------------------------------------------------------------------- a method's own score


def test_a_score_of_minus_infinity_ranks_after_everything_that_counts() -> None:
    def score(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        found = queries @ gallery.T
        return torch.where(found < 2, -torch.inf, found)

    view = View([np.array([4, 0]), np.array([0, 1])], np.array([1, -1]), every_target=True)
    (found,), top, _ = rank(SCORES, torch.eye(5), [view], score, top=5)
    # Image 1 is dropped from row 0: target 4, of minus infinity, is the fourth of four.
    assert every(found) == [[4, 1], [5, 4]] and found.best.tolist() == [1, 4]
    assert top.tolist() == [[0, 2, 3, -1, -1], [2, 3, 4, 1, -1]]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("images", [3, 4, 7, 8, 11])
def test_which_blocks_a_score_is_given(kept: bool, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only real rows, in blocks of one width; kept for the second pass where memory allows."""
    monkeypatch.setattr(score_blocks, "BLOCK", (2, 4))
    monkeypatch.setattr(score_blocks, "KEEP_OWN", images if kept else images - 1)
    calls: list[tuple[int, list[float]]] = []

    def score(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        calls.append((len(queries), gallery[:, 0].tolist()))
        return queries @ gallery.T

    gallery = torch.arange(1.0, images + 1)[:, None]
    view = View([np.array([images - 2])] * 3, np.full(3, -1))
    found, top, _ = rank(torch.ones(3, 1), gallery, [view, view], score, top=2)
    assert [f.best.tolist() for f in found] == [[2] * 3] * 2 and top.tolist() == [[images - 1, images - 2]] * 3
    # A block of one query is square with nothing here; the last block of images is filled up with the ones before.
    blocks = [list(range(max(0, min(s, images - 4)) + 1, min(s + 4, images) + 1)) for s in range(0, images, 4)]
    passes = 1 if kept else 2
    assert calls == [(2, b) for b in blocks] * passes + [(1, b) for b in blocks] * passes


@pytest.mark.parametrize(("score", "received"), [
    (lambda q, g: (q @ g.T)[:, :2], r"torch.float32 of shape \(2, 2\) on cpu"),
    (lambda q, g: (q @ g.T)[:1], r"torch.float32 of shape \(1, 3\) on cpu"),
    (lambda q, g: g @ q.T, r"torch.float32 of shape \(3, 2\) on cpu"),
    (lambda q, g: (q @ g.T).long(), r"torch.int64 of shape \(2, 3\) on cpu"),
    (lambda q, g: (q @ g.T).to_sparse(), r"torch.float32 of shape \(2, 3\) on cpu"),
    (lambda q, g: (q @ g.T).to("meta"), r"torch.float32 of shape \(2, 3\) on meta"),
    (lambda q, g: (q @ g.T).numpy(), "ndarray"), (lambda q, g: None, "NoneType"),
])
def test_a_score_of_another_kind_is_refused(score: Any, received: str) -> None:
    with pytest.raises(MethodError, match=(
        rf"in <lambda>: the method's `score` returned {received} for 2 queries and 3 gallery images. It must return a floating-point "
        r"tensor of shape \(B, N\) = \(2, 3\), one row per query.$"
    )):
        rank(torch.ones(2, 4), torch.ones(3, 4), [View([np.array([0])] * 2, np.full(2, -1))], score)


@pytest.mark.parametrize("count", [2, 3])
def test_a_transposed_square_is_noticed(count: int) -> None:
    queries, gallery = torch.ones(count, 4), torch.ones(count, 4)
    with pytest.raises(CirbenchError, match=r"of shape \(B, N\)"):
        ranking.checked(lambda q, g: g @ q.T, queries, gallery)
    assert ranking.checked(ranking.dot, queries, gallery).shape == (count, count)


def test_only_squares_are_scored_twice() -> None:
    calls = []

    def score(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        calls.append((len(queries), len(gallery)))
        return queries @ gallery.T

    for rows, images in ((2, 3), (1, 1), (2, 2)):
        ranking.checked(score, torch.ones(rows, 1), torch.ones(images, 1))
    assert calls == [(2, 3), (1, 1), (2, 2), (1, 2)]


def test_nan_is_told_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, spoilt, view = torch.ones(2, 1), torch.tensor([[1.0], [torch.nan]]), View([np.array([0])] * 2, np.full(2, -1))
    for queries, gallery in ((whole, spoilt), (spoilt, whole)):
        with pytest.raises(CirbenchError, match=r"^NaN among the embeddings, which cannot be ranked\.$"):
            rank(queries, gallery, [view])

    def divides(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        return (queries @ gallery.T) * torch.nan

    with pytest.raises(MethodError, match=r"in divides: NaN among the scores of gallery images 0 to 1, which cannot be ranked\. "):
        rank(whole, whole, [view], divides)
    monkeypatch.setattr(score_blocks, "BLOCK", (2, 4))
    # The product of numbers too large is infinite, and infinities of both signs have no sum.
    gallery = torch.tensor([[1.0, 1.0]] * 5 + [[3e38, -3e38]])
    with pytest.raises(CirbenchError) as refused:
        rank(torch.tensor([[2.0, 2.0]]), gallery, [View([np.array([0])], np.array([-1]))])
    assert str(refused.value) == (
        "NaN among the scores of gallery images 4 to 5, which cannot be ranked. Do embeddings overflow, or does the "
        "method's `score` divide by zero?"
    )
