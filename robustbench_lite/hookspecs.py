"""The hooks a plugin may implement: this is the whole contract between a distribution and the core.

A plugin is a light module (no torch at import) named by an entry point of the group ``robustbench_lite``::

    [project.entry-points.robustbench_lite]
    mylab = "rbl_mylab"

The entry point's name is the namespace of everything the module contributes. Mark implementations with ``hookimpl``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pluggy

from robustbench_lite.specs import AttackSpec, DatasetSpec, DefenseSpec, MetricSpec, ProtocolSpec

PROJECT = "robustbench_lite"
ENTRY_POINT_GROUP = "robustbench_lite"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def rbl_attacks() -> Iterable[AttackSpec]:  # type: ignore[empty-body]
    """The attacks this plugin brings."""


@hookspec
def rbl_defenses() -> Iterable[DefenseSpec]:  # type: ignore[empty-body]
    """The defenses this plugin brings."""


@hookspec
def rbl_datasets() -> Iterable[DatasetSpec]:  # type: ignore[empty-body]
    """The data sets this plugin brings."""


@hookspec
def rbl_metrics() -> Iterable[MetricSpec]:  # type: ignore[empty-body]
    """The metrics this plugin brings."""


@hookspec
def rbl_protocols() -> Iterable[ProtocolSpec]:  # type: ignore[empty-body]
    """The evaluation protocols this plugin brings."""


@hookspec
def rbl_cell_finished(cell: Mapping[str, Any], status: str) -> None:
    """Called in the parent process after each cell. An exception here is logged and changes nothing.

    cell: the spec of the cell as stored in ``spec.json``. status: ``done``, ``error``, ``timeout``, ``out-of-memory`` or
    ``crashed``.
    """


@hookspec
def rbl_run_finished(store: str, counts: Mapping[str, int]) -> None:
    """Called in the parent process at the end of a run. store: its folder; counts: cells per status."""
