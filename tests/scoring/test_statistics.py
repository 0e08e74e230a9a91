"""Intervals and tests against scipy, enumeration and simulation."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats

from cirbench.scoring import statistics


@pytest.mark.parametrize(("only_a", "only_b"), [
    (0, 0), (1, 0), (3, 0), (5, 5), (17, 31), (500, 500), (500, 501), (700, 640), (600, 600), (2, 1010), (5200, 4900),
])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    a = np.array([1] * only_a + [0] * only_b + [1] * 7 + [0] * 9, dtype=bool)
    b = np.array([0] * only_a + [1] * only_b + [1] * 7 + [0] * 9, dtype=bool)
    wanted = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert statistics.mcnemar(a, b)[:2] == (only_a, only_b)
    assert statistics.mcnemar(a, b)[2] == pytest.approx(wanted, rel=1e-9, abs=0)
    # Hits may come as numbers.
    assert statistics.mcnemar(a.astype(float), b.astype(float)) == statistics.mcnemar(a, b)


def test_permutation_agrees_with_enumeration():
    difference = np.array([0.5, -0.25, 1.0, 0.75, 0.0, 0.5, -0.5, 1.0])
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    exact = np.mean(np.abs(signs @ difference) >= abs(difference.sum()) - 1e-12)
    assert float(statistics.paired_permutation(difference, resamples=40_000)) == pytest.approx(exact, abs=0.008)


#: Differences in whole parts of a unit, the unit, and their clusters. Sums of equal parts in another order differ in the
#: last bits of a float; sums that differ by a millionth of a part are not equal.
TIED: list[tuple[list[int], Fraction, list[int] | None]] = [
    ([1, 2, -1, 3, 1, -2, 1, 2, -3, 1], Fraction(1, 3), None),  # hits averaged over three seeds
    ([1, 2, 3, -1, 4, 2, -3, 1, 1, 2, 3], Fraction(1, 10), None),
    ([1, 2, -1, 3, 1, -2, 1, 2, -3, 1], Fraction(10**9, 3), None),
    ([3, -1, 2, 2, -3, 1, 5, 1], Fraction(1, 7 * 10**12), None),
    ([1, 1, 2, -1, 3, -2, 1, 1, 2, 2, -1, 1, 3, 1], Fraction(1, 3), [0, 0, 1, 2, 2, 3, 4, 4, 4, 5, 6, 7, 8, 8]),
    ([1000000, 1000001, 1000002, -1000004, 1000008, -1000016, 1000032, 999999], Fraction(1, 10**6), None),
    ([1, 1, 1, 1, 1, 1], Fraction(1, 3), None), ([1, -1], Fraction(1, 3), None), ([2], Fraction(1, 3), None),
]


@pytest.mark.parametrize(("parts", "unit", "clusters"), TIED)
def test_permutation_agrees_with_enumeration_where_sums_are_equal(
    parts: list[int], unit: Fraction, clusters: list[int] | None
):
    """Every pattern of signs, in whole numbers: sums as far from zero as the one observed count, and no others."""
    sums = parts if clusters is None else [
        sum(part for part, c in zip(parts, clusters, strict=True) if c == cluster) for cluster in sorted(set(clusters))
    ]
    totals = [abs(sum(s * v for s, v in zip(signs, sums, strict=True)))
              for signs in itertools.product([-1, 1], repeat=len(sums))]
    exact = Fraction(sum(total >= abs(sum(sums)) for total in totals), len(totals))
    difference = np.array([float(part * unit) for part in parts])
    codes = None if clusters is None else np.array(clusters)
    resamples = 40_000
    spread = math.sqrt(exact * (1 - exact) / resamples)
    for sign in (1, -1):
        p = float(statistics.paired_permutation(sign * difference, codes, resamples=resamples))
        assert p == pytest.approx(float(exact), abs=4 * spread + 1 / resamples)
    # What it would be without the equal sums, or with nearly equal ones among them, is another number.
    other = sum(total >= abs(sum(sums)) - 40 if max(parts) > 100 else total > abs(sum(sums)) for total in totals)
    assert abs(float(exact) - other / len(totals)) > 8 * spread + 2 / resamples


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


def test_permutation_is_the_sign_test_where_all_differences_are_equal():
    # 10 differences of one size: the p-value is that of a binomial test, and 2,000 differences take several blocks.
    for ups, downs, resamples in ((8, 2, 50_000), (1021, 979, 5500)):
        difference = np.array([1.0] * ups + [-1.0] * downs)
        exact = scipy.stats.binomtest(ups, ups + downs).pvalue
        spread = math.sqrt(exact * (1 - exact) / resamples)
        p = float(statistics.paired_permutation(difference, resamples=resamples, seed=3))
        assert p == pytest.approx(exact, abs=3 * spread)


def test_permutation_counts_the_observed_arrangement_among_those_drawn():
    difference = np.array([1.0, 2.0, 3.0, 5.0])
    # All signs agree: 2 of 16 arrangements are as extreme, and so is the one observed.
    ps = [float(statistics.paired_permutation(difference, resamples=3, seed=seed)) for seed in range(400)]
    assert set(ps) <= {1 / 4, 2 / 4, 3 / 4, 1.0}
    assert np.mean(ps) == pytest.approx((1 + 3 / 8) / 4, abs=0.02)
    # Without a name for them, 9,999 arrangements are drawn from the seed 0.
    assert statistics.paired_permutation(difference) == statistics.paired_permutation(difference, resamples=9999, seed=0)
    assert float(statistics.paired_permutation(difference) * 10_000) == pytest.approx(1 + 9999 / 8, abs=150)
    assert float(statistics.paired_permutation(difference, seed=1)) != float(statistics.paired_permutation(difference))


def test_permutation_knows_no_unit_and_no_other_column():
    generator = np.random.default_rng(8)
    # Whole numbers with many equal sums, as hits have: they must stay equal in units that are not exact in binary.
    difference = generator.integers(1, 4, (40, 2)) * generator.choice([-1, 1, 1], (40, 2))
    p = statistics.paired_permutation(difference)
    assert p.shape == (2,) and np.all((p > 0) & (p < 1))
    for unit in (0.1, 1e-12, 0.1 * 1e9, 1e200):
        np.testing.assert_array_equal(statistics.paired_permutation(difference * unit), p)
    for column in (0, 1):
        assert statistics.paired_permutation(difference[:, column]) == p[column]
        scaled = difference.astype(float)
        scaled[:, 1 - column] *= 1e15
        assert statistics.paired_permutation(scaled)[column] == p[column]
    # Narrow types are added up in double precision.
    wide = np.array([30] * 1540 + [-30] * 1460)
    p = statistics.paired_permutation(wide, resamples=199)
    assert 0.05 < p < 0.4 and p == statistics.paired_permutation(wide.astype(np.float16), resamples=199)


def test_nothing_that_differs_is_no_evidence():
    assert statistics.paired_permutation(np.zeros((5, 2))).tolist() == [1.0, 1.0]
    mixed = np.stack([np.zeros(30), np.ones(30)], 1)
    assert statistics.paired_permutation(mixed).tolist() == pytest.approx([1.0, 1e-4])


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


def test_bootstrap_of_two_clusters_by_hand():
    # One cluster of a mean of 1 and one of 0: the mean of two drawn is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.
    values, clusters = np.array([1, 0, 1]), np.array([0, 1, 0])
    for confidence, wanted in ((0.95, (0, 1)), (0.6, (0, 1)), (0.4, (2 / 3, 2 / 3))):
        found = statistics.bootstrap_interval(values, clusters, confidence=confidence, weights=np.array([1, 1, 1]))
        assert found.tolist() == pytest.approx(wanted)
    # Weights count within a cluster and between them: 3 against 5 where each is drawn once.
    found = statistics.bootstrap_interval(values, clusters, weights=np.array([1, 5, 2]), confidence=0.1)
    assert found.tolist() == pytest.approx([3 / 8] * 2)
    # A cluster without weight is never drawn.
    found = statistics.bootstrap_interval(values, clusters, weights=np.array([0, 5, 0]), confidence=0.99)
    assert found.tolist() == [0, 0]


def test_bootstrap_of_clusters_is_that_of_their_sums():
    generator = np.random.default_rng(2)
    sizes = generator.integers(1, 6, 40)
    clusters = generator.permutation(np.repeat(np.arange(40), sizes))
    values = generator.random(len(clusters))
    sums, counts = (np.bincount(clusters, w, minlength=40) for w in (values, np.ones(len(values))))
    means = [sums[drawn].sum() / counts[drawn].sum() for drawn in generator.integers(0, 40, (20_000, 40))]
    found = statistics.bootstrap_interval(values, clusters, resamples=20_000, confidence=0.8)
    assert found.tolist() == pytest.approx(np.percentile(means, [10, 90]).tolist(), abs=0.002)


def test_bootstrap_of_many_queries_is_the_normal_approximation():
    """3,000 queries take several blocks of resamples, and a last block that is not full."""
    values = (np.arange(3000) % 10 < 3).astype(np.int8)
    low, high = statistics.bootstrap_interval(values, resamples=1500)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 3000)
    assert low == pytest.approx(0.3 - half, abs=half / 12) and high == pytest.approx(0.3 + half, abs=half / 12)


def test_bootstrap_columns_share_their_resamples():
    generator = np.random.default_rng(6)
    values = generator.random((50, 2))
    both = np.concatenate([values, 2 * values[:, :1] + 1, values[:, :1] - values[:, 1:]], 1)
    found = statistics.bootstrap_interval(both)
    assert found.shape == (2, 4)
    np.testing.assert_allclose(found[:, 2], 2 * found[:, 0] + 1, atol=3e-9)
    np.testing.assert_allclose(found[:, 3], statistics.bootstrap_interval(values[:, 0] - values[:, 1]), atol=3e-9)
    for column in (0, 1):
        np.testing.assert_array_equal(found[:, column], statistics.bootstrap_interval(values[:, column]))
    assert statistics.bootstrap_interval(values[:, 0]).shape == (2,)
    # Half precision is added up in double precision.
    half = np.full(50, 2000.0, dtype=np.float16)
    assert statistics.bootstrap_interval(half, weights=np.full(50, 100.0, np.float16)).tolist() == [2000, 2000]


def test_bootstrap_as_it_comes():
    values = np.random.default_rng(7).random((90, 2))
    plain = statistics.bootstrap_interval(values)
    np.testing.assert_array_equal(plain, statistics.bootstrap_interval(values, confidence=0.95, resamples=2000, seed=0))
    np.testing.assert_array_equal(plain, statistics.bootstrap_interval(values, np.arange(90), weights=np.full(90, 2.0)))
    np.testing.assert_array_equal(plain, np.round(plain, 9))
    assert not np.array_equal(plain, np.round(plain, 8))
    assert not np.array_equal(plain, statistics.bootstrap_interval(values, seed=1))
    # Every resample counts, the first and the last as well: these ends are all but the lowest and the highest.
    for constant in (5.0, 7.0, 3.0):
        assert statistics.bootstrap_interval(np.full(9, constant), confidence=1 - 1e-9).tolist() == [constant, constant]
    # However little is to be covered, the ends do not cross.
    low, high = statistics.bootstrap_interval(values, confidence=0.001)
    assert (low <= high).all()
    for empty, shape in ((np.zeros(0), (2,)), (np.zeros((0, 3)), (2, 3))):
        found = statistics.bootstrap_interval(empty)
        assert found.shape == shape and np.isnan(found).all()


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
    assert math.isnan(statistics.detectable_effect(3, 0.1)) and math.isnan(statistics.detectable_effect(0, 0.1))
    assert math.isnan(statistics.detectable_effect(10_000, 0.0))


@pytest.mark.parametrize(("queries", "discordant", "levels"), [
    (400, 0.2, {}), (2000, 0.05, {"alpha": 0.01}), (90, 0.9, {"power": 0.6}), (2000, 0.3, {"alpha": 0.2, "power": 0.95}),
])
def test_detectable_effect_solves_its_equation(queries, discordant, levels):
    """sqrt(n) delta = a sqrt(d) + b sqrt(d - delta^2), squared, is quadratic in delta; the larger root is wanted."""
    a = scipy.stats.norm.ppf(1 - levels.get("alpha", 0.05) / 2) * math.sqrt(discordant)
    b = scipy.stats.norm.ppf(levels.get("power", 0.8))
    root = max(np.roots([queries + b * b, -2 * a * math.sqrt(queries), a * a - b * b * discordant]))
    assert statistics.detectable_effect(queries, discordant, **levels) == pytest.approx(100 * root, rel=1e-9)


def test_spearman_agrees_with_scipy_on_ties():
    generator = np.random.default_rng(4)
    a, b = generator.integers(0, 5, 200), generator.random(200)
    assert statistics.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert math.isnan(statistics.spearman(np.ones(4), np.arange(4)))
    assert math.isnan(statistics.spearman(np.arange(4), np.ones(4)))
    for values in (a, b, np.array([7, 7, 7]), [2, 1, 2, 2], ["b", "a"]):
        np.testing.assert_array_equal(statistics.average_ranks(values), scipy.stats.rankdata(np.unique(values, return_inverse=True)[1]))


@pytest.mark.filterwarnings("error")
def test_mean_std_of_one_value_is_unknown():
    mean, std = statistics.mean_std([3.0])
    assert mean == 3.0 and math.isnan(std)
    assert all(map(math.isnan, statistics.mean_std([])))
    assert statistics.mean_std([1, 3]) == pytest.approx((2, math.sqrt(2)))
    assert statistics.mean_std([1, 2, 6]) == pytest.approx((3, math.sqrt(7)))
    # In double precision, whatever comes in.
    assert statistics.mean_std(np.full(3000, 100, dtype=np.float16)) == (100.0, 0.0)


def test_cluster_codes_number_labels_as_they_appear():
    for labels in ([], ["a"]):
        assert statistics.cluster_codes(labels).dtype == np.int64
    assert statistics.cluster_codes(["b", "a", "b"]).tolist() == [0, 1, 0]
