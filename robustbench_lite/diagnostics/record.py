"""Stored verdicts of checks that look at a model: one folder per question, one file per check, each written when it is made.

::

    <store>/verdicts/ab/ab12.../spec.json            the question; the sha256 of its canonical form is the folder's name
                                zero-gradients.json  what one check found, or that it was begun

A question is about one defense on one data set, under one protocol and seed: everything that can change an answer. Its threat
is empty for the cheap checks, which attack nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robustbench_lite.diagnostics.catalogue import CHECKS, VERSION, Check, Cost, combine
from robustbench_lite.diagnostics.runs import Case, Run, check_results
from robustbench_lite.keys import cell_key
from robustbench_lite.provenance import REFUTED, SELF_REPORTED, status_of
from robustbench_lite.store import VERDICTS, Store
from robustbench_lite.threat import Threat
from robustbench_lite.verdict import Verdict

# Examples that checks look at, where no other number is asked for.
EXAMPLES: Mapping[Cost, int] = {"cheap": 64, "expensive": 128}
# How often a check is begun that takes its process along, before it is given up.
TRIES = 2


def question(spec: Mapping[str, Any], cost: Cost, threat: Threat, examples: int | None = None) -> dict[str, Any]:
    """The question that the checks of one cost answer about the defense of a cell's spec. examples: how many of the cell's."""
    return {
        "format": 1,
        "diagnostics": {"version": VERSION, "examples": examples or EXAMPLES[cost]},
        **{name: spec[name] for name in ("protocol", "dataset", "defense", "seed")},
        "threat": "" if cost == "cheap" else str(threat),
    }


class Record:
    """What is stored of one question. Nothing is written before ``begin``."""

    def __init__(self, store: Store, spec: Mapping[str, Any]) -> None:
        self.spec = spec
        self.key = cell_key(spec)
        self.folder = store.path / VERDICTS / self.key[:2] / self.key
        self._store = store

    def verdicts(self) -> list[Verdict]:
        """The verdicts that are stored, in the order of the catalogue."""
        return [verdict for check in CHECKS if (verdict := self._read(check)[0]) is not None]

    def missing(self, checks: Iterable[Check]) -> list[Check]:
        """Those of the checks that are still to be made; last those that took their process along before."""
        read = [(self._read(check), check) for check in checks]
        return [check for (verdict, _), check in sorted(read, key=lambda each: each[0][1]) if verdict is None]

    def begin(self, check: Check) -> None:
        """Note that a check is being made, so that one that takes the process along is not begun for ever."""
        if not (spec := self.folder / "spec.json").exists():
            self._store.write_record(spec, self.spec)
        tries = self._read(check)[1] + 1
        self._store.write_record(self._path(check.name), {"check": check.name, "tries": tries}, durable=False)

    def write(self, verdict: Verdict) -> None:
        """Store a verdict."""
        self._store.write_record(self._path(verdict.check), {"check": verdict.check, "verdict": asdict(verdict)})

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _read(self, check: Check) -> tuple[Verdict | None, int]:
        """The verdict, None where there is none yet, and how often it was begun."""
        found = self._store.read_record(self._path(check.name)) or {}
        tries = int(found.get("tries", 0))
        if "verdict" in found:
            return Verdict(**found["verdict"]), tries
        if tries >= TRIES:
            return check.not_applicable(f"its process was ended {tries} times while it was made"), tries
        return None, tries


def known_verdicts(store: Store, spec: Mapping[str, Any], threat: Threat) -> tuple[Verdict, ...]:
    """What the store says of the model of a cell's spec, under a threat model: by its results, and by checks of it.

    Without a radius, what is known whatever the radius is.
    """
    of_results = result_verdicts(store, spec, threat) if math.isfinite(threat.eps) else ()
    return combine(of_results, stored_verdicts(store, spec, threat))


def result_verdicts(store: Store, spec: Mapping[str, Any], threat: Threat) -> tuple[Verdict, ...]:
    """The checks of all results against the defense of a cell's spec, over the same examples; none where there is no result.

    Imported results count once they are verified.
    """
    same = ("protocol", "dataset", "defense", "seed")
    cells = [cell for cell in store.cells() if all(cell.spec[part] == spec[part] for part in same)]
    results = [cell.load_for_tables() for cell in cells if status_of(cell.origin) not in (SELF_REPORTED, REFUTED)]
    runs = [Run.of(cell) for cell in results if cell.status == "done" and cell.threat.norm == threat.norm]
    case = Case(threat, tuple(runs))
    return check_results(case) if case.here else ()


def stored_verdicts(store: Store, spec: Mapping[str, Any], threat: Threat) -> list[Verdict]:
    """What the store holds on the model of a cell's spec, under a threat model."""
    costs: tuple[Cost, ...] = ("cheap", "expensive")
    return [verdict for cost in costs for verdict in Record(store, question(spec, cost, threat)).verdicts()]
