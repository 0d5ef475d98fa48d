"""Intervals and paired tests over per-example arrays. scipy does the maths; only ``bootstrap_interval`` draws, by a fixed seed.

Intervals are two-sided, at level 0.95 unless said otherwise. Paired tests compare two defenses on the same examples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, ndtri
from scipy.stats import binom, bootstrap, chi2, ks_2samp, t, wilcoxon

EXACT_UP_TO = 1000  # discordant pairs; beyond that the chi-squared approximation serves


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion of which k of n were observed (E. B. Wilson, JASA 1927).

    Raises ValueError unless 0 <= k <= n, n >= 1 and 0 < level < 1.
    """
    low, high = wilson_band(k, n, level)
    return Interval(float(low), float(high))


def wilson_band(k: npt.ArrayLike, n: int, level: float = 0.95) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The ends of ``wilson`` for many k at once, of the shape of ``k``: pointwise bands of curves.

    Raises ValueError as ``wilson`` does.
    """
    _check_level(level)
    counts = np.asarray(k, dtype=np.float64)
    if n < 1 or (counts < 0).any() or (counts > n).any():
        raise ValueError(f"counts of {n} examples lie between 0 and {n}, and there is at least one example")
    z2 = float(ndtri((1 - level) / 2)) ** 2
    p = counts / n
    middle = p + z2 / (2 * n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return np.where(counts == 0, 0.0, low), np.where(counts == n, 1.0, high)


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """The exact interval for a proportion (Clopper and Pearson, Biometrika 1934): covers at least ``level``, and is wider.

    Raises ValueError unless 0 <= k <= n, n >= 1 and 0 < level < 1.
    """
    _check_level(level)
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"a count of {n} examples lies between 0 and {n}, not at {k}, and there is at least one example")
    tail = (1 - level) / 2  # closed, where scipy's binomtest searches for the ends, which takes a hundred times as long
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Interval(low, high)


def mcnemar(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Two-sided p-value for "a and b are right equally often"; a, b: (n,) bool over the same examples in the same order.

    Only examples on which they differ count (McNemar, Psychometrika 1947): exact up to 1000 of those, beyond that by the
    chi-squared approximation with continuity correction. Raises ValueError where the shapes differ.
    """
    first, second = _paired(a, b)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second <= EXACT_UP_TO:
        return mcnemar_exact(only_first, only_second)
    return mcnemar_chi2(only_first, only_second)


def mcnemar_exact(b: int, c: int) -> float:
    """McNemar's test by the binomial distribution; b, c: how many examples only the first, only the second got right."""
    return min(1.0, 2 * float(binom.cdf(min(b, c), b + c, 0.5)))


def mcnemar_chi2(b: int, c: int) -> float:
    """McNemar's test by chi-squared with one degree of freedom and continuity correction; b + c >= 1."""
    return float(chi2.sf(max(abs(b - c) - 1, 0) ** 2 / (b + c), 1))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values (Scand. J. Statist. 1979), in the order given: reject where it is <= alpha."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted = [0.0] * len(p)
    largest = 0.0
    for step, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - step) * p[i]))
        adjusted[i] = largest
    return adjusted


def median(values: npt.ArrayLike) -> float:
    """The lower median, the ceil(n/2)-th smallest of (n,) values: infinite when more than half of them are; nan for none."""
    return quantile(values, 0.5)


def quantile(values: npt.ArrayLike, q: float) -> float:
    """The ceil(q n)-th smallest of (n,) values: one that was observed, and infinite where enough of them are; nan for none.

    Raises ValueError unless 0 < q < 1.
    """
    ordered = _ordered(values)
    return float(ordered[_rank(q, len(ordered)) - 1]) if len(ordered) else float("nan")


