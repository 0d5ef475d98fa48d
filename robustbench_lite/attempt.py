"""One attempt at a cell: who made it, on what, how far it came and how it ended."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustbench_lite.contents import FORMAT, now, seal
from robustbench_lite.lease import Process, write_file

FAILURES = ("error", "timeout", "out-of-memory", "crashed")
OUTCOMES = ("done", "partial", *FAILURES)  # how an attempt can end; partial: stopped in good order before the last shard

ATTEMPT = re.compile(r"\d{8}T\d{6}\.\d{6}Z-\d+-[0-9a-f]+\.json")


class Attempt:
    """The record of one attempt at a cell, rewritten atomically as it goes on. Made by ``Cell.begin_attempt``."""

    def __init__(self, folder: Path, environment: Mapping[str, Any]) -> None:
        self.path = folder / f"{now()}-{os.getpid()}-{secrets.token_hex(4)}.json"
        self._began = time.monotonic()
        self._record: dict[str, Any] = {
            "format": FORMAT,
            "status": "running",
            "reason": "",
            "traceback": "",
            "started": now(),
            "finished": None,
            "process": Process.current().to_json(),
            "environment": dict(environment),
            "progress": [],
        }
        self._save({})

    def update(self, **facts: Any) -> None:
        """Add an entry to the attempt's ``progress``, such as ``shard=3, memory=[...]``, and note the seconds spent so far."""
        self._save({"progress": [*self._record["progress"], {"time": now(), **facts}]})

    def finish(self, status: str, reason: str = "", traceback: str = "", *, seconds: float | None = None) -> None:
        """Record how it ended: one of OUTCOMES, with a reason in words and a traceback where there is one.

        seconds: what it took, where it was made elsewhere.
        """
        check_outcome(status)
        facts = {"status": status, "reason": reason, "traceback": traceback, "finished": now()}
        self._save(facts | ({} if seconds is None else {"seconds": seconds}))

    def _save(self, facts: Mapping[str, Any]) -> None:
        self._record = {**self._record, "seconds": round(time.monotonic() - self._began, 3), **facts}
        write_file(self.path, seal(self._record))


def check_outcome(status: str) -> None:
    """Raises ValueError for anything but one of OUTCOMES."""
    if status not in OUTCOMES:
        raise ValueError(f"an attempt ends as one of {', '.join(OUTCOMES)}, not {status!r}")


def outcome(attempts: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """How the last of a cell's attempts failed, or an empty text, and the reason. attempts: their records."""
    if not attempts:
        return "", ""
    last = attempts[-1]
    if last["status"] == "running":
        process = Process.from_json(last["process"])
        word = {True: "is being worked on by", False: "was interrupted: no report from", None: "was last worked on by"}
        return "", f"{word[process.alive()]} {process}"
    return (last["status"] if last["status"] in FAILURES else ""), last["reason"]
