"""Intervals and tests against scipy, enumeration and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from cirbench.scoring import statistics


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (3, 0), (5, 5), (17, 31), (700, 640), (5200, 4900)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    a = np.array([1] * only_a + [0] * only_b + [1] * 7 + [0] * 9, dtype=bool)
    b = np.array([0] * only_a + [1] * only_b + [1] * 7 + [0] * 9, dtype=bool)
    wanted = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert statistics.mcnemar(a, b)[:2] == (only_a, only_b)
    assert statistics.mcnemar(a, b)[2] == pytest.approx(wanted, rel=1e-9)


def test_permutation_agrees_with_enumeration():
    difference = np.array([0.5, -0.25, 1.0, 0.75, 0.0, 0.5, -0.5, 1.0])
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    exact = np.mean(np.abs(signs @ difference) >= abs(difference.sum()) - 1e-12)
    assert float(statistics.paired_permutation(difference, resamples=40_000)) == pytest.approx(exact, abs=0.008)


def test_permutation_agrees_with_scipy_and_with_itself_by_columns():
    generator = np.random.default_rng(1)
    difference = generator.normal(0.15, 1, (60, 3))
    ours = statistics.paired_permutation(difference, resamples=20_000)
    for column in range(3):
        theirs = scipy.stats.permutation_test(
            (difference[:, column],), np.mean, permutation_type="samples", n_resamples=20_000, rng=2
        ).pvalue
        assert ours[column] == pytest.approx(theirs, abs=0.02)
    np.testing.assert_array_equal(ours, statistics.paired_permutation(difference, resamples=20_000))


def test_permutation_flips_whole_clusters():
    # One reference image with 30 queries is one observation, however often it is asked.
    difference, clusters = np.ones(30), np.zeros(30, dtype=np.int64)
    assert float(statistics.paired_permutation(difference, clusters)) == 1.0
    assert float(statistics.paired_permutation(difference)) < 0.001
    assert float(statistics.paired_permutation(np.zeros(5))) == 1.0


def test_bootstrap_agrees_with_scipy():
    values = (np.random.default_rng(0).random(400) < 0.3).astype(float)
    low, high = statistics.bootstrap_interval(values, resamples=8000)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=8000, rng=1).confidence_interval
    assert low == pytest.approx(theirs.low, abs=0.004) and high == pytest.approx(theirs.high, abs=0.004)


def test_bootstrap_is_wider_where_clusters_agree_and_covers():
    generator = np.random.default_rng(5)
    clusters = np.repeat(np.arange(80), 5)
    covered = 0
    for trial in range(150):
        values = np.repeat(generator.random(80) < 0.4, 5).astype(float)
        low, high = statistics.bootstrap_interval(values, clusters, resamples=400, seed=trial)
        covered += low <= 0.4 <= high
    plain = statistics.bootstrap_interval(values, resamples=400)
    assert high - low > 1.7 * (plain[1] - plain[0])
    assert 132 <= covered <= 150  # 95 % of 150 is 142; below 132 has probability under 1 %


def test_bootstrap_weights_give_the_weighted_mean():
    values, weights = np.array([0.0, 1.0, 1.0, 0.0] * 50), np.array([1.0, 3.0, 1.0, 1.0] * 50)
    low, high = statistics.bootstrap_interval(values, weights=weights)
    assert low < np.average(values, weights=weights) < high and low > values.mean()
    assert np.isnan(statistics.bootstrap_interval(np.array([]))).all()


def test_holm_by_definition():
    generator = np.random.default_rng(3)
    for _ in range(20):
        p = generator.random(6) ** 3
        order = np.argsort(p)
        slow = np.empty(6)
        for place, i in enumerate(order):
            slow[i] = max(min(1.0, (6 - k) * p[order[k]]) for k in range(place + 1))
        np.testing.assert_allclose(statistics.holm(p.tolist()), slow)
    assert statistics.holm([]) == []


def test_detectable_effect_has_its_power():
    queries, discordant = 1500, 0.3
    delta = statistics.detectable_effect(queries, discordant) / 100
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        draws = generator.random(queries)
        first, second = np.sum(draws < (discordant + delta) / 2), np.sum(draws > 1 - (discordant - delta) / 2)
        found += scipy.stats.binomtest(int(first), int(first + second)).pvalue < 0.05
    assert 0.74 < found / 400 < 0.86
    assert statistics.detectable_effect(4 * queries, discordant) < 60 * delta
    assert math.isnan(statistics.detectable_effect(3, 0.1))


def test_spearman_agrees_with_scipy_on_ties():
    generator = np.random.default_rng(4)
    a, b = generator.integers(0, 5, 200), generator.random(200)
    assert statistics.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert math.isnan(statistics.spearman(np.ones(4), np.arange(4)))


def test_mean_std_of_one_value_is_unknown():
    mean, std = statistics.mean_std([3.0])
    assert mean == 3.0 and math.isnan(std) and statistics.cluster_codes(["b", "a", "b"]).tolist() == [0, 1, 0]
