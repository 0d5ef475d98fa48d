"""Makes the checks of one question where cells are run, and stores each verdict as soon as it is known."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from robustbench_lite.diagnostics.catalogue import find_checks
from robustbench_lite.diagnostics.record import Record
from robustbench_lite.diagnostics.subject import Subject
from robustbench_lite.errors import RblError
from robustbench_lite.lease import Lease, remove_leftovers
from robustbench_lite.runner import Emit, Workbench, WorkItem
from robustbench_lite.store import Store


def run_checks(item: WorkItem, bench: Workbench, emit: Emit) -> str:
    """Make the checks of an item and say how it ended, as ``run_cell`` does. emit: told of each verdict, too.

    A check that fails to be made is a verdict; what ends this without one is that the model cannot be had, or the store.
    """
    try:
        status, reason = _run_checks(item, bench, emit)
    except Exception as error:  # the cells of the same defense say the same, and are what the run is about
        status, reason = "error", str(error) if isinstance(error, RblError) else f"{type(error).__name__}: {error}"
    emit({"event": "finished", "key": item.key, "label": item.label, "status": status, "reason": reason})
    return status


def _run_checks(item: WorkItem, bench: Workbench, emit: Emit) -> tuple[str, str]:
    record = Record(Store.open(Path(item.store)), item.spec)
    lease = Lease.acquire(record.folder)
    if lease is None:
        return "busy", "another run is working on it"
    with lease:
        missing = record.missing(find_checks(item.checks))
        if not missing:
            return "cached", ""
        remove_leftovers(record.folder)
        emit({"event": "started", "key": item.key, "label": item.label})
        subject = Subject.of(item, bench)
        for check in missing:
            record.begin(check)
            with subject.seeded(check.name):
                verdict = check.of_model(subject)
            record.write(verdict)
            emit({"event": "verdict", "key": item.key, "label": item.label, "code": check.code, **asdict(verdict)})
    return "done", ""
