"""Runs of ``rbl`` that start at once: forked from a process that has imported everything and done nothing else.

Each is a process of its own, with its own pid, signals and exit code; all it is spared is seconds of imports. Its workers, if
it has any, are started as they always are.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Run:
    """A forked run of ``rbl``."""

    forge: Forge
    pid: int
    folder: Path

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal; it is not waited for, so its pid is its own until then."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its end; the exit code, or minus the signal that ended it."""
        return int(self.forge.ask(wait=self.pid))

    @property
    def said(self) -> str:
        """What it has written to standard error so far."""
        log = self.folder / f"{self.pid}.err"
        return log.read_text() if log.exists() else ""

    def until(self, text: str, seconds: float = 60) -> None:
        """Wait until it has said something."""
        deadline = time.monotonic() + seconds
        while text not in self.said:
            if time.monotonic() > deadline:
                raise AssertionError(f"{text!r} was not said in {seconds:g} s: {self.said}")
            time.sleep(0.01)


class Forge:
    """The process that runs are forked from."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **question: Any) -> Any:
        """Send a request and read the answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the forge has no pipes")
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def run(self, folder: Path, *arguments: object, **environment: str) -> Run:
        """Start ``rbl`` in a folder, which is made where it is missing."""
        folder.mkdir(exist_ok=True)
        pid = self.ask(folder=str(folder), arguments=[*map(str, arguments)], environment=environment)
        return Run(self, pid, folder)


@contextmanager
def forge() -> Iterator[Forge]:
    """A forge, which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forked"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Forge(process)
    finally:
        process.communicate()


def _serve() -> None:
    for module in (
        "cli.report",
        "cli.run",
        "cli.progress",
        "cli.train",
        "training",
        "ingredients",
        "executors.inline",
        "executors.local",
        "leaderboard.tables",
    ):
        importlib.import_module(f"robustbench_lite.{module}")
    importlib.import_module("torch._dynamo")  # which every optimiser imports, for seconds

    from robustbench_lite.cli import main
    from robustbench_lite.registry import load

    registry = load()
    for entry in registry.entries("metric"):
        registry.factory(entry)
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            print(os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background of a script
        os.chdir(question["folder"])
        os.environ.update(question["environment"])
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(os.open(f"{os.getpid()}.err", os.O_WRONLY | os.O_CREAT, 0o600), 2)
        try:
            main(question["arguments"])
        except SystemExit as ended:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(str(ended.code or 0)))
        finally:
            os._exit(70)


if __name__ == "__main__":
    _serve()
