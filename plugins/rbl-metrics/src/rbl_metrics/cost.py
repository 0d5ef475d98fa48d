"""What an attack on a defense costs. The core counts the passes; attacks have no say in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rbl_metrics.checks import average, beaten, require_attacked
from robustbench_lite import CellResult, Curve, MetricValue, Threat
from robustbench_lite.curves import same_examples
from robustbench_lite.statistics import wilson_band

Middle = Literal["mean", "median"]


@dataclass(frozen=True, kw_only=True)
class Forwards:
    """Forward passes per example, over all n: examples that were not attacked (clean errors) cost none."""

    statistic: Middle = "mean"

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """The same for every ``threat``. Raises UsageError where nothing is stored."""
        return _per_example(cell, "forwards", self.statistic)


@dataclass(frozen=True, kw_only=True)
class Backwards:
    """Backward passes per example, over all n: examples that were not attacked (clean errors) cost none."""

    statistic: Middle = "mean"

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """The same for every ``threat``. Raises UsageError where nothing is stored."""
        return _per_example(cell, "backwards", self.statistic)


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Queries that the attack spent on each example that it beat inside the threat; what was not beaten does not count.

    Of a stochastic defense each query is one, over however many draws it was averaged.
    """

    statistic: Middle = "median"

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """It is nan where none was beaten. Raises UsageError where nothing is stored, or the attack searched less."""
        require_attacked([cell], threat)
        return average(cell.arrays["queries"][beaten(cell, threat)].astype(np.float64), self.statistic)


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall-clock seconds of the cell over all attempts, judging and loading included. Depends on the machine."""

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """The same for every ``threat``."""
        return MetricValue(value=float(cell.seconds), n=cell.n)


def success_over_queries(cell: CellResult, threat: Threat) -> Curve:
    """Share of the examples classified correctly that are beaten inside the threat by so many queries, with Wilson intervals.

    An attack stops asking about an example when it has beaten it, unless it goes on to make the perturbation smaller: then the
    curve says when it was content. Raises UsageError where nothing is stored, or the attack searched less.
    """
    require_attacked([cell], threat)
    n = int(cell.arrays["clean_correct"].sum())
    spent = np.sort(cell.arrays["queries"][beaten(cell, threat)])
    x = np.union1d([0], spent)
    done = np.searchsorted(spent, x, side="right")
    low, high = wilson_band(done, n) if n else (np.full(len(x), np.nan), np.full(len(x), np.nan))
    return Curve(x=x.astype(np.float64), y=done / max(n, 1), low=low, high=high, step=True, n=n)


def _per_example(cell: CellResult, array: str, statistic: Middle) -> MetricValue:
    same_examples([cell])
    values = cell.arrays[array]
    return MetricValue(value=float(values.mean() if statistic == "mean" else np.median(values)), n=cell.n)
