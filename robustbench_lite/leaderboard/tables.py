"""Builds leaderboards from stored results.

One table per data set (with its subset), threat model, protocol version and seed: what differs in any of these is never
ranked together. A minimal-norm cell enters every table of its norm, at that table's radius. A row with a missing or failed
cell, with a flag, with results that are out of date, or with imported ones that are not verified has no rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from robustbench_lite.leaderboard.collect import Asked, Group, Kept, Meter, Metrics, Reader, Spec, Stored, collect
from robustbench_lite.leaderboard.labels import distinct_labels
from robustbench_lite.leaderboard.lookup import About, Metric
from robustbench_lite.leaderboard.model import Attack, Leaderboard, Row
from robustbench_lite.leaderboard.ranking import shared_ranks
from robustbench_lite.leaderboard.rows import Checked, Context, Draft, Slot, draft, why_unranked
from robustbench_lite.leaderboard.text import plain
from robustbench_lite.provenance import REFUTED, SELF_REPORTED, Origin, status_of
from robustbench_lite.specs import NORMS
from robustbench_lite.threat import Threat

log = logging.getLogger(__name__)

# Why a result is out of date, by the part of its spec that is: "dataset", "defense", "attack". Empty where it is not.
Stale = Callable[[Spec], Mapping[str, str]]
# Where the result of a key comes from; None for one that was run here.
Origins = Callable[[str], Origin | None]
# ``map``, or something like it that spreads the work.
Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


def build_tables(
    cells: Iterable[Stored],
    *,
    metric: Callable[[str], Metric],
    metrics: Metrics | None = None,
    about: Callable[[str], About] = lambda identifier: About(),
    not_applicable: Mapping[tuple[str, str], str] | None = None,
    flags: Mapping[str, Sequence[str]] | None = None,
    verdicts: Checked = lambda spec, threat: (),
    naive: Callable[[str, int], Sequence[str]] = lambda protocol, version: (),
    threats: Iterable[Threat] = (),
    stale: Stale = lambda spec: {},
    origin: Origins = lambda key: None,
    rank_self_reported: bool = False,
    note: Callable[[str], None] = log.warning,
    each: Each = map,
) -> list[Leaderboard]:
    """Leaderboards of all ``cells``, which may come in any order; their arrays are read one defense at a time.

    metric: finds a metric by id (``lookup.metric_from(registry)``); metrics: the ids of those that are shown. about: what is
    declared of a defense, by its id (``lookup.about_from(registry)``). naive: the ids of the attacks that a protocol calls
    naive, by its name and version.

    not_applicable: (defense label, attack label) -> reason, for attacks that cannot be run on a defense: a dash that costs no
    rank. flags: defense label -> what makes its numbers untrustworthy: costs the rank. verdicts: what checks of a model found,
    by the spec of a cell and the threat model (``diagnostics.record``); those of results are made here. threats: radii to make
    tables for, where only minimal-norm cells exist. stale: why a result is out of date, which costs the rank too. An attack's
    older version is only said to be there, where other rows have a result of the newer, and is passed over where none has.
    origin: of a result, by its key. Imported results that are not verified cost the rank, unless rank_self_reported; refuted
    ones have no number. An attack that only such results are of gets no column where others have one, and no check looks at
    them where there are others, so that nobody's bundle costs others their ranks.
    note: told, in words, of results that are in no table. each: called to make the rows, as ``map(make, rows)`` is; it may do
    so in other processes.

    Raises UsageError where a metric is not installed.
    """
    context = Context(
        meter=Meter(metrics or Metrics(), metric),
        about=about,
        naive=(),
        not_applicable=not_applicable or {},
        flags=flags or {},
        verdicts=verdicts,
    )
    extra = list(threats)
    reader = Reader(context.meter)
    tables: list[Leaderboard] = []
    for group in collect(cells, note):
        known = group.threats(extra)
        named = naive(group.asked["protocol"]["name"], group.asked["protocol"]["version"])
        trust = _Trust({cell.stored.key: origin(cell.stored.key) for cell in group.cells}, rank_self_reported)
        tables += _tables(group, known, reader, stale, trust, replace(context, naive=named), note, each)
        for norm in sorted({cell.threat.norm for cell in group.cells} - {t.norm for t in known}):
            note(
                f"the minimal-norm results for {plain(group.asked['dataset']['name'])} in {norm} are in no table: no radius "
                f"is known; run an attack at one (--threat {norm}:EPS)"
            )
    return sorted(tables, key=_table_order)


def _table_order(table: Leaderboard) -> tuple[Any, ...]:
    threat, protocol = table.threat, table.protocol
    what = (table.dataset, NORMS.index(threat.norm), threat.eps, str(threat), protocol["name"], protocol["version"])
    return (*what, table.n or 0, table.seed, str(table.dataset_spec), str(protocol))


@dataclass(frozen=True)
class _Trust:
    """Whom a leaderboard believes. origins: of results, by key."""

    origins: Mapping[str, Origin | None]
    rank_self_reported: bool

    def refuted(self, key: str) -> bool:
        return status_of(self.origins[key]) == REFUTED

    def believed(self, key: str) -> bool:
        return status_of(self.origins[key]) not in (REFUTED, *[SELF_REPORTED] * (not self.rank_self_reported))

    def deciding(self, cells: Sequence[Asked]) -> Sequence[Asked]:
        """The results whose attacks are columns: those that are believed, or all where none is."""
        return [cell for cell in cells if self.believed(cell.stored.key)] or cells


@dataclass(frozen=True)
class _Columns:
    """The attacks of a table: spec by label. slot: the label of the column that a result of an attack belongs to."""

    specs: Mapping[str, Spec]
    slot: Mapping[str, str]

    @classmethod
    def of(cls, cells: Sequence[Asked], why: Mapping[str, Mapping[str, str]]) -> _Columns:
        """One column for each attack. A version that is out of date goes into the column of the current one, if there is one.

        Otherwise it has none: it would be out of date in every row.
        """
        specs = {cell.attack: cell.stored.spec["attack"] for cell in cells}
        stale = {cell.attack for cell in cells if "attack" in why[cell.stored.key]}
        labels = distinct_labels({identity: spec for identity, spec in specs.items() if identity not in stale})
        current = {_called(specs[identity]): label for identity, label in labels.items()}
        homes = {identity: current[_called(specs[identity])] for identity in stale if _called(specs[identity]) in current}
        return cls({label: specs[identity] for identity, label in labels.items()}, labels | homes)


def _called(spec: Spec) -> tuple[str, str]:
    return spec["id"], spec["label"]


@dataclass(frozen=True)
class _Drafted:
    """The drafts of one defense, and how many examples its results hold, by threat model; and what is to be noted."""

    drafts: Mapping[Threat, Draft]
    counts: Mapping[Threat, Sequence[int]]
    notes: Sequence[str]


def _tables(
    group: Group,
    threats: Sequence[Threat],
    reader: Reader,
    stale: Stale,
    trust: _Trust,
    context: Context,
    note: Callable[[str], None],
    each: Each,
) -> list[Leaderboard]:
    """The tables of a group. A row's cells are read once for all threat models, and let go before the next row's."""
    why = {cell.stored.key: stale(cell.stored.spec) for cell in group.cells}
    inside = {threat: [cell for cell in group.cells if cell.under(threat)] for threat in threats}
    columns = {threat: _Columns.of(trust.deciding(cells), why) for threat, cells in inside.items()}
    labels = {threat: _defense_labels(cells, why) for threat, cells in inside.items()}
    asked = group.asked["protocol"].get("n")

    def drafted(cells: Sequence[Asked]) -> _Drafted:
        """The rows of one defense, from all its results."""
        defense, spec = cells[0].defense, cells[0].stored.spec["defense"]
        outdated = _first(why[cells[0].stored.key], "dataset", "defense")
        notes: list[str] = []
        found = [kept for cell in cells if (kept := reader.read(cell, notes.append)) is not None]
        fresh = [kept for kept in found if "attack" not in why[kept.cell.key] and not trust.refuted(kept.cell.key)]
        checked = [kept for kept in fresh if trust.believed(kept.cell.key)] or fresh
        drafts, counts = dict[Threat, Draft](), dict[Threat, Sequence[int]]()
        for threat in threats:
            if defense not in labels[threat]:
                continue
            slots = _slots([kept for kept in found if kept.asked.under(threat)], columns[threat], why, trust)
            drafts[threat] = draft(labels[threat][defense], spec, slots, fresh, checked, threat, asked, context, stale=outdated)
            counts[threat] = [slot.kept.cell.n for slot in slots if slot.kept is not None and slot.kept.done]
        return _Drafted(drafts, counts, notes)

    rows: dict[str, list[Asked]] = {}
    for cell in group.cells:
        rows.setdefault(cell.defense, []).append(cell)
    drafts: dict[Threat, list[Draft]] = {threat: [] for threat in threats}
    counts: dict[Threat, list[int]] = {threat: [] for threat in threats}
    for made in each(drafted, list(rows.values())):
        for threat, one in made.drafts.items():
            one.index = reader.once(one.index)
            drafts[threat].append(one)
            counts[threat] += made.counts[threat]
        for said in made.notes:
            note(said)
    return [
        Leaderboard(
            dataset=plain(group.asked["dataset"]["name"]),
            dataset_spec={key: value for key, value in group.asked["dataset"].items() if key != "name"},
            threat=threat,
            protocol=group.asked["protocol"],
            seed=group.asked["seed"],
            n=max(counts[threat], default=asked),
            attacks=tuple(_attack(label, spec) for label, spec in columns[threat].specs.items()),
            rows=tuple(_ranked(drafts[threat], [*columns[threat].specs], trust)),
        )
        for threat in threats
        if columns[threat].specs
    ]


def _first(reasons: Mapping[str, str], *parts: str) -> str:
    return next((reasons[part] for part in parts if part in reasons), "")


def _defense_labels(cells: Sequence[Asked], why: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """A label for each defense. One that is out of date changes no other's label."""
    specs = {cell.defense: cell.stored.spec["defense"] for cell in cells}
    stale = {cell.defense for cell in cells if "defense" in why[cell.stored.key]}
    return distinct_labels(specs) | distinct_labels({i: spec for i, spec in specs.items() if i not in stale})


