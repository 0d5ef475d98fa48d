"""Intervals and paired tests over per-example arrays. scipy does the maths; nothing here draws a random number.

Intervals are two-sided, at level 0.95 unless said otherwise. Paired tests compare two defenses on the same examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, binomtest, chi2, norm

EXACT_UP_TO = 1000  # discordant pairs; beyond that the chi-squared approximation serves


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion of which k of n were observed (E. B. Wilson, JASA 1927).

    Raises ValueError unless 0 <= k <= n, n >= 1 and 0 < level < 1.
    """
    return _proportion(k, n, level, "wilson")


def wilson_band(k: npt.ArrayLike, n: int, level: float = 0.95) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The ends of ``wilson`` for many k at once, of the shape of ``k``: pointwise bands of curves.

    Raises ValueError as ``wilson`` does.
    """
    _check_level(level)
    counts = np.asarray(k, dtype=np.float64)
    if n < 1 or (counts < 0).any() or (counts > n).any():
        raise ValueError(f"counts of {n} examples lie between 0 and {n}, and there is at least one example")
    z2 = float(norm.isf((1 - level) / 2)) ** 2
    p = counts / n
    middle = p + z2 / (2 * n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return np.where(counts == 0, 0.0, low), np.where(counts == n, 1.0, high)


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """The exact interval for a proportion (Clopper and Pearson, Biometrika 1934): covers at least ``level``, and is wider.

    Raises ValueError unless 0 <= k <= n, n >= 1 and 0 < level < 1.
    """
    return _proportion(k, n, level, "exact")


def _proportion(k: int, n: int, level: float, method: str) -> Interval:
    _check_level(level)
    found = binomtest(int(k), int(n)).proportion_ci(confidence_level=level, method=method)
    return Interval(float(found.low), float(found.high))


def mcnemar(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Two-sided p-value for "a and b are right equally often"; a, b: (n,) bool over the same examples in the same order.

    Only examples on which they differ count (McNemar, Psychometrika 1947): exact up to 1000 of those, beyond that by the
    chi-squared approximation with continuity correction. Raises ValueError where the shapes differ.
    """
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired tests need two vectors of one length, not shapes {first.shape} and {second.shape}")
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
    ordered = _ordered(values)
    return float(ordered[(len(ordered) - 1) // 2]) if len(ordered) else float("nan")


def bootstrap_median_interval(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval for ``median``, with infinitely many resamples; values (n,), inf allowed; nan for none.

    The bootstrap distribution of an order statistic has a closed form (Efron, Ann. Statist. 1979): the median of n draws is
    at most the j-th smallest value exactly when at least ceil(n/2) of Binomial(n, j/n) draws are. So nothing is drawn: the
    ends depend on no seed, and are values that were observed.
    """
    _check_level(level)
    ordered = _ordered(values)
    n = len(ordered)
    if n == 0:
        return Interval(float("nan"), float("nan"))
    needed = (n + 1) // 2
    at_most = binom.sf(needed - 1, n, np.arange(1, n + 1) / n)  # probability that the resampled median is <= the j-th value
    tail = (1 - level) / 2
    low, high = (int(np.searchsorted(at_most, q)) for q in (tail, 1 - tail))
    return Interval(float(ordered[low]), float(ordered[high]))


def _ordered(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    found = np.sort(np.asarray(values, dtype=np.float64))
    if found.ndim != 1 or np.isnan(found).any():
        raise ValueError("a median needs a vector of numbers; use inf for what was not reached, never nan")
    return found


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
