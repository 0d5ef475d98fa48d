"""One worker process per device slot. A worker that dies, hangs or is killed costs its cell; the slot gets a new one."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robustbench_lite.errors import RblError, StoreError
from robustbench_lite.executors.slots import Slot
from robustbench_lite.runner import WorkItem
from robustbench_lite.store import Store

POLL_SECONDS = 0.5

# How often to look whether a worker has died without its pipe saying so, because a child of it still holds the pipe open.
LOOK_SECONDS = 1.0

Emit = Callable[[dict[str, Any]], None]


class Worker:
    """A worker process, the pipe it reports through, and what it is working on."""

    def __init__(self, slot: Slot, plugins: Sequence[Path]) -> None:
        self.slot = slot
        self.item: WorkItem | None = None
        self.defense = ""
        self.ready = False
        self.deadline: float | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self.events, write_end = os.pipe()
        os.set_blocking(self.events, False)
        self._unfinished = b""
        command = [sys.executable, "-P", "-m", "robustbench_lite.executors.worker", "--device", slot.device]
        command += ["--threads", str(slot.threads or 0), "--events", str(write_end)]
        for plugin in plugins:
            command += ["--plugin", str(plugin)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(write_end,),
                start_new_session=True,  # Ctrl-C reaches the parent only; killing takes the plugin's children along
                env=os.environ | _importing_alike() | ({"OMP_NUM_THREADS": str(slot.threads)} if slot.threads else {}),
            )
        finally:
            os.close(write_end)

    def give(self, item: WorkItem, timeout: float | None) -> None:
        """Hand over a work item; the clock of its time-out starts now."""
        self.item, self.defense = item, item.defense
        self.deadline = None if timeout is None else time.monotonic() + timeout
        if self.process.stdin is None:
            raise RuntimeError("worker without a standard input")
        with contextlib.suppress(BrokenPipeError):  # it has died: its event pipe says so next
            self.process.stdin.write((json.dumps(item.to_json()) + "\n").encode())
            self.process.stdin.flush()

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Events that have arrived, and whether the worker is gone."""
        gone = False
        while True:
            try:
                data = os.read(self.events, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                gone = True
                break
            self._unfinished += data
        *lines, self._unfinished = self._unfinished.split(b"\n")
        return [json.loads(line) for line in lines if line], gone

    @property
    def dead(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def log_tail(self, characters: int = 2000) -> str:
        """The end of what it printed."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - characters))
        return self._log.read().decode("utf-8", "replace").strip()

    def kill(self) -> None:
        """End it and everything that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def close(self) -> None:
        """End it and release its pipe and its log."""
        self.kill()
        os.close(self.events)
        self._log.close()

    def death(self) -> str:
        """How it died, in words."""
        code = self.process.wait()
        if code >= 0:
            return f"the worker process exited with code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the worker process was ended by {name}"


class LocalExecutor:
    """Worker processes on this machine. timeout: seconds per cell."""

    def __init__(self, slots: Sequence[Slot], *, timeout: float | None = None, plugins: Sequence[Path] = ()) -> None:
        self._slots = slots
        self._timeout = timeout
        self._plugins = plugins

    def run(self, items: Sequence[WorkItem], emit: Emit) -> None:
        """Run all items. Raises RblError where workers cannot even start; a failing cell is an event, not an exception."""
        if items:
            _Run(self._slots[: len(items)], items, self._timeout, self._plugins, emit).go()


class _Run:
    """One call of ``LocalExecutor.run``: the queue, the workers and the loop between them."""

    def __init__(
        self, slots: Sequence[Slot], items: Sequence[WorkItem], timeout: float | None, plugins: Sequence[Path], emit: Emit
    ) -> None:
        self._queue = list(items)
        self._later: list[tuple[float, WorkItem]] = []  # held by another run: when to ask again
        self._timeout = timeout
        self._plugins = plugins
        self._emit = emit
        self._selector = selectors.DefaultSelector()
        self._workers: list[Worker] = []
        self._slots = slots

    def go(self) -> None:
        try:
            for slot in self._slots:
                self._start(slot)
            while self._queue or self._later or any(w.item for w in self._workers):
                self._hand_out()
                speaking = [key.data for key, _ in self._selector.select(self._patience())]
                for worker in [*speaking, *(w for w in self._workers if w.dead and w not in speaking)]:
                    self._hear(worker)
                for worker in [w for w in self._workers if w.deadline is not None and time.monotonic() > w.deadline]:
                    self._bury(worker, "timeout", f"longer than {self._timeout:g} s\n  fix: raise --timeout")
        finally:
            for worker in self._workers:
                worker.close()
            self._selector.close()

    def _start(self, slot: Slot) -> None:
        worker = Worker(slot, self._plugins)
        self._workers.append(worker)
        self._selector.register(worker.events, selectors.EVENT_READ, worker)

    def _patience(self) -> float:
        """How long to sleep when nothing happens."""
        times = [w.deadline for w in self._workers if w.deadline is not None] + [when for when, _ in self._later]
        return min([LOOK_SECONDS, *(max(0.0, when - time.monotonic()) + 0.01 for when in times)])

    def _hand_out(self) -> None:
        now = time.monotonic()
        self._queue += [item for when, item in self._later if when <= now]
        self._later = [(when, item) for when, item in self._later if when > now]
        for worker in self._workers:
            if worker.ready and worker.item is None and self._queue:
                worker.give(self._next(worker), self._timeout)

    def _next(self, worker: Worker) -> WorkItem:
        """An item of the defense that the worker has loaded; else of one that no other worker has; else the first."""
        taken = {w.defense for w in self._workers if w is not worker}
        for wanted in (lambda i: i.defense == worker.defense, lambda i: i.defense not in taken, lambda i: True):
            for position, item in enumerate(self._queue):
                if wanted(item):
                    return self._queue.pop(position)
        raise IndexError("the queue is empty")

    def _hear(self, worker: Worker) -> None:
        dead = worker.dead  # asked first: what it said before it died has arrived by now
        events, gone = worker.read()
        for event in events:
            if event["event"] == "ready":
                worker.ready = True
                continue
            if event["event"] == "finished":
                item, worker.item, worker.deadline = worker.item, None, None
                if event["status"] == "busy" and item is not None:
                    self._later.append((time.monotonic() + POLL_SECONDS, item))
            self._emit(event)
        if gone or dead:
            if not worker.ready:
                raise RblError(f"a worker process could not start: {worker.death()}\n{worker.log_tail()}", hint="rbl doctor")
            self._bury(worker, "crashed", worker.death())

    def _bury(self, worker: Worker, status: str, reason: str) -> None:
        """Record how the worker's cell ended, and put a new worker in its place."""
        self._selector.unregister(worker.events)
        self._workers.remove(worker)
        worker.kill()
        item, said = worker.item, worker.log_tail()
        worker.close()
        if item is not None:
            full = f"{reason}; its last words:\n{said}" if said and status == "crashed" else reason
            try:
                Store.open(Path(item.store)).cell(item.spec).end_attempts(status, full, pid=worker.process.pid)
            except StoreError as error:  # a full disk costs the record, not the run
                reason = f"{reason} (not recorded: {error.message})"
            self._emit({"event": "finished", "key": item.key, "label": item.label, "status": status, "reason": reason})
        if self._queue or self._later:
            self._start(worker.slot)


def _importing_alike() -> dict[str, str]:
    """What makes a worker import the modules that this process would: not another checkout that it happens to be started in."""
    return {"PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}
