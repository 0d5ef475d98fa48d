"""How small the perturbations are that attacks find, and how they are spread over the image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rbl_metrics.checks import Floats, average, beaten, stored
from robustbench_lite import CellResult, Curve, MetricValue, Threat, UsageError
from robustbench_lite.curves import same_examples
from robustbench_lite.statistics import bootstrap_median_interval, bootstrap_quantile_interval, median, quantile


@dataclass(frozen=True, kw_only=True)
class MedianPerturbation:
    """Median size of the accepted points, over the examples classified correctly; n counts those.

    An example that was not beaten is censored: its size counts as infinite, and the median is infinite when more than half
    are. An upper bound: a better attack may find smaller ones. Of an attack that does not look for small perturbations it
    says little. errors: ``zero`` counts clean errors, too, with size 0.
    """

    errors: Literal["excluded", "zero"] = "excluded"

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """In the norm of the cell's own threat, whatever the radius of ``threat``. nan where no example was correct.

        Raises UsageError where nothing is stored.
        """
        sizes = censored_sizes(cell, self.errors)
        low, high = bootstrap_median_interval(sizes)
        return MetricValue(value=median(sizes), low=low, high=high, n=len(sizes))


@dataclass(frozen=True, kw_only=True)
class PerturbationQuantile:
    """As the median, another quantile ``q`` of the sizes: the q-th part of the examples is beaten by no more."""

    q: Annotated[float, Field(gt=0, lt=1)] = 0.1
    errors: Literal["excluded", "zero"] = "excluded"

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """As ``MedianPerturbation``."""
        sizes = censored_sizes(cell, self.errors)
        low, high = bootstrap_quantile_interval(sizes, self.q)
        return MetricValue(value=quantile(sizes, self.q), low=low, high=high, n=len(sizes))


@dataclass(frozen=True, kw_only=True)
class MeanPerturbation:
    """Mean size of the accepted points over the examples classified correctly, where a mean is possible.

    of: ``restricted``, the mean of min(size, cap), in which an example that was not beaten counts with the cap; or ``beaten``,
    the mean over those that were, which says nothing about the others and falls when an attack gets better at hard ones.
    cap: the radius of the threat model where None.
    """

    of: Literal["restricted", "beaten"] = "restricted"
    cap: Annotated[float, Field(gt=0)] | None = None
    errors: Literal["excluded", "zero"] = "excluded"

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """It is nan where there is nothing to average. Raises UsageError where nothing is stored, or there is no cap."""
        sizes = censored_sizes(cell, self.errors)
        if self.of == "beaten":
            return average(sizes[np.isfinite(sizes)])
        cap = threat.eps if self.cap is None else self.cap
        if math.isinf(cap):
            raise UsageError(f"a restricted mean needs a cap, and {threat} has no radius", hint="mean-perturbation[cap=0.3]")
        return average(np.minimum(sizes, cap))


@dataclass(frozen=True, kw_only=True)
class NormalisedDistance:
    """Size of the accepted points per input value, comparable between images of different sizes (AMSD_p).

    p: 2 for the root mean square of the change, 1 for its mean absolute value, 0 for the share of pixels changed, all on the
    scale [0, 1] of the pixels. Over the points found inside the threat. From the delayed elastic-net attack's evaluation.
    """

    p: Literal[0, 1, 2] = 2
    statistic: Literal["mean", "median", "max"] = "mean"

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """It is nan where none was beaten. Raises UsageError where nothing is stored, or not the images' sizes."""
        return average(normalised_distances(cell, self.p)[beaten(cell, threat)], self.statistic)


@dataclass(frozen=True, kw_only=True)
class Evenness:
    """How evenly a change is spread over the image: normalised entropy of its energy (AMUD), 1 for the same everywhere.

    Over the points found inside the threat. Only approximately independent of the image's size: repeating every pixel k times
    turns H / ln R into (H + ln k) / (ln R + ln k). From the delayed elastic-net attack's evaluation.
    """

    statistic: Literal["mean", "median", "max"] = "mean"

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """It is nan where none was beaten. Raises UsageError where nothing is stored."""
        (entropy,) = stored(cell, "entropy")
        return average(entropy[beaten(cell, threat)], self.statistic)


