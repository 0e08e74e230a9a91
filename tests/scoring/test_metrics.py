"""Metrics of ranks: exact values, and slow loops over whole rankings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cirbench.scoring import metrics

RANKS = np.array([1, 3, 0, 10, 2])


@pytest.mark.parametrize(("name", "kind", "k"), [
    ("R@1", "R", 1), ("R@10", "R", 10), ("Rs@3", "Rs", 3), ("mAP@25", "mAP", 25), ("MdR", "MdR", 0), ("MR", "MR", 0),
])
def test_names(name: str, kind: str, k: int) -> None:
    assert metrics.parse(name) == (kind, k)
    assert metrics.parts(name) == [name]


@pytest.mark.parametrize("name", [
    "", "R", "R@", "R@0", "R@05", "R@-1", "R@1 ", " R@1", "r@1", "R@1.5", "AP@5", "mAP", "mR", "mdr", "MDR", "mr",
    "recall", "mean(R@1)", "mean(R@1,R@5)",
])
def test_what_is_no_metric(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not a metric\. Metrics are R@K, Rs@K, mAP@K, MdR, MR and mean") as refused:
        metrics.parse(name)
    assert str(refused.value).startswith(repr(name))


def test_means_are_taken_apart() -> None:
    assert metrics.parts("mean(R@5,Rs@1)") == ["R@5", "Rs@1"]
    assert metrics.parts("mean(R@10, R@50 ,R@100)") == ["R@10", "R@50", "R@100"]
    assert metrics.parts("mean(R@10)") == ["R@10"]
    for name in ("mean()", "mean(R@1", "xmean(R@1)", "Mean(R@1)"):
        assert metrics.parts(name) == [name]


def test_recall_median_and_mean_by_hand() -> None:
    assert metrics.hits(RANKS, 3).tolist() == [True, True, False, False, True]
    assert [metrics.recall_at(RANKS, k) for k in (1, 2, 3, 9, 10, 11)] == pytest.approx([20, 40, 60, 60, 80, 80])
    assert metrics.median_rank(RANKS) == 2.5 and metrics.mean_rank(RANKS) == 4.0
    # A query without a target in its gallery is never a hit, and has no rank that could be averaged.
    assert metrics.recall_at(np.array([0]), 5) == 0.0
    # Warnings are errors here: nothing is averaged that is not there.
    with np.errstate(all="raise"):
        for none in (np.array([], dtype=int), np.array([0, 0])):
            assert math.isnan(metrics.median_rank(none)) and math.isnan(metrics.mean_rank(none))
        assert math.isnan(metrics.recall_at(np.array([], dtype=int), 5))


@pytest.mark.filterwarnings("error")
def test_metrics_of_best_ranks_by_name() -> None:
    assert metrics.of_ranks("R@3", RANKS) == pytest.approx(60)
    assert metrics.of_ranks("R@1", RANKS) == pytest.approx(20)
    assert metrics.of_ranks("MdR", RANKS) == 2.5 and metrics.of_ranks("MR", RANKS) == 4.0
    assert math.isnan(metrics.of_ranks("MdR", np.array([0]))) and math.isnan(metrics.of_ranks("MR", np.array([0])))
    for name in ("Rs@1", "mAP@5"):
        with pytest.raises(ValueError, match=f"^{name} is not a function of best ranks"):
            metrics.of_ranks(name, RANKS)


def test_average_precision_by_hand() -> None:
    def precision(ranks: list[int], targets: int, k: int) -> float:
        return metrics.average_precision_at(np.array(ranks), targets, k)

    assert precision([1], 1, 5) == 1.0
    assert precision([4, 0], 2, 5) == pytest.approx((1 / 4) / 2)
    assert precision([3, 1], 2, 5) == pytest.approx((1 / 1 + 2 / 3) / 2)  # whatever order the targets come in
    assert precision([2, 5], 2, 5) == pytest.approx((1 / 2 + 2 / 5) / 2)  # the k-th place still counts
    assert precision([2, 6], 2, 5) == pytest.approx((1 / 2) / 2)
    # At most k of many targets can be found: a perfect ranking has 1.
    assert precision([1, 2, 3, 4, 5, 6, 7], 7, 5) == 1.0
    assert precision([0, 0], 2, 5) == 0.0
    assert math.isnan(precision([], 0, 5))


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 50), st.randoms())
def test_average_precision_equals_a_walk_down_the_ranking(ranking: list[bool], k: int, random: object) -> None:
    places = [n for n, is_target in enumerate(ranking, 1) if is_target]
    random.shuffle(places)  # type: ignore[attr-defined]
    found, total = 0, 0.0
    for n, is_target in enumerate(ranking[:k], 1):
        if is_target:
            found += 1
            total += found / n
    if places:
        got = metrics.average_precision_at(np.array(places), len(places), k)
        assert got == pytest.approx(total / min(len(places), k))
        assert 0 <= got <= 1


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30))
def test_recall_counts_what_a_loop_counts_and_grows_with_k(ranks: list[int]) -> None:
    values = [metrics.recall_at(np.array(ranks), k) for k in range(1, 32)]
    assert values == [pytest.approx(100 * sum(0 < r <= k for r in ranks) / len(ranks)) for k in range(1, 32)]
    assert values == sorted(values)
