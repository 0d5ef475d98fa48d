"""What an attack on a defense costs. The core counts the passes; attacks have no say in it."""

from __future__ import annotations

from dataclasses import dataclass

from rbl_metrics.checks import require_examples
from robustbench_lite import CellResult, MetricValue, Threat


@dataclass(frozen=True, kw_only=True)
class Forwards:
    """Forward passes per example, over all n: examples that were not attacked (clean errors) cost none."""

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """The same for every ``threat``. Raises UsageError where nothing is stored."""
        return _per_example(cell, "forwards")


@dataclass(frozen=True, kw_only=True)
class Backwards:
    """Backward passes per example, over all n: examples that were not attacked (clean errors) cost none."""

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """The same for every ``threat``. Raises UsageError where nothing is stored."""
        return _per_example(cell, "backwards")


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall-clock seconds of the cell over all attempts, judging and loading included. Depends on the machine."""

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """The same for every ``threat``."""
        return MetricValue(value=float(cell.seconds), n=cell.n)


def _per_example(cell: CellResult, array: str) -> MetricValue:
    require_examples(cell)
    return MetricValue(value=float(cell.arrays[array].mean()), n=cell.n)
