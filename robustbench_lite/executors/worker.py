"""A worker process: reads work items as JSON lines from its standard input, writes events as JSON lines to a pipe.

Started by ``local.py`` as ``python -m robustbench_lite.executors.worker``. What plugins print goes to the worker's log, never
into the protocol. When the parent is gone, so is the worker.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve work items until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--events", type=int, required=True, help="file descriptor to write events to")
    parser.add_argument("--plugin", type=Path, action="append", default=[])
    options = parser.parse_args()

    faulthandler.enable()  # a segmentation fault leaves its stack in the log
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    events = os.fdopen(options.events, "w", encoding="utf-8", buffering=1)
    emitting = threading.Lock()

    def emit(event: dict[str, Any]) -> None:
        with emitting:
            events.write(json.dumps(event) + "\n")
            events.flush()

    items: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in requests:
            items.put(json.loads(line))
        os._exit(0)  # the parent closed the pipe, or died: nobody is left to work for

    threading.Thread(target=read, daemon=True).start()

    from robustbench_lite.executors.work import run_item
    from robustbench_lite.registry import load
    from robustbench_lite.runner import Workbench, WorkItem, prepare_torch

    prepare_torch(options.device, options.threads or None)
    bench = Workbench(load(options.plugin))
    emit({"event": "ready", "pid": os.getpid()})
    while True:
        run_item(WorkItem(**items.get()), bench, emit)


if __name__ == "__main__":
    main()
    sys.exit(0)
