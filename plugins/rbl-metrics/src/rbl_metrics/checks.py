"""What must hold of stored results before a number is computed from them, and the shares and means that most metrics are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from robustbench_lite import CellResult, MetricValue, Threat, UsageError
from robustbench_lite.curves import same_examples
from robustbench_lite.statistics import bootstrap_interval, wilson

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Statistic = Literal["mean", "median", "max"]

_STATISTICS: dict[str, Callable[[Floats], Any]] = {"mean": np.mean, "median": np.median, "max": np.max}


def require_attacked(cells: Sequence[CellResult], threat: Threat) -> None:
    """Raise UsageError unless there are cells over the same examples whose attacks searched all of ``threat``.

    The result of an attack that searched less would overstate robustness.
    """
    same_examples(cells)
    for cell in cells:
        searched = cell.threat
        if searched.norm != threat.norm or searched.parts != threat.parts or searched.eps < threat.eps:
            raise UsageError(
                f"{cell.label} was attacked inside {searched}, which says nothing about {threat}",
                hint=f"rbl run --threat {threat}",
            )


def stored(cell: CellResult, *names: str) -> list[Floats]:
    """Arrays of a cell as float64. Raises UsageError where there are no examples, or an array is not stored."""
    same_examples([cell])
    if absent := [name for name in names if name not in cell.arrays]:
        raise UsageError(
            f"the result of {cell.label} has no {', '.join(absent)}: it is of an earlier version, or of too many classes",
            hint="run it again into a new store: rbl run --store NEW",
        )
    return [cell.arrays[name].astype(np.float64) for name in names]


def share(chosen: Bools) -> MetricValue:
    """The share that is true of ``chosen`` (n,), with its 95 % Wilson interval; nan where n is 0."""
    k, n = int(chosen.sum()), len(chosen)
    if n == 0:
        return MetricValue(value=float("nan"), n=0)
    low, high = wilson(k, n)
    return MetricValue(value=k / n, low=low, high=high, n=n)


def beaten(cell: CellResult, threat: Threat) -> Bools:
    """(n,) whether an example is classified correctly and beaten inside the threat."""
    same_examples([cell])
    return np.asarray(cell.arrays["clean_correct"] & ~cell.robust(threat))


def average(values: Floats, statistic: Statistic = "mean") -> MetricValue:
    """A mean, median or maximum of (m,) values, with a bootstrap interval but for the maximum; nan for none."""
    if not len(values):
        return MetricValue(value=math.nan, n=0)
    function = _STATISTICS[statistic]
    value = float(function(values))
    if statistic == "max" or len(values) < 2:
        return MetricValue(value=value, n=len(values))
    low, high = bootstrap_interval(lambda sample: float(function(sample)), values)
    return MetricValue(value=value, low=low, high=high, n=len(values))
