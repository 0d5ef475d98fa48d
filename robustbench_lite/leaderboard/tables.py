"""Builds leaderboards from stored results.

One table per data set (with its subset), threat model, protocol version and seed: what differs in any of these is never
ranked together. A minimal-norm cell enters every table of its norm, at that table's radius. A row with a missing or failed
cell, or with a flag, has no rank.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from robustbench_lite.errors import RblError
from robustbench_lite.leaderboard.collect import Group, Kept, Meter, Metrics, collect
from robustbench_lite.leaderboard.labels import distinct_labels
from robustbench_lite.leaderboard.lookup import Metric
from robustbench_lite.leaderboard.model import NOT_APPLICABLE, Attack, Credit, Entry, Leaderboard, Row
from robustbench_lite.leaderboard.ranking import shared_ranks
from robustbench_lite.leaderboard.text import plain
from robustbench_lite.results import CellResult, MetricValue
from robustbench_lite.specs import NORMS
from robustbench_lite.threat import Threat

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Context:
    """What the caller knows beyond the results; see ``build_tables``."""

    metrics: Metrics
    meter: Meter
    reference: Callable[[str, str], str]
    not_applicable: Mapping[tuple[str, str], str]
    flags: Mapping[str, Sequence[str]]


@dataclass(kw_only=True)
class _Draft:
    """A row that is not ranked yet. robust: (n,) bool over all its attacks, where there is a worst case."""

    row: Row
    index: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    robust: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @property
    def order(self) -> tuple[float, str]:
        """Best first, then by name."""
        return (-self.row.worst.value if self.row.worst else math.inf, self.row.defense)


def build_tables(
    results: Iterable[CellResult],
    *,
    metric: Callable[[str], Metric],
    metrics: Metrics | None = None,
    reference: Callable[[str, str], str] = lambda kind, identifier: "",
    not_applicable: Mapping[tuple[str, str], str] | None = None,
    flags: Mapping[str, Sequence[str]] | None = None,
    threats: Iterable[Threat] = (),
    note: Callable[[str], None] = log.warning,
) -> list[Leaderboard]:
    """Leaderboards of all ``results``, which are read one at a time and in any order.

    metric: finds a metric by id (``lookup.metric_from(registry)``); metrics: the ids of those that are shown. reference: where
    a method is described, by kind and id (``lookup.reference_from(registry)``).

    not_applicable: (defense label, attack label) -> reason, for attacks that cannot be run on a defense: a dash that costs no
    rank. flags: defense label -> what makes its numbers untrustworthy: costs the rank. threats: radii to make tables for, where
    only minimal-norm cells exist. note: told, in words, of results that are in no table.

    Raises UsageError where a metric is not installed.
    """
    wanted = metrics or Metrics()
    context = _Context(
        metrics=wanted,
        meter=Meter(wanted, metric),
        reference=reference,
        not_applicable=not_applicable or {},
        flags=flags or {},
    )
    extra = list(threats)
    tables: list[Leaderboard] = []
    for group in collect(results, wanted, context.meter, note):
        known = group.threats(extra)
        tables += [_table(group, threat, context) for threat in known]
        for norm in sorted({k.threat.norm for k in group.cells} - {t.norm for t in known}):
            note(
                f"the minimal-norm results for {plain(group.asked['dataset']['name'])} in {norm} are in no table: no radius "
                f"is known; run an attack at one (--threat {norm}:EPS)"
            )
    return sorted(tables, key=_table_order)


def _table_order(table: Leaderboard) -> tuple[Any, ...]:
    threat, protocol = table.threat, table.protocol
    what = (table.dataset, NORMS.index(threat.norm), threat.eps, str(threat), protocol["name"], protocol["version"])
    return (*what, table.n or 0, table.seed, str(table.dataset_spec), str(protocol))


def _table(group: Group, threat: Threat, context: _Context) -> Leaderboard:
    cells = group.under(threat)
    attack_specs = {k.attack: k.cell.spec["attack"] for k in cells}
    defense_specs = {k.defense: k.cell.spec["defense"] for k in cells}
    attacks, defenses = distinct_labels(attack_specs), distinct_labels(defense_specs)
    slots: dict[tuple[str, str], Kept] = {}
    for kept in sorted(cells, key=lambda k: (not k.done, k.cell.status, k.cell.key)):  # done wins over an older failure
        slots.setdefault((kept.defense, kept.attack), kept)
    asked = group.asked["protocol"].get("n")
    drafts = []
    for defense, label in defenses.items():
        entries = [(attack_specs[a], slots.get((defense, a))) for a in attacks]
        drafts.append(_draft(label, defense_specs[defense], entries, threat, asked, context))
    return Leaderboard(
        dataset=plain(group.asked["dataset"]["name"]),
        dataset_spec={key: value for key, value in group.asked["dataset"].items() if key != "name"},
        threat=threat,
        protocol=group.asked["protocol"],
        seed=group.asked["seed"],
        n=max((k.cell.n for k in cells if k.done), default=asked),
        attacks=tuple(_attack(label, attack_specs[attack]) for attack, label in attacks.items()),
        rows=tuple(_ranked(drafts)),
    )


def _attack(label: str, spec: Mapping[str, Any]) -> Attack:
    return Attack(
        label=label, id=plain(spec["id"]), version=spec["version"], access=plain(spec["access"]), goal=plain(spec["goal"])
    )


def _draft(
    label: str,
    spec: Mapping[str, Any],
    cells: Sequence[tuple[Mapping[str, Any], Kept | None]],
    threat: Threat,
    asked: int | None,
    context: _Context,
) -> _Draft:
    entries: list[Entry] = []
    used: list[Kept] = []
    clean: MetricValue | None = None
    for attack, kept in cells:
        reason = context.not_applicable.get((spec["label"], attack["label"]), "")
        entries.append(_entry(kept, reason, threat, asked, context))
        if kept is not None and entries[-1].status == "done":
            used.append(kept)
    flags = [plain(flag) for flag in context.flags.get(spec["label"], ())]
    notes = [f"in front of {plain(spec['base']['label'])}"] if spec.get("base") else []
    worst: MetricValue | None = None
    try:
        if used:
            clean = context.meter(context.metrics.clean, used[0].cell, threat)
        if used and all(entry.whole for entry in entries):
            worst = context.meter(context.metrics.worst, [k.cell for k in used], threat)
    except RblError as error:
        flags.append(plain(error.message))
    if changed := _clean_changes(used):
        said = f"unstable clean predictions: {changed} example{'s' * (changed != 1)} right in one cell and wrong in another"
        if spec["stochastic"]:
            notes.append(f"{said}, as is to be expected of a stochastic defense")
        else:
            flags.append(f"{said}, though the defense is declared deterministic")
    row = Row(
        rank=None,
        defense=label,
        id=plain(spec["id"]),
        version=spec["version"],
        weights=spec["weights"],
        stochastic=spec["stochastic"],
        reference=plain(context.reference("defense", spec["id"])),
        clean=clean,
        entries=tuple(entries),
        worst=worst,
        forwards=_sum("forwards", used),
        backwards=_sum("backwards", used),
        seconds=_sum("seconds", used),
        flags=tuple(flags),
        notes=tuple(notes),
    )
    if worst is None:
        return _Draft(row=row)
    robust = np.logical_and.reduce([k.cell.robust(threat) for k in used])
    return _Draft(row=row, index=used[0].cell.arrays["index"], robust=robust)


def _entry(kept: Kept | None, reason: str, threat: Threat, asked: int | None, context: _Context) -> Entry:
    if kept is not None and kept.done:
        try:
            value = context.meter(context.metrics.robust, kept.cell, threat)
        except RblError as error:
            return Entry(status="error", notes=(plain(error.message),))
        median = kept.scalars.get("median")
        return Entry(status="done", value=value, median=median, members=_credits(kept, threat), notes=kept.notes)
    if reason:
        return Entry(status=NOT_APPLICABLE, notes=(plain(f"does not apply: {reason}"),))
    if kept is None:
        return Entry(status="missing", notes=("missing: not run",))
    if kept.cell.status == "done":
        return Entry(status="error", notes=("error: the stored cell holds no examples",))
    progress = f"{kept.cell.n}/{asked}" if kept.cell.status == "partial" and asked else ""
    said = plain(kept.cell.reason) or {"missing": "not run", "partial": "not finished"}.get(kept.cell.status, "no reason given")
    return Entry(status=kept.cell.status, progress=progress, notes=(f"{kept.cell.status}: {said}",))


def _credits(kept: Kept, threat: Threat) -> tuple[Credit, ...]:
    """How many examples each member beat. None of an attack whose members only ever see surrogates."""
    attack, arrays = kept.cell.spec["attack"], kept.cell.arrays
    if "member" not in arrays or "surrogates" in attack:
        return ()
    members = attack.get("members", ())
    beaten = arrays["clean_correct"] & ~kept.cell.robust(threat)
    counts = np.bincount(arrays["member"][beaten], minlength=len(members) + 1)
    return tuple(Credit(label=plain(m["label"]), beaten=int(counts[i])) for i, m in enumerate(members, 1))


def _clean_changes(used: Sequence[Kept]) -> int:
    """How many examples are classified correctly in one cell and wrongly in another."""
    correct = [k.cell.arrays["clean_correct"] for k in used]
    if len({len(c) for c in correct}) != 1:  # none, or different examples: the worst case says so
        return 0
    return int((np.logical_or.reduce(correct) & ~np.logical_and.reduce(correct)).sum())


def _sum(name: str, used: Sequence[Kept]) -> float | None:
    known = [k.scalars[name].value for k in used if name in k.scalars]
    return math.fsum(known) if known else None


def _ranked(drafts: Sequence[_Draft]) -> list[Row]:
    """All rows in the order in which they are shown: the ranked ones, then the rest, each best first."""
    ordered = sorted(drafts, key=lambda d: d.order)
    judged = [d for d in ordered if d.row.worst is not None]
    for draft in judged:
        if not np.array_equal(draft.index, judged[0].index):
            said = f"judged on other examples than {judged[0].row.defense}"
            draft.row = replace(draft.row, flags=(*draft.row.flags, said))
    sound = [d for d in judged if not d.row.flags]
    ranks = shared_ranks([d.robust for d in sound])
    ranked = [replace(d.row, rank=rank) for d, rank in zip(sound, ranks, strict=True)]
    return ranked + [d.row for d in ordered if d.row.worst is None or d.row.flags]
