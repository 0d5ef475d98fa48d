"""Slots, and executors over real cells: what is busy is waited for, what dies is replaced."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_lite import RblError, UsageError
from robustbench_lite.executors import make_executor
from robustbench_lite.executors.inline import InlineExecutor
from robustbench_lite.executors.local import LocalExecutor
from robustbench_lite.executors.slots import Slot, find_slots
from robustbench_lite.lease import Lease
from robustbench_lite.planner import make_plan
from robustbench_lite.registry import Registry, load
from robustbench_lite.request import RunRequest
from robustbench_lite.runner import WorkItem
from robustbench_lite.store import Store
from tests.support import TOY

CPU = Slot("cpu", 1)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load([TOY])


def work(registry: Registry, store: Path, attack: str, defense: str = "toy/mean", n: int = 32) -> list[WorkItem]:
    request = RunRequest(
        dataset=("toy/blobs",), defense=(defense,), attack=(attack,), threat=("linf:0.08",), n=n, store=store, plugin=(TOY,)
    )
    return [WorkItem.of(cell, request, "cpu") for cell in make_plan(request, registry, None).cells]


# -------------------------------------------------------------------------------------------------------------- slots


def test_cpu_slots_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert find_slots("auto", None, 100) == [Slot("cpu", 1)] * 8
    assert find_slots("cpu", None, 3) == [Slot("cpu", 2)] * 3
    assert find_slots("cpu", 2, 100) == [Slot("cpu", 4)] * 2
    assert find_slots("cpu", 16, 100) == [Slot("cpu", 1)] * 16
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert find_slots("cpu", 2, 100) == [Slot("cpu", 3)] * 2


def test_gpu_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_slots("auto", None, 100) == [Slot("cuda:0"), Slot("cuda:1")]
    assert find_slots("cuda", None, 100) == [Slot("cuda:0")]
    assert find_slots("cuda:1,cuda:0", 2, 1) == [Slot("cuda:1")] * 2 + [Slot("cuda:0")] * 2
    assert find_slots("cpu", 1, 1)[0].device == "cpu"
    with pytest.raises(UsageError, match="cuda:2 is not there: torch sees 2 GPUs") as refused:
        find_slots("cuda:0,cuda:2", None, 1)
    assert "rbl doctor" in refused.value.hint


# ---------------------------------------------------------------------------------------------------------- executors


def test_a_cell_that_another_run_holds_is_waited_for(registry: Registry, tmp_path: Path) -> None:
    (item,) = work(registry, tmp_path / "store", "toy/shift")
    cell = Store.open(tmp_path / "store").cell(item.spec)
    lease = Lease.acquire(cell.folder)
    assert lease is not None
    events: list[dict[str, Any]] = []

    def emit(event: dict[str, Any]) -> None:
        events.append(event)
        if event.get("status") == "busy":
            assert cell.state(1).status == "new"
            lease.release()

    InlineExecutor(CPU, registry=registry).run([item], emit)
    assert [event["status"] for event in events if event["event"] == "finished"] == ["busy", "done"]
    assert cell.state(1).status == "done"


def test_an_alarm_of_somebody_else_still_rings(registry: Registry, tmp_path: Path) -> None:
    rang = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: rang.set())
    outer = signal.setitimer(signal.ITIMER_REAL, 2.0)
    try:
        events: list[dict[str, Any]] = []
        items = work(registry, tmp_path / "store", "toy/hangs")
        InlineExecutor(CPU, timeout=0.2, registry=registry).run(items, events.append)
        assert events[-1]["status"] == "timeout"
        assert not rang.is_set()
        deadline = time.monotonic() + 10
        while not rang.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rang.is_set()
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *outer)


def test_a_worker_that_leaves_a_child_behind_is_known_to_be_dead(registry: Registry, tmp_path: Path) -> None:
    """The child holds the worker's pipe open, so its end is not seen there."""
    items = work(registry, tmp_path / "store", "toy/orphans") + work(registry, tmp_path / "store", "toy/shift")
    events: list[dict[str, Any]] = []
    LocalExecutor([CPU], plugins=[TOY]).run(items, events.append)
    finished = {event["label"]: event for event in events if event["event"] == "finished"}
    assert {event["status"] for event in finished.values()} == {"crashed", "done"}
    (crashed,) = [event for event in finished.values() if event["status"] == "crashed"]
    assert "code 9" in crashed["reason"]
    state = Store.open(tmp_path / "store").cell(items[0].spec).state(1)
    assert state.status == "crashed"


def test_workers_that_cannot_start_are_an_error_with_what_they_said(registry: Registry, tmp_path: Path) -> None:
    items = work(registry, tmp_path / "store", "toy/shift")
    with pytest.raises(RblError, match="a worker process could not start") as refused:
        LocalExecutor([CPU], plugins=[tmp_path / "gone.py"]).run(items, lambda event: None)
    assert "gone.py" in str(refused.value)


def test_nothing_to_do_starts_no_worker(tmp_path: Path) -> None:
    for name in ("local", "inline"):
        make_executor(name, [CPU], timeout=None, plugins=[tmp_path / "gone.py"] if name == "local" else [TOY]).run([], print)


def test_workers_import_what_their_parent_does_whatever_lies_in_the_current_directory(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('not the one of Python')\n")
    (tmp_path / "robustbench_lite").mkdir()
    (tmp_path / "robustbench_lite" / "__init__.py").write_text("raise SystemExit('another checkout')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    items = work(registry, tmp_path / "store", "toy/shift")
    ended: list[dict[str, Any]] = []
    LocalExecutor([CPU], plugins=[TOY]).run(items, lambda event: ended.append(event) if event["event"] == "finished" else None)
    assert [event["status"] for event in ended] == ["done"]
