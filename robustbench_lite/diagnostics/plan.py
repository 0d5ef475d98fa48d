"""Which checks a run has to make: those of the models that its cells attack."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_lite.diagnostics.catalogue import CHECKS, Check, Cost
from robustbench_lite.diagnostics.record import Record, question
from robustbench_lite.keys import cell_key
from robustbench_lite.plan import PlannedCell
from robustbench_lite.store import Store
from robustbench_lite.threat import Threat


@dataclass(frozen=True, kw_only=True)
class PlannedChecks:
    """One question about one defense, which ``model`` names. checks: those still to be made. n, files: as of its cells."""

    model: str
    spec: Mapping[str, Any]
    n: int
    files: Mapping[str, str]
    checks: tuple[str, ...]

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"checks of {self.model}"

    @property
    def key(self) -> str:
        """What identifies the question."""
        return cell_key(self.spec)


def plan_checks(cells: Iterable[PlannedCell], store: Store | None, *, expensive: bool) -> list[PlannedChecks]:
    """The questions about the defenses of these cells: the cheap checks, and the expensive ones for each radius."""
    found: dict[str, PlannedChecks] = {}
    for cell in cells:
        if not cell.key or cell.metric:
            continue
        threat = Threat.parse(cell.threat)
        asked: tuple[Cost, ...] = ("cheap", "expensive") if expensive and math.isfinite(threat.eps) else ("cheap",)
        for cost in asked:
            spec = question(cell.spec, cost, threat)
            model = f"{cell.defense} ({', '.join(filter(None, [cell.dataset, spec['threat']]))})"
            found.setdefault(cell_key(spec), planned(model, spec, cost, cell.n, cell.files, store))
    return list(found.values())


def planned(
    model: str,
    spec: Mapping[str, Any],
    cost: Cost,
    n: int,
    files: Mapping[str, str],
    store: Store | None,
    checks: Iterable[Check] = CHECKS,
) -> PlannedChecks:
    """One question, with those of ``checks`` that answer it and have no verdict in the store."""
    wanted = [check for check in checks if check.cost == cost]
    missing = wanted if store is None else Record(store, spec).missing(wanted)
    return PlannedChecks(model=model, spec=spec, n=n, files=files, checks=tuple(check.name for check in missing))
