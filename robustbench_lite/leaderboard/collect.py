"""Sorts what a store holds into groups that can be compared, and reads one result at a time.

Specs are sorted first and arrays are read later, defense by defense, so that memory holds the examples of one row and not of a
whole store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from robustbench_lite.diagnostics.runs import Run
from robustbench_lite.errors import PluginError, RblError
from robustbench_lite.keys import Spelling, canonical_json
from robustbench_lite.leaderboard.lookup import Metric
from robustbench_lite.leaderboard.text import plain
from robustbench_lite.results import REJECTED, CellResult, MetricValue
from robustbench_lite.threat import Threat

Spec = Mapping[str, Any]

# What a table reads of a spec; a record without it cannot be shown.
_NEEDED = {
    "dataset": ("id", "version", "parameters", "fingerprint", "subset", "name"),
    "protocol": ("name", "version"),
    "defense": ("id", "version", "weights", "label", "stochastic"),
    "attack": ("id", "version", "label", "access", "goal"),
}

# What robust accuracies, worst cases and curves are computed from; the rest of a cell is dropped once its scalars are known.
_KEPT_ARRAYS = ("index", "clean_correct", "success", "size")

# The proposals worth a footnote, by ``rejected``. That a proposal is classified correctly (1) is what robustness means, and
# clean errors (7) are in the clean accuracy.
_REMARKS = {
    2: "not finite",
    3: "outside the box",
    4: "outside the threat model",
    5: "of wrong shape or dtype",
    6: "missing since the attack raised an error",
    8: "on which the defense's logits are not finite",
}


class Stored(Protocol):
    """A result where it is stored: what was asked, and how to read what came of it. ``store.Cell`` is one."""

    key: str
    spec: Spec

    def load_for_tables(self) -> CellResult:
        """The result, with the arrays that could be read."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Ids of the metrics that a leaderboard shows: any plugin's. worst is of scope ``defense``, the others of scope ``cell``.

    median is shown for minimal-norm attacks; forwards, backwards and seconds are summed over the cells of a row.
    """

    clean: str = "rbl/clean-accuracy"
    robust: str = "rbl/robust-accuracy"
    worst: str = "rbl/worst-case"
    median: str = "rbl/median-perturbation"
    forwards: str = "rbl/forwards"
    backwards: str = "rbl/backwards"
    seconds: str = "rbl/seconds"


class Meter:
    """Calls a leaderboard's metrics and checks what comes back. Raises UsageError at once where one is not installed."""

    def __init__(self, metrics: Metrics, find: Callable[[str], Metric]) -> None:
        self.metrics = metrics
        self._found = {identifier: find(identifier) for identifier in dict.fromkeys(astuple(metrics))}

    def __call__(self, identifier: str, subject: CellResult | Sequence[CellResult], threat: Threat) -> MetricValue | None:
        """The metric's value; None where it is not a number. Raises an RblError, whatever the metric raised."""
        try:
            value = self._found[identifier](subject, threat)
        except RblError:
            raise
        except Exception as error:
            raise PluginError(f"metric {identifier} failed: {type(error).__name__}: {error}") from error
        if not isinstance(value, MetricValue):
            raise PluginError(f"metric {identifier} returned {type(value).__name__}, not a MetricValue")
        return None if math.isnan(value.value) else value


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A cell that is not read yet. attack, defense: what identifies its column and its row."""

    stored: Stored
    attack: str
    defense: str
    threat: Threat

    def under(self, threat: Threat) -> bool:
        """Whether it answers for that threat model: attacked in it, or a minimal-norm cell of its norm."""
        return self.threat.answers(threat)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of a cell: a CellResult with four arrays (five, where an attack is made of others), and scalars.

    done: it holds the examples it should. scalars: of a done cell, ``forwards``, ``backwards`` and ``seconds`` where their
    metrics gave a number, ``median`` for a minimal-norm attack. run: of a done cell, what checks of results look at.
    """

    asked: Asked
    cell: CellResult
    done: bool = False
    notes: tuple[str, ...] = ()
    scalars: Mapping[str, MetricValue] = field(default_factory=dict)
    run: Run | None = None


@dataclass
class Group:
    """The cells over one data set and subset, protocol version and seed. asked: those, as in the cells' specs."""

    asked: Spec
    cells: list[Asked] = field(default_factory=list)

    def threats(self, wanted: Iterable[Threat]) -> list[Threat]:
        """The threat models with a size: those that were attacked, and those of ``wanted`` that minimal-norm cells answer."""
        norms = {cell.threat.norm for cell in self.cells if math.isinf(cell.threat.eps)}
        asked = [cell.threat for cell in self.cells] + [threat for threat in wanted if threat.norm in norms]
        spelled: dict[Threat, Threat] = {}
        for threat in asked:
            if math.isfinite(threat.eps):
                spelled[threat] = min(spelled.get(threat, threat), threat, key=lambda t: (len(str(t)), str(t)))
        return list(spelled.values())


