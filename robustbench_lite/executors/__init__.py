"""Executors: where cells run. Each takes JSON work items and reports events; results go to the store, not through them.

``inline`` runs in this process (debugging, tests); ``local``, the default, gives each device slot a worker process, so that
a crash or a time-out costs one cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from robustbench_lite.executors.slots import Slot
from robustbench_lite.runner import WorkItem

Emit = Callable[[dict[str, Any]], None]


class Executor(Protocol):
    """Runs work items and emits an event for each step of each; keeps going when a cell fails."""

    def run(self, items: Sequence[WorkItem], emit: Emit) -> None:
        """Run all items. Events: started, shard, finished (see ``runner.run_cell``)."""


def make_executor(name: str, slots: Sequence[Slot], *, timeout: float | None, plugins: Sequence[Path]) -> Executor:
    """The executor of that name. timeout: seconds per cell. plugins: one-file plugins that workers must load too."""
    if name == "inline":
        from robustbench_lite.executors.inline import InlineExecutor

        return InlineExecutor(slots[0], timeout=timeout, plugins=plugins)
    from robustbench_lite.executors.local import LocalExecutor

    return LocalExecutor(slots, timeout=timeout, plugins=plugins)
