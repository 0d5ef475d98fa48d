"""Progress of a training run: a bar on a terminal, a few plain lines elsewhere. All of it goes to standard error."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape

from robustbench_lite.cli.app import warn
from robustbench_lite.cli.progress import bar

# How many lines a training run prints where there is no terminal.
LINES = 10


class TrainingProgress:
    """Shows each epoch: its loss, and the accuracies on held-out examples, clean and under PGD."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = bar(self._console, "epochs")
        self._task = self._bar.add_task("training", total=None)
        self._began, self._first = time.monotonic(), 0

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, epoch: dict[str, float]) -> None:
        """Show one epoch, as ``train`` tells it."""
        number, total = int(epoch["epoch"]), int(epoch["epochs"])
        self._first = self._first or number
        said = f"loss {epoch['loss']:.3f}, {measured(epoch)}"
        self._bar.update(self._task, description=escape(said), total=total, completed=number)
        if self._console.is_terminal or number * LINES // total == (number - 1) * LINES // total:
            return
        # After a resume, only the epochs since then took this process's time.
        left = (time.monotonic() - self._began) / (number - self._first + 1) * (total - number)
        warn(f"epoch {number}/{total}: {said}, {left:.0f} s left")


def measured(metrics: dict[str, float]) -> str:
    """Accuracies in words."""
    found = f"clean {metrics['clean']:.1%}"
    return found + (f", under PGD {metrics['robust']:.1%}" if "robust" in metrics else "")
