from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from robustbench_lite import statistics
from robustbench_lite.statistics import bootstrap_median_interval, clopper_pearson, holm, mcnemar, median, wilson, wilson_band

COUNTS = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)
SIZES = st.lists(st.floats(0, 10) | st.just(math.inf), min_size=1, max_size=60)


def vectors(only_a: int, only_b: int, both: int = 3, neither: int = 2) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, False, True, False], [only_a, only_b, both, neither])
    b = np.repeat([False, True, True, False], [only_a, only_b, both, neither])
    return a, b


@pytest.mark.parametrize(
    ("interval", "k", "n", "low", "high"),
    [
        (wilson, 436, 1000, 0.405568, 0.466922),
        (clopper_pearson, 436, 1000, 0.404992, 0.467385),
        (wilson, 0, 1000, 0.0, 0.0038268),
        (clopper_pearson, 0, 1000, 0.0, 0.0036821),
    ],
)
def test_known_intervals(interval, k, n, low, high):
    assert interval(k, n) == pytest.approx((low, high), abs=1e-6)


def test_wilson_is_its_formula():
    k, n, z = 17, 60, 1.959963984540054
    p = k / n
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert wilson(k, n) == pytest.approx(((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)), abs=1e-12)


@given(COUNTS, st.floats(0.5, 0.99))
@settings(max_examples=60, deadline=None)
def test_a_band_is_the_interval_at_each_count(counts, level):
    k, n = counts
    low, high = wilson_band([0, k, n], n, level)
    expected = [wilson(each, n, level) for each in (0, k, n)]
    assert low == pytest.approx([e.low for e in expected], abs=1e-12)
    assert high == pytest.approx([e.high for e in expected], abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [([0], 0), ([3], 2), ([-1], 2)])
def test_a_band_needs_counts_of_examples(k, n):
    with pytest.raises(ValueError, match="counts of"):
        wilson_band(k, n)


@given(COUNTS)
@settings(max_examples=60, deadline=None)
def test_intervals_hold_the_estimate_and_mirror(counts):
    k, n = counts
    for interval in (wilson, clopper_pearson):
        low, high = interval(k, n)
        assert 0 <= low <= k / n + 1e-12
        assert k / n - 1e-12 <= high <= 1
        assert interval(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)
        narrower = interval(k, n, level=0.5)
        assert low <= narrower.low <= narrower.high <= high


@pytest.mark.parametrize("p", [0.02, 0.3, 0.71])
def test_coverage(p):
    n, ks = 200, np.arange(201)
    weight = binom.pmf(ks, n, p)

    def coverage(interval):
        return sum(w for k, w in zip(ks, weight, strict=True) if interval(k, n).low <= p <= interval(k, n).high)

    assert coverage(clopper_pearson) >= 0.95
    assert 0.92 <= coverage(wilson) <= 0.98


