"""What a worker does with a work item: run a cell, or look at a model."""

from __future__ import annotations

from robustbench_lite.diagnostics.work import run_checks
from robustbench_lite.runner import Emit, Workbench, WorkItem, run_cell


def run_item(item: WorkItem, bench: Workbench, emit: Emit) -> str:
    """Do the work of an item and say how it ended; see ``run_cell`` and ``run_checks``."""
    return (run_checks if item.checks else run_cell)(item, bench, emit)
