"""Runs cells one after another in this process: for debugging, and for tests that look inside."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from robustbench_lite.errors import CellFailed
from robustbench_lite.executors.slots import Slot
from robustbench_lite.executors.work import run_item
from robustbench_lite.registry import Registry, load
from robustbench_lite.runner import Workbench, WorkItem, prepare_torch

# How long to wait before asking again for a cell that another run is working on.
POLL_SECONDS = 0.5


class InlineExecutor:
    """One slot, this process. A time-out interrupts the cell by a signal, so only in the main thread of a Unix process."""

    def __init__(
        self, slot: Slot, *, timeout: float | None = None, plugins: Sequence[Path] = (), registry: Registry | None = None
    ) -> None:
        self._slot = slot
        self._timeout = timeout
        self._registry = registry or load(plugins)

    def run(self, items: Sequence[WorkItem], emit: Callable[[dict[str, Any]], None]) -> None:
        """Run all items; those that another run holds are asked for again until they are done."""
        prepare_torch(self._slot.device, self._slot.threads)
        bench = Workbench(self._registry)
        waiting = list(items)
        while waiting:
            busy = []
            for item in waiting:
                with contextlib.redirect_stdout(sys.stderr), _alarm(self._timeout):
                    if run_item(item, bench, emit) == "busy":
                        busy.append(item)
            waiting = busy
            if waiting:
                time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(_: int, __: FrameType | None) -> None:
        raise CellFailed(f"longer than {seconds:g} s", status="timeout", hint="raise --timeout")

    before = signal.signal(signal.SIGALRM, ring)
    began = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # somebody else's alarm, which rings as it would have
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - began)), interval)
