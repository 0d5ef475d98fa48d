from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from robustbench_lite import statistics
from robustbench_lite.statistics import (
    bootstrap_interval,
    bootstrap_median_interval,
    bootstrap_quantile_interval,
    clopper_pearson,
    difference_interval,
    dkw_half_width,
    holm,
    kolmogorov_smirnov,
    mcnemar,
    mean_over_seeds,
    median,
    quantile,
    wilcoxon_smaller,
    wilson,
    wilson_band,
)

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
def test_wilson_and_its_band_are_those_of_scipy(counts, level):
    k, n = counts
    low, high = wilson_band([0, k, n], n, level)
    expected = [binomtest(each, n).proportion_ci(level, method="wilson") for each in (0, k, n)]
    assert low == pytest.approx([e.low for e in expected], abs=1e-12)
    assert high == pytest.approx([e.high for e in expected], abs=1e-12)
    assert wilson(k, n, level) == (low[1], high[1])


@given(COUNTS, st.floats(0.5, 0.99))
@settings(max_examples=60, deadline=None)
def test_the_exact_interval_is_that_of_scipy(counts, level):
    k, n = counts
    for each in (0, k, n):
        expected = binomtest(each, n).proportion_ci(level, method="exact")
        assert clopper_pearson(each, n, level) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_an_interval_needs_counts_of_examples(k, n):
    with pytest.raises(ValueError, match="a count of"):
        clopper_pearson(k, n)


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


@given(SIZES, st.floats(0.01, 0.99))
@settings(deadline=None)
def test_quantiles_are_the_first_value_that_enough_reach(sizes, q):
    found = quantile(sizes, q)
    assert np.mean(np.asarray(sizes) <= found) >= q - 1e-9
    assert np.mean(np.asarray(sizes) < found) < q
    low, high = bootstrap_quantile_interval(sizes, q)
    assert low <= found <= high


def test_quantile_of_ten():
    assert [quantile(range(1, 11), q) for q in (0.1, 0.25, 0.5, 0.75, 0.9)] == [1, 3, 5, 8, 9]
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile([1.0], 1.0)


def test_bootstrap_of_a_mean_is_its_normal_interval():
    sample = np.random.default_rng(3).normal(5, 2, size=400)
    half = 1.96 * sample.std() / 20
    for method in ("percentile", "bca"):
        found = bootstrap_interval(np.mean, sample, method=method)
        assert (found.low, found.high) == pytest.approx((sample.mean() - half, sample.mean() + half), abs=0.03)
    assert found == bootstrap_interval(np.mean, sample, method="bca")


def test_bootstrap_keeps_pairs_together():
    x = np.random.default_rng(0).normal(size=300)
    together = bootstrap_interval(lambda a, b: float(np.mean(a - b)), x, x + 1)
    assert together == pytest.approx((-1, -1))
    apart = bootstrap_interval(lambda a, b: float(np.mean(a) - np.mean(b)), x, x[:200] + 1, paired=False)
    assert apart.low < -1.1
    assert apart.high > -0.9


def test_bootstrap_at_the_edges():
    assert all(math.isnan(end) for end in bootstrap_interval(np.mean, [1.0]))
    assert bootstrap_interval(np.mean, [1.0, math.inf, 2.0]) == (math.inf, math.inf)
    assert bootstrap_interval(np.mean, [2.0] * 5, method="bca") == (2.0, 2.0)
    for samples in ([], [[]], [[1.0, 2.0], [1.0]]):
        with pytest.raises(ValueError):
            bootstrap_interval(lambda *arrays: 0.0, *samples)


def test_over_seeds():
    """t with one degree of freedom is 12.7062 at 97.5 %."""
    mean, (low, high) = mean_over_seeds([0.4, 0.6])
    assert mean == pytest.approx(0.5)
    assert (low, high) == pytest.approx((0.5 - 1.27062, 0.5 + 1.27062), abs=1e-5)
    with pytest.raises(ValueError, match="at least two"):
        mean_over_seeds([0.4])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