def collect(cells: Iterable[Stored], note: Callable[[str], None]) -> list[Group]:
    """Sort cells into groups, in a fixed order. note: told of each cell whose record cannot be understood."""
    groups: dict[str, Group] = {}
    spelled = Spelling()
    known: dict[tuple[str, str, int], str] = {}
    for cell in cells:
        if problem := _problem(cell.spec):
            note(not_shown(cell.key, problem))
            continue
        about = spelled(cell.spec["dataset"]), spelled(cell.spec["protocol"]), cell.spec["seed"]
        if about not in known:
            dataset = {key: cell.spec["dataset"][key] for key in _NEEDED["dataset"]}
            known[about] = canonical_json({"dataset": dataset, "protocol": cell.spec["protocol"], "seed": cell.spec["seed"]})
        asked = known[about]
        if asked not in groups:
            groups[asked] = Group(json.loads(asked))
        groups[asked].cells.append(
            Asked(
                stored=cell,
                attack=spelled(cell.spec["attack"]),
                defense=spelled(cell.spec["defense"]),
                threat=Threat.parse(cell.spec["threat"]),
            )
        )
    return [groups[key] for key in sorted(groups)]


def not_shown(key: str, problem: str) -> str:
    """What is said of a cell that is in no table."""
    return f"cell {plain(key)[:12]} is in no table: {plain(problem)}"


def _problem(spec: Spec) -> str:
    """What keeps a cell's record from being understood, in words; empty for a sound one."""
    for part, keys in _NEEDED.items():
        if absent := [key for key in keys if key not in spec.get(part, {})]:
            return f"its {part} lacks {', '.join(absent)}"
    try:
        Threat.parse(spec["threat"])
    except RblError as error:
        return error.message
    return ""


class Reader:
    """Reads cells one by one and keeps of each what tables need."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._indices: dict[bytes, np.ndarray] = {}

    def once(self, index: np.ndarray) -> np.ndarray:
        """A list of examples equal to ``index``, held once: nearly all cells are over the same."""
        return self._indices.setdefault(index.tobytes(), index)

    def read(self, asked: Asked, note: Callable[[str], None]) -> Kept | None:
        """What is kept of a cell; None where it cannot be understood, of which ``note`` is told."""
        cell = asked.stored.load_for_tables()
        if cell.n and (absent := [name for name in (*_KEPT_ARRAYS, "rejected", "unstable") if name not in cell.arrays]):
            note(not_shown(cell.key, f"it has no array {', '.join(absent)}"))
            return None
        wanted = _KEPT_ARRAYS + ("member",) * ("member" in cell.arrays)
        arrays = {name: np.array(cell.arrays[name]) for name in wanted} if cell.n else {}
        if arrays:
            arrays["index"] = self.once(arrays["index"])
        done = cell.status == "done" and cell.n > 0
        notes, scalars = self._scalars(cell, asked.threat) if done else ([], {})
        kept = replace(cell, arrays=arrays, environment={})
        return Kept(
            asked=asked,
            cell=kept,
            done=done,
            notes=tuple(map(plain, notes)),
            scalars=scalars,
            run=Run.of(cell, kept) if done else None,
        )

    def _scalars(self, cell: CellResult, threat: Threat) -> tuple[list[str], dict[str, MetricValue]]:
        """Remarks on a whole cell, and its numbers."""
        notes, scalars = [*remarks(cell)], dict[str, MetricValue]()
        for name in ["forwards", "backwards", "seconds"] + ["median"] * math.isinf(threat.eps):
            try:
                value = self._meter(getattr(self._meter.metrics, name), cell, threat)
            except RblError as error:  # costs its own number only
                notes.append(error.message)
            else:
                scalars |= {} if value is None else {name: value}
        return notes, scalars


def remarks(cell: CellResult) -> tuple[str, ...]:
    """What happened to the proposals of a cell that were refused for more than being classified correctly."""
    counts: list[int] = np.bincount(cell.arrays["rejected"], minlength=len(REJECTED)).tolist()
    found = [
        f"{counts[reason]} proposal{'s' * (counts[reason] != 1)} {what}, judged not adversarial"
        for reason, what in _REMARKS.items()
        if counts[reason]
    ]
    if unstable := int(cell.arrays["unstable"].sum()):
        found.append(f"{unstable} example{'s' * (unstable != 1)} beaten in the search but not on the judge's fresh passes")
    return tuple(found)
