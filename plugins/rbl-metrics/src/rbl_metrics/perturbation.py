"""How small the perturbations are that minimal-norm attacks find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rbl_metrics.checks import require_examples
from robustbench_lite import CellResult, MetricValue, Threat
from robustbench_lite.statistics import bootstrap_median_interval, median


@dataclass(frozen=True, kw_only=True)
class MedianPerturbation:
    """Median size of the accepted points, over the examples classified correctly; n counts those.

    An example that was not beaten is censored: its size counts as infinite, and the median is infinite when more than half
    are. An upper bound: a better attack may find smaller ones. Of an attack that does not look for small perturbations it
    says little.
    """

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """In the norm of the cell's own threat, whatever the radius of ``threat``. nan where no example was correct.

        Raises UsageError where nothing is stored.
        """
        require_examples(cell)
        correct, success, size = (cell.arrays[name] for name in ("clean_correct", "success", "size"))
        sizes = np.where(success, size, np.inf)[correct]
        low, high = bootstrap_median_interval(sizes)
        return MetricValue(value=median(sizes), low=low, high=high, n=len(sizes))