def bootstrap_median_interval(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval for ``median``; see ``bootstrap_quantile_interval``."""
    return bootstrap_quantile_interval(values, 0.5, level)


def bootstrap_quantile_interval(values: npt.ArrayLike, q: float, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval for ``quantile``, with infinitely many resamples; values (n,), inf allowed; nan for none.

    The bootstrap distribution of an order statistic has a closed form (Efron, Ann. Statist. 1979): the median of n draws is
    at most the j-th smallest value exactly when at least ceil(n/2) of Binomial(n, j/n) draws are. So nothing is drawn: the
    ends depend on no seed, and are values that were observed.
    """
    _check_level(level)
    ordered = _ordered(values)
    n = len(ordered)
    if n == 0:
        return Interval(float("nan"), float("nan"))
    needed = _rank(q, n)
    at_most = binom.sf(needed - 1, n, np.arange(1, n + 1) / n)  # probability that the resampled one is <= the j-th value
    tail = (1 - level) / 2
    low, high = (int(np.searchsorted(at_most, q)) for q in (tail, 1 - tail))
    return Interval(float(ordered[low]), float(ordered[high]))


def _rank(q: float, n: int) -> int:
    """Which of n ordered values is the q-quantile, from 1."""
    if not 0 < q < 1:
        raise ValueError(f"a quantile lies between 0 and 1, not {q}")
    return max(1, math.ceil(q * n - 1e-9))


def bootstrap_interval(
    statistic: Callable[..., float],
    *samples: npt.ArrayLike,
    paired: bool = True,
    level: float = 0.95,
    resamples: int = 2000,
    method: Literal["percentile", "bca"] = "percentile",
) -> Interval:
    """Bootstrap interval of any statistic (Efron, Ann. Statist. 1979), widened to hold the statistic of the sample itself.

    samples: arrays whose first axis is examples; those are resampled, of all samples the same ones if ``paired``. Of a
    biased statistic, such as a calibration error, the percentiles may pass the estimate by, hence the widening. The seed is
    fixed. nan where the statistic of the sample is nan, or the interval is not defined.

    Raises ValueError for no examples, and for lengths that differ if paired.
    """
    _check_level(level)
    arrays = [np.asarray(sample) for sample in samples]
    if not arrays or not all(len(array) for array in arrays):
        raise ValueError("there is nothing to resample")
    if paired and len({len(array) for array in arrays}) != 1:
        raise ValueError(f"paired samples have one length, not {[len(array) for array in arrays]}")
    value = float(statistic(*arrays))
    if not math.isfinite(value) or min(len(array) for array in arrays) < 2:
        return Interval(value, value) if math.isinf(value) else Interval(math.nan, math.nan)
    rows = [np.arange(len(array)) for array in arrays]

    def of(*chosen: npt.NDArray[np.int64]) -> float:
        return float(statistic(*(array[picked] for array, picked in zip(arrays, chosen, strict=True))))

    with warnings.catch_warnings():  # a statistic that never changes has no spread, which is no cause for alarm
        warnings.simplefilter("ignore")
        found = bootstrap(
            rows,
            of,
            paired=paired,
            vectorized=False,
            n_resamples=resamples,
            batch=100,  # indices of so many resamples at a time
            confidence_level=level,
            method=method,
            rng=0,
        ).confidence_interval
    low, high = (value if math.isnan(end) else float(end) for end in (found.low, found.high))
    return Interval(min(low, value), max(high, value))


def mean_over_seeds(values: npt.ArrayLike, level: float = 0.95) -> tuple[float, Interval]:
    """The mean over training seeds and its t interval, mean +- t * sd / sqrt(S); values (S,), S >= 2."""
    _check_level(level)
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) < 2:
        raise ValueError("an interval over seeds needs the values of at least two")
    mean, error = float(found.mean()), float(found.std(ddof=1) / math.sqrt(len(found)))
    half = float(t.isf((1 - level) / 2, len(found) - 1)) * error
    return mean, Interval(mean - half, mean + half)


def difference_interval(a: npt.ArrayLike, b: npt.ArrayLike, level: float = 0.95) -> tuple[float, Interval]:
    """How much more often ``a`` is right than ``b``, and Newcombe's interval of that paired difference of proportions.

    a, b: (n,) bool over the same examples in the same order. Method 10 of R. G. Newcombe (Statist. Med. 17, 1998, 2635),
    with Wilson's intervals and the correlation of the two, continuity-corrected. Raises ValueError where the shapes differ.
    """
    first, second = _paired(a, b)
    n = len(first)
    both, only_first = int((first & second).sum()), int((first & ~second).sum())
    only_second, neither = int((second & ~first).sum()), int((~first & ~second).sum())
    p, q = (both + only_first) / n, (both + only_second) / n
    (p_low, p_high), (q_low, q_high) = wilson(both + only_first, n, level), wilson(both + only_second, n, level)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    phi = 0.0
    if margins:
        cross = both * neither - only_first * only_second
        phi = (max(cross - n / 2, 0.0) if cross > 0 else float(cross)) / math.sqrt(margins)
    down, up = (p - p_low, q_high - q), (p_high - p, q - q_low)
    low, high = (math.sqrt(max(0.0, s * s - 2 * phi * s * r + r * r)) for s, r in (down, up))
    return p - q, Interval(p - q - low, p - q + high)


def wilcoxon_smaller(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """One-sided p-value for "the sizes ``a`` are not smaller than ``b``": Wilcoxon's signed-rank test; a, b: (n,) paired.

    For two minimal-norm attacks on the same examples. Infinite sizes (not beaten) are ranked beyond every difference of two
    finite ones; pairs that are equal, also both infinite, count for neither. 1 where no pair differs.
    """
    first, second = _paired_sizes(a, b)
    unequal = first != second
    with np.errstate(invalid="ignore"):
        change = (first - second)[unequal]
    if not len(change):
        return 1.0
    finite = np.abs(change[np.isfinite(change)])
    change = np.clip(change, -2 * finite.max(initial=1.0), 2 * finite.max(initial=1.0))
    return float(wilcoxon(change, alternative="less").pvalue)


def kolmogorov_smirnov(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Two-sided p-value for "the sizes ``a`` and ``b`` have one distribution"; vectors, inf allowed where nothing was found."""
    return float(ks_2samp(_ordered(a), _ordered(b)).pvalue)


def dkw_half_width(n: int, level: float = 0.95) -> float:
    """Half the width of the band that holds a whole distribution function: sqrt(ln(2 / (1 - level)) / (2 n)).

    Dvoretzky, Kiefer and Wolfowitz (Ann. Math. Statist. 1956) with the constant of Massart (Ann. Probab. 1990).
    """
    _check_level(level)
    return math.sqrt(math.log(2 / (1 - level)) / (2 * n))


def _paired(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired tests need two vectors of one length, not shapes {first.shape} and {second.shape}")
    return first, second


def _paired_sizes(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or np.isnan([first, second]).any():
        raise ValueError("paired sizes are two vectors of one length; use inf for what was not beaten, never nan")
    return first, second


def _ordered(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    found = np.sort(np.asarray(values, dtype=np.float64))
    if found.ndim != 1 or np.isnan(found).any():
        raise ValueError("a median needs a vector of numbers; use inf for what was not reached, never nan")
    return found


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