@dataclass(frozen=True, kw_only=True)
class SignalToNoise:
    """Peak signal-to-noise ratio of the accepted points in dB, -20 log10 of the root mean square of the change.

    Over the points found inside the threat; the larger, the less visible. A change by a everywhere has -20 log10 a.
    """

    statistic: Literal["mean", "median"] = "mean"

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """It is nan where none was beaten. Raises UsageError where nothing is stored, or not the images' sizes."""
        changes = normalised_distances(cell, 2)[beaten(cell, threat)]
        with np.errstate(divide="ignore"):
            return average(-20 * np.log10(changes), self.statistic)


def censored_sizes(cell: CellResult, errors: Literal["excluded", "zero"] = "excluded") -> Floats:
    """(m,) size of the accepted points in the norm of the cell's threat: inf where there is none.

    Over the examples classified correctly; or over all, with 0 for clean errors. Raises UsageError where nothing is stored.
    """
    same_examples([cell])
    correct = cell.arrays["clean_correct"]
    sizes = np.where(cell.arrays["success"], cell.arrays["size"], np.inf)
    return np.asarray(sizes[correct] if errors == "excluded" else np.where(correct, sizes, 0.0))


def kaplan_meier(sizes: npt.ArrayLike, caps: npt.ArrayLike) -> Curve:
    """Share of examples whose smallest perturbation exceeds r, where examples were searched up to different radii.

    sizes: (n,) smallest size found, inf where none was. caps: (n,) up to which radius it was searched, inf for any; finds
    beyond it count as not found. Kaplan and Meier (JASA 1958), by ``scipy.stats.ecdf``, with pointwise log-log intervals. The
    plain survival curve where nothing is censored; beyond the largest finite cap it only repeats the last value.
    """
    from scipy.stats import CensoredData, ecdf

    found, limits = np.asarray(sizes, dtype=np.float64), np.asarray(caps, dtype=np.float64)
    if found.shape != limits.shape or found.ndim != 1 or not len(found) or np.isnan([found, limits]).any():
        raise ValueError("sizes and caps are two vectors of one length, without nan")
    finite = [*found[np.isfinite(found)], *limits[np.isfinite(limits)], 0.0]
    endless = 2 * max(finite) + 1  # stands for inf, which scipy does not take
    limits = np.minimum(limits, endless)
    seen = found <= limits
    function = ecdf(CensoredData(uncensored=found[seen], right=limits[~seen])).sf
    with warnings.catch_warnings():  # at shares of 0 and 1 the interval is undefined, and becomes [0, 1] below
        warnings.simplefilter("ignore", RuntimeWarning)
        band = function.confidence_interval(method="log-log")
    y = function.probabilities
    low = np.minimum(np.nan_to_num(band.low.probabilities, nan=0.0), y)
    high = np.maximum(np.nan_to_num(band.high.probabilities, nan=1.0), y)
    kept = function.quantiles < endless
    start = np.zeros(0 if (function.quantiles == 0).any() else 1)
    return Curve(
        x=np.concatenate([start, function.quantiles[kept]]),
        y=np.concatenate([start + 1, y[kept]]),
        low=np.concatenate([start + 1, low[kept]]),
        high=np.concatenate([start + 1, high[kept]]),
        step=True,
        n=len(found),
    )


def normalised_distances(cell: CellResult, p: Literal[0, 1, 2]) -> Floats:
    """(n,) AMSD_p of the accepted points; 0 where there is none. Raises as ``NormalisedDistance``."""
    distance, values, pixels = stored(cell, f"l{p}", "values", "pixels")
    return np.asarray(distance / (np.sqrt(values) if p == 2 else values if p == 1 else pixels))


def rank_sums(table: npt.ArrayLike, smaller_is_better: Sequence[bool]) -> Floats:
    """(m,) sum of the ranks of m defenses over k quantities, 1 for the best of each; ties share their mean rank.

    table: (m, k). For {linf, AMSD_2, AMSD_1, AMSD_0} larger is better for a defense, for AMUD smaller, as the evaluation of the
    delayed elastic-net attack has it.
    """
    from scipy.stats import rankdata

    signs = np.where(smaller_is_better, 1.0, -1.0)
    return np.asarray(rankdata(np.asarray(table, dtype=np.float64) * signs, axis=0).sum(1))
