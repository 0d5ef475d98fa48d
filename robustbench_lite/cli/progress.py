"""Progress of a run: a bar on a terminal, plain lines elsewhere. All of it goes to standard error."""

from __future__ import annotations

import sys
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from robustbench_lite.cli.app import counted, warn

if TYPE_CHECKING:
    from robustbench_lite.plan import Plan


def bar(console: Console, unit: str) -> RichProgress:
    """A bar that says how many units are done and how long the rest takes, and goes away; on a terminal alone."""
    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class Progress:
    """Shows the events of an executor. One unit of the bar is one shard; a line is printed for each finished cell."""

    def __init__(self, plan: Plan) -> None:
        self._left = {cell.key: cell.shards for cell in plan.cells if cell.to_run}
        self._total = sum(self._left.values())
        self._cells, self._finished = len(self._left), 0
        self._console = Console(stderr=True)
        self._bar = bar(self._console, "shards")
        self._task = self._bar.add_task("running", total=self._total)

    def __enter__(self) -> Progress:
        if self._cells:
            self._line(f"running {counted(self._cells, 'cell')}, {counted(self._total, 'shard')}")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Show one event."""
        key = event["key"]
        if event["event"] == "started":
            self._bar.update(self._task, description=escape(event["label"][:60]))
        elif event["event"] == "shard":
            self._advance(key, 1)
        elif event["event"] == "finished" and event["status"] != "busy":
            self._advance(key, self._left.get(key, 0))
            self._finished += 1
            reason = f": {event['reason'].splitlines()[0]}" if event["reason"] else ""
            self._line(f"[{self._finished}/{self._cells}] {event['status']:<7} {event['label']}{reason}")

    def _advance(self, key: str, shards: int) -> None:
        self._left[key] = self._left.get(key, 0) - shards
        self._bar.advance(self._task, shards)

    def _line(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


class CheckReporter:
    """Says what checks of models found: a line for each that costs the rank, and one for each model when it is done.

    count: of how many models (under a threat model, where they are attacked) something is still to be found out.
    """

    def __init__(self, count: int) -> None:
        self._count, self._finished = count, 0
        self._outcomes: dict[str, Counter[str]] = {}

    def show(self, event: dict[str, Any]) -> None:
        """Show one event of a set of checks."""
        label, found = event["label"], self._outcomes.setdefault(event["key"], Counter())
        if event["event"] == "verdict":
            found[event["outcome"]] += 1
            if event["outcome"] == "fail":
                warn(f"{label}: {event['code']} {event['check']}: {event['evidence']}")
        elif event["event"] == "finished" and event["status"] != "busy":
            self._finished += 1
            said = ", ".join(f"{number} {outcome}" for outcome, number in sorted(found.items()))
            if event["status"] not in ("done", "cached"):
                said = f"{event['status']}: {(event['reason'].splitlines() or [''])[0]}"
            warn(f"[{self._finished}/{self._count}] {label}: {said or 'made by another run'}")
