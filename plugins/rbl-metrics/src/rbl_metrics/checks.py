"""What must hold of stored results before a number is computed from them."""

from __future__ import annotations

from robustbench_lite import CellResult, Threat, UsageError


def require_examples(cell: CellResult) -> None:
    """Raise UsageError for a cell in which nothing is stored: there is no number to give, and 0 would be one."""
    if cell.n == 0:
        raise UsageError(f"no examples are stored for {named(cell)} ({cell.status})", hint="rbl run computes what is missing")


def require_attacked(cell: CellResult, threat: Threat) -> None:
    """Raise UsageError where the cell's attack did not search all of ``threat``: its result would overstate robustness."""
    searched = cell.threat
    if searched.norm != threat.norm or searched.parts != threat.parts or searched.eps < threat.eps:
        raise UsageError(
            f"{named(cell)} was attacked inside {searched}, which says nothing about {threat}",
            hint=f"rbl run --threat {threat}",
        )


def named(cell: CellResult) -> str:
    """How messages call a cell."""
    return f"{cell.spec['defense']['label']} under {cell.spec['attack']['label']}"