@pytest.mark.parametrize(("k", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_impossible_counts(k, n):
    with pytest.raises(ValueError):
        wilson(k, n)


@pytest.mark.parametrize("level", [0, 1, 95, -0.1])
def test_impossible_level(level):
    with pytest.raises(ValueError, match="confidence level"):
        wilson(1, 2, level)
    with pytest.raises(ValueError, match="confidence level"):
        bootstrap_median_interval([1.0], level)


def test_known_mcnemar():
    assert mcnemar(*vectors(10, 25)) == pytest.approx(0.0166738, abs=1e-7)
    assert statistics.mcnemar_chi2(10, 25) == pytest.approx(0.0179605, abs=1e-7)


def test_mcnemar_uses_chi2_beyond_a_thousand_pairs():
    assert mcnemar(*vectors(450, 550)) == statistics.mcnemar_exact(450, 550)
    assert mcnemar(*vectors(450, 551)) == statistics.mcnemar_chi2(450, 551)
    assert statistics.mcnemar_chi2(450, 551) == pytest.approx(statistics.mcnemar_exact(450, 551), rel=0.02)


@pytest.mark.parametrize("b", [0, 7, 900])
def test_mcnemar_of_equals_is_one(b):
    assert mcnemar(*vectors(b, b)) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
@settings(deadline=None)
def test_mcnemar_is_symmetric_and_ignores_agreement(pairs):
    a, b = np.array(pairs, dtype=bool).reshape(-1, 2).T
    p = mcnemar(a, b)
    assert 0 <= p <= 1
    assert p == mcnemar(b, a) == mcnemar(np.append(a, True), np.append(b, True))


def test_mcnemar_rejects_at_most_its_level_under_the_null():
    pairs = 40
    rejected = sum(binom.pmf(b, pairs, 0.5) for b in range(pairs + 1) if statistics.mcnemar_exact(b, pairs - b) <= 0.05)
    assert 0.01 < rejected <= 0.05


def test_mcnemar_refuses_unpaired_vectors():
    with pytest.raises(ValueError, match="one length"):
        mcnemar([True, False], [True])


def test_known_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(P_VALUES, st.randoms())
def test_holm_lies_between_raw_and_bonferroni_and_follows_the_order(p, random):
    adjusted = holm(p)
    for raw, value in zip(p, adjusted, strict=True):
        assert raw <= value <= min(1.0, len(p) * raw) + 1e-12
    order = list(range(len(p)))
    random.shuffle(order)
    assert holm([p[i] for i in order]) == pytest.approx([adjusted[i] for i in order])
    for i in order:
        for j in order:
            assert p[i] > p[j] or adjusted[i] <= adjusted[j]


def test_holm_keeps_the_family_wise_error():
    p = np.random.default_rng(0).uniform(size=(4000, 5))
    assert np.mean([min(holm(list(row))) <= 0.05 for row in p]) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


def test_median_is_infinite_when_more_than_half_is():
    assert median([3.0, 1.0, math.inf, math.inf]) == 3.0
    assert median([1.0, math.inf, math.inf]) == math.inf
    assert median([5.0]) == 5.0
    assert math.isnan(median([]))


def test_no_values_have_no_interval():
    assert all(math.isnan(end) for end in bootstrap_median_interval([]))


def test_nan_is_refused():
    with pytest.raises(ValueError, match="nan"):
        median([1.0, math.nan])


@pytest.mark.parametrize("n", [1, 2, 9, 40, 101])
def test_bootstrap_is_the_limit_of_resampling(n):
    """Against resampling with a fixed generator: the ends stand within one rank of each other."""
    generator = np.random.default_rng(n)
    values = np.sort(generator.exponential(size=n))
    values[n - n // 10 :] = math.inf
    draws = np.sort(values[generator.integers(0, n, size=(20_000, n))], axis=1)[:, (n - 1) // 2]
    low, high = bootstrap_median_interval(values)
    for end, q in ((low, 0.025), (high, 0.975)):
        resampled = np.sort(draws)[math.ceil(q * len(draws)) - 1]
        assert abs(int(np.searchsorted(values, end)) - int(np.searchsorted(values, resampled))) <= 1


@given(SIZES)
@settings(deadline=None)
def test_median_interval_invariants(sizes):
    low, high = bootstrap_median_interval(sizes)
    assert low <= median(sizes) <= high
    assert {low, high} <= set(sizes)
    assert bootstrap_median_interval(sizes[::-1]) == (low, high)
    wider = bootstrap_median_interval(sizes, level=0.999)
    assert wider.low <= low <= high <= wider.high


def test_median_interval_by_hand():
    """Of two values the lower median of a resample is the smaller one with probability 3/4."""
    assert bootstrap_median_interval([1.0, 2.0], level=0.4) == (1.0, 1.0)
    assert bootstrap_median_interval([1.0, 2.0], level=0.6) == (1.0, 2.0)


def test_median_interval_covers():
    generator = np.random.default_rng(1)
    intervals = [bootstrap_median_interval(generator.exponential(size=60)) for _ in range(600)]
    inside = [low <= math.log(2) <= high for low, high in intervals]
    assert 0.9 <= np.mean(inside) <= 0.99