def _slots(cells: Sequence[Kept], columns: _Columns, why: Mapping[str, Mapping[str, str]], trust: _Trust) -> list[Slot]:
    """What a row has for each column: a result of the attack as it is now, else one that is out of date, else nothing."""
    found: dict[str, Slot] = {}
    # done wins over an older failure
    for kept in sorted(cells, key=lambda k: ("attack" in why[k.cell.key], not k.done, k.cell.status, k.cell.key)):
        label = columns.slot.get(kept.asked.attack)
        if label is not None:
            stale = why[kept.cell.key].get("attack", "")
            origin = trust.origins[kept.cell.key]
            found.setdefault(label, Slot(attack=columns.specs[label], kept=kept, stale=stale, origin=origin))
    return [found.get(label, Slot(attack=spec)) for label, spec in columns.specs.items()]


def _attack(label: str, spec: Spec) -> Attack:
    return Attack(
        label=label,
        id=plain(spec["id"]),
        version=spec["version"],
        access=plain(spec["access"]),
        goal=plain(spec["goal"]),
        members=tuple(plain(member["label"]) for member in spec.get("members", ())),
        surrogates=tuple(plain(surrogate["label"]) for surrogate in spec.get("surrogates", ())),
    )


def _ranked(drafts: Sequence[Draft], attacks: Sequence[str], trust: _Trust) -> list[Row]:
    """All rows in the order in which they are shown: the ranked ones, then the rest, each best first."""
    ordered = sorted(drafts, key=lambda d: d.order)
    judged = [d for d in ordered if d.row.worst is not None and not d.row.stale]
    judged = [d for d in judged if trust.rank_self_reported or d.row.provenance != SELF_REPORTED]
    for candidate in judged:
        if not np.array_equal(candidate.index, judged[0].index):
            said = f"judged on other examples than {judged[0].row.defense}"
            candidate.row = replace(candidate.row, flags=(*candidate.row.flags, said))
    sound = [d for d in judged if not d.row.flags]
    ranks = shared_ranks([d.robust for d in sound])
    ranked = [replace(d.row, rank=rank) for d, rank in zip(sound, ranks, strict=True)]
    placed = {id(d) for d in sound}
    return ranked + [replace(d.row, unranked=why_unranked(d.row, attacks)) for d in ordered if id(d) not in placed]
