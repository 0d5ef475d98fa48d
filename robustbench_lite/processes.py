"""Work on many items in several processes, forked from this one: for reports, whose rows do not depend on one another.

A forked process has what this one has read and imported, so that the work may be any function. It must start no threads before.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# What the forked processes work on: they find it where it was at their start.
_job: tuple[Callable[[Any], Any], Sequence[Any]] | None = None


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_fork() -> bool:
    """Whether this system has the processes that ``forked_map`` needs."""
    return "fork" in multiprocessing.get_all_start_methods()


def forked_map(work: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[Result]:
    """``map(work, items)``, in that many processes at a time, which end with the last item. What ``work`` changes is lost.

    Raises what ``work`` raises, and BrokenProcessPool where a process is killed.
    """
    global _job
    _job = (work, items)
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), initializer=_leave_interrupts_to_the_parent)
    try:
        yield from pool.map(_work_on, range(len(items)))
    finally:
        pool.shutdown(cancel_futures=True)
        _job = None


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work_on(number: int) -> Any:
    if _job is None:
        raise RuntimeError("there is no work: this process was not forked by forked_map")
    work, items = _job
    return work(items[number])