@settings(deadline=None)
def test_newcombe_holds_the_difference_mirrors_and_stays_in_range(pairs):
    a, b = np.array(pairs, dtype=bool).T
    found, (low, high) = difference_interval(a, b)
    assert found == pytest.approx(a.mean() - b.mean())
    assert -1 - 1e-12 <= low <= found + 1e-12
    assert found - 1e-12 <= high <= 1 + 1e-12
    other, mirrored = difference_interval(b, a)
    assert (other, *mirrored) == pytest.approx((-found, -high, -low), abs=1e-12)


def test_newcombe_by_hand():
    """Two independent halves: phi is 0, so the margins add up as of independent proportions."""
    a, b = vectors(15, 5, both=15, neither=5)  # 30 of 40, 20 of 40
    found, (low, high) = difference_interval(a, b)
    first, second = wilson(30, 40), wilson(20, 40)
    assert found == pytest.approx(0.25)
    assert low == pytest.approx(0.25 - math.hypot(0.75 - first.low, second.high - 0.5))
    assert high == pytest.approx(0.25 + math.hypot(first.high - 0.75, 0.5 - second.low))


@pytest.mark.slow
@pytest.mark.parametrize("cells", [(0.6, 0.15, 0.05, 0.2), (0.3, 0.05, 0.05, 0.6), (0.85, 0.1, 0.02, 0.03)])
def test_newcombe_covers(cells):
    generator = np.random.default_rng(0)
    truth, inside = cells[1] - cells[2], 0
    for counts in generator.multinomial(200, cells, size=2000):
        a, b = vectors(counts[1], counts[2], both=counts[0], neither=counts[3])
        low, high = difference_interval(a, b)[1]
        inside += low <= truth <= high
    assert 0.935 <= inside / 2000 <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.05, 0.436, 0.9])
def test_simulated_coverage(p):
    counts = np.random.default_rng(1).binomial(1000, p, size=2000)
    for interval, least, most in ((clopper_pearson, 0.94, 1.0), (wilson, 0.93, 0.97)):
        ends = {k: interval(int(k), 1000) for k in np.unique(counts)}
        assert least <= np.mean([ends[k].low <= p <= ends[k].high for k in counts]) <= most


@pytest.mark.slow
def test_mcnemar_simulated_under_the_null():
    generator = np.random.default_rng(2)
    a, b = generator.random((2, 2000, 300)) < 0.6
    assert np.mean([mcnemar(x, y) <= 0.05 for x, y in zip(a, b, strict=True)]) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_wilcoxon_finds_the_smaller_sizes_and_ranks_what_was_not_beaten_last():
    generator = np.random.default_rng(0)
    sizes = generator.exponential(size=80)
    assert wilcoxon_smaller(sizes, sizes + generator.uniform(0, 0.2, 80)) < 1e-6
    assert wilcoxon_smaller(sizes + generator.uniform(0, 0.2, 80), sizes) > 0.999
    assert wilcoxon_smaller(sizes, sizes) == 1.0
    never = np.full(80, math.inf)
    assert wilcoxon_smaller(sizes, never) < 1e-6
    assert wilcoxon_smaller(never, never) == 1.0
    # five pairs that all point one way: 1 of the 2^5 signs
    assert wilcoxon_smaller([1, 2, 3, 4, 5], [2, 4, 6, 8, math.inf]) == pytest.approx(1 / 32)


def test_kolmogorov_smirnov():
    generator = np.random.default_rng(0)
    a, b = generator.exponential(size=(2, 300))
    assert kolmogorov_smirnov(a, a) == 1.0
    assert kolmogorov_smirnov(a, b) > 0.05
    assert kolmogorov_smirnov(a, np.where(generator.random(300) < 0.3, math.inf, b)) < 1e-6


@pytest.mark.parametrize("wrong", [([1.0], [1.0, 2.0]), ([math.nan], [1.0])])
def test_sizes_are_paired(wrong):
    with pytest.raises(ValueError, match="paired sizes"):
        wilcoxon_smaller(*wrong)


def test_dkw():
    assert dkw_half_width(1000) == pytest.approx(0.042947, abs=1e-6)
