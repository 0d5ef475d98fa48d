"""Clean accuracy, robust accuracy, and the worst case over attacks: proportions of all n examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rbl_metrics.checks import named, require_attacked, require_examples
from robustbench_lite import CellResult, MetricValue, Threat, UsageError
from robustbench_lite.statistics import wilson


def proportion(right: npt.NDArray[np.bool_]) -> MetricValue:
    """The share of ``right``, (n,) with n >= 1, with its 95 % Wilson interval."""
    k, n = int(right.sum()), len(right)
    low, high = wilson(k, n)
    return MetricValue(value=k / n, low=low, high=high, n=n)


@dataclass(frozen=True, kw_only=True)
class CleanAccuracy:
    """Share of all n examples that are classified correctly; for a stochastic defense by the mean over the judge's draws."""

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """The same for every ``threat``. Raises UsageError where nothing is stored."""
        require_examples(cell)
        return proportion(cell.arrays["clean_correct"])


@dataclass(frozen=True, kw_only=True)
class RobustAccuracy:
    """Share of all n examples that are classified correctly and that the cell's attack does not beat inside the threat.

    Clean errors count as not robust (Carlini et al., arXiv:1902.06705).
    """

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """Raises UsageError where nothing is stored, or where the attack searched less than ``threat``."""
        require_examples(cell)
        require_attacked(cell, threat)
        return proportion(cell.robust(threat))


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """Share of all n examples that are classified correctly and that no attack beats inside the threat.

    Per example over all attacks, as AutoAttack does (Croce and Hein, arXiv:2003.01690): not the smallest of the attacks'
    robust accuracies, which is never less.
    """

    def __call__(self, cells: Sequence[CellResult], threat: Threat) -> MetricValue:
        """cells: one defense under each attack, the same examples in the same order. Raises UsageError where they are not."""
        if not cells:
            raise UsageError("a worst case needs at least one attack", hint="rbl run --attack all")
        first = cells[0]
        for cell in cells:
            require_examples(cell)
            require_attacked(cell, threat)
            if not np.array_equal(cell.arrays["index"], first.arrays["index"]):
                raise UsageError(
                    f"{named(cell)} and {named(first)} were judged on different examples",
                    hint="run both with the same protocol and --n",
                )
        return proportion(np.logical_and.reduce([cell.robust(threat) for cell in cells]))
