"""One row of a leaderboard, from the results of one defense."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from robustbench_lite.curves import robust_curve
from robustbench_lite.diagnostics.catalogue import combine, said
from robustbench_lite.diagnostics.runs import Case, check_results
from robustbench_lite.errors import RblError
from robustbench_lite.leaderboard.collect import Kept, Meter, Spec
from robustbench_lite.leaderboard.lookup import About
from robustbench_lite.leaderboard.model import NOT_APPLICABLE, STALE, Cost, Credit, Entry, RadiusCurve, Row
from robustbench_lite.leaderboard.naive import naive_accuracy, wrapped
from robustbench_lite.leaderboard.text import plain
from robustbench_lite.provenance import REFUTED, SELF_REPORTED, Origin
from robustbench_lite.results import MetricValue
from robustbench_lite.threat import Threat
from robustbench_lite.verdict import Verdict

RECONSTRUCTED = "a reconstruction: rebuilt from a description that leaves something open, so not quite the published method"
UNVERIFIED = "self-reported, and not verified: rbl verify"
CURVE_POINTS = 64
CURVE_REACH = 2.0  # times the table's radius: as far as a curve is shown


# The stored verdicts on the model of a cell's spec, under a threat model.
Checked = Callable[[Spec, Threat], Sequence[Verdict]]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the caller of ``tables.build_tables`` knows beyond the results; see there."""

    meter: Meter
    about: Callable[[str], About]
    naive: Sequence[str]
    not_applicable: Mapping[tuple[str, str], str]
    flags: Mapping[str, Sequence[str]]
    verdicts: Checked


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What there is for one column. attack: the column's spec. kept: the result; stale: why it is out of date, if it is.

    origin: of an imported result.
    """

    attack: Spec
    kept: Kept | None = None
    stale: str = ""
    origin: Origin | None = None


@dataclass(kw_only=True)
class Draft:
    """A row that is not ranked yet. robust: (n,) bool over all its attacks, where there is a worst case."""

    row: Row
    index: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    robust: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @property
    def order(self) -> tuple[float, str]:
        """Best first, then by name."""
        return (-self.row.worst.value if self.row.worst else math.inf, self.row.defense)


def draft(
    label: str,
    spec: Spec,
    slots: Sequence[Slot],
    others: Sequence[Kept],
    checked: Sequence[Kept],
    threat: Threat,
    asked: int | None,
    context: Context,
    *,
    stale: str = "",
) -> Draft:
    """The row of one defense. slots: one for each column; others: its results under any threat model, for its curve.

    checked: those of them that checks look at. asked: how many examples the results should hold. stale: why the whole row is
    out of date.
    """
    entries: list[Entry] = []
    used: list[Kept] = []
    clean: MetricValue | None = None
    for slot in slots:
        reason = context.not_applicable.get((spec["label"], slot.attack["label"]), "")
        entries.append(_entry(slot, reason, threat, asked, context.meter))
        if slot.kept is not None and entries[-1].status == "done":
            used.append(slot.kept)
    flags = [plain(flag) for flag in context.flags.get(spec["label"], ())]
    declared = _declared(spec, context.about)
    notes = _standing_notes(spec, declared) + _origin_notes(entries)
    verdicts = _verdicts(used, checked, threat, context)
    flags += [said(verdict) for verdict in verdicts if verdict.outcome == "fail"]
    notes += [said(verdict) for verdict in verdicts if verdict.outcome == "warn"]
    meter = context.meter
    worst: MetricValue | None = None
    try:
        if used:
            clean = meter(meter.metrics.clean, used[0].cell, threat)
        if used and all(entry.whole for entry in entries):
            worst = meter(meter.metrics.worst, [k.cell for k in used], threat)
    except RblError as error:
        flags.append(plain(error.message))
    if changed := _clean_changes(used):
        unstable = f"unstable clean predictions: {changed} example{'s' * (changed != 1)} right in one cell and wrong in another"
        if spec["stochastic"]:
            notes.append(f"{unstable}, as is to be expected of a stochastic defense")
        else:
            flags.append(f"{unstable}, though the defense is declared deterministic")
    row = Row(
        rank=None,
        defense=label,
        id=plain(spec["id"]),
        version=spec["version"],
        weights=spec["weights"],
        stochastic=spec["stochastic"],
        reference=declared.reference,
        fidelity=declared.fidelity,
        extra_data=declared.extra_data,
        clean=clean,
        entries=tuple(entries),
        naive=naive_accuracy(used, spec, context.naive, threat, meter) if worst is not None else None,
        worst=worst,
        cost=Cost(forwards=_sum("forwards", used), backwards=_sum("backwards", used), seconds=_sum("seconds", used)),
        curve=_curve(others, threat),
        flags=tuple(flags),
        verdicts=verdicts,
        notes=tuple(notes),
        stale=plain(stale),
    )
    if worst is None:
        return Draft(row=row)
    robust = np.logical_and.reduce([k.cell.robust(threat) for k in used])
    return Draft(row=row, index=used[0].cell.arrays["index"], robust=robust)


def _verdicts(used: Sequence[Kept], checked: Sequence[Kept], threat: Threat, context: Context) -> tuple[Verdict, ...]:
    """What checks of the results in this norm and of the model found, with texts made safe to show."""
    if not used:
        return ()
    index, inside = used[0].cell.arrays["index"], [k for k in checked if k.cell.threat.norm == threat.norm]
    runs = [k.run for k in inside if k.run is not None and np.array_equal(k.cell.arrays["index"], index)]
    found = combine(check_results(Case(threat, tuple(runs))), context.verdicts(used[0].cell.spec, threat))
    return tuple(replace(v, check=plain(v.check), evidence=plain(v.evidence), advice=plain(v.advice)) for v in found)


def _declared(spec: Spec, about: Callable[[str], About]) -> About:
    """What is declared of a defense and of all that it is made of: extra data of a wrapper's base is its own, too."""
    methods = [spec["method"]] if spec.get("method") else []
    parts = [about(part["id"]) for part in (spec, *methods, *wrapped(spec))]
    extra = dict.fromkeys(plain(part.extra_data) for part in parts if part.extra_data)
    rebuilt = any(part.fidelity == "reconstruction" for part in parts)
    fidelity = "reconstruction" if rebuilt else parts[0].fidelity
    return About(reference=plain(parts[0].reference), fidelity=fidelity, extra_data="; ".join(extra))


def _standing_notes(spec: Spec, declared: About) -> list[str]:
    """What is to be known of a defense whatever its results are."""
    bases = [spec["base"]] if spec.get("base") else spec.get("bases", ())
    notes = [f"in front of {', '.join(plain(base['label']) for base in bases)}"] if bases else []
    notes += [RECONSTRUCTED] * (declared.fidelity == "reconstruction")
    return notes + [f"trained with extra data: {declared.extra_data}"] * bool(declared.extra_data)


def _origin_notes(entries: Sequence[Entry]) -> list[str]:
    """Whose results a row has, if they are not all run here, and what checks of them found."""
    found: dict[tuple[str, str, str], list[Origin]] = {}
    for entry in entries:
        if (origin := entry.origin) is not None:
            found.setdefault((origin.status, origin.by, origin.where), []).append(origin)
    notes = []
    for (status, by, where), origins in found.items():
        many = f"{len(origins)} of {sum(bool(entry.key) for entry in entries)} results"
        whose = f"self-reported{f' by {by}' if by else ''}{f' ({where})' if where else ''}"
        checks = [origin.check for origin in origins if origin.check is not None and status != SELF_REPORTED]
        judged = sum(check.rejudged for check in checks)
        again = f"{sum(len(check.shards) for check in checks)} of {sum(check.of_shards for check in checks)} shards run again"
        found_here = f"{status} here: {again}, {judged} images judged again" if checks else "not verified"
        notes.append(plain(f"{many} {whose}, {found_here}"))
    return notes


def why_unranked(row: Row, attacks: Sequence[str]) -> tuple[str, ...]:
    """Why a row has no rank, in words. attacks: the labels of the table's columns."""
    reasons = [f"out of date: {row.stale}"] * bool(row.stale) + [f"flagged: {flag}" for flag in row.flags]
    reasons += [UNVERIFIED] * (row.provenance == SELF_REPORTED)
    lacking: dict[str, list[str]] = {}
    for label, entry in zip(attacks, row.entries, strict=True):
        if not entry.whole:
            lacking.setdefault(entry.notes[0] if entry.notes else entry.status, []).append(label)
    reasons += [f"{', '.join(labels)}: {said}" for said, labels in lacking.items()]
    return tuple(reasons) or ("no attack applies",)


def _entry(slot: Slot, reason: str, threat: Threat, asked: int | None, meter: Meter) -> Entry:
    kept = slot.kept
    if kept is None:
        if reason:
            return Entry(status=NOT_APPLICABLE, notes=(plain(f"does not apply: {reason}"),))
        return Entry(status="missing", notes=("missing: not run",))
    key, origin = kept.cell.key, slot.origin
    if origin is not None and origin.status == REFUTED:
        return Entry(status=REFUTED, notes=(plain(f"refuted: {origin.said}"),), key=key, origin=origin)
    if slot.stale:
        return Entry(status=STALE, notes=(plain(f"out of date: {slot.stale}"),), key=key, origin=origin)
    if kept.done:
        try:
            value = meter(meter.metrics.robust, kept.cell, threat)
        except RblError as error:
            return Entry(status="error", notes=(plain(error.message),), key=key, origin=origin)
        return Entry(
            status="done",
            value=value,
            median=kept.scalars.get("median"),
            members=_credits(kept, threat),
            notes=kept.notes,
            key=key,
            cost=Cost(**{name: _sum(name, [kept]) for name in ("forwards", "backwards", "seconds")}),
            origin=origin,
        )
    if reason:
        return Entry(status=NOT_APPLICABLE, notes=(plain(f"does not apply: {reason}"),))
    if kept.cell.status == "done":
        return Entry(status="error", notes=("error: the stored cell holds no examples",), key=key)
    progress = f"{kept.cell.n}/{asked}" if kept.cell.status == "partial" and asked else ""
    said = plain(kept.cell.reason) or {"missing": "not run", "partial": "not finished"}.get(kept.cell.status, "no reason given")
    return Entry(status=kept.cell.status, progress=progress, notes=(f"{kept.cell.status}: {said}",), key=key)


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


def _curve(kept: Sequence[Kept], threat: Threat) -> RadiusCurve | None:
    """The defense's curve in the norm of ``threat``, thinned out; None where a single radius was attacked."""
    cells = [k.cell for k in kept if k.done and k.cell.threat.norm == threat.norm]
    try:
        curve = robust_curve(cells, threat.norm) if cells else None
    except RblError:  # different examples: the flags say so
        return None
    if curve is None or curve.low is None or curve.high is None or not (curve.step or len(curve.x) > 2):
        return None
    if curve.step:
        grid = np.linspace(0.0, CURVE_REACH * threat.eps, CURVE_POINTS + 1)
        at = np.searchsorted(curve.x, grid, side="right") - 1
    else:
        grid, at = curve.x, np.arange(len(curve.x))
    columns = (grid, curve.y[at], curve.low[at], curve.high[at])
    return RadiusCurve(points=tuple(zip(*(c.tolist() for c in columns), strict=True)), step=curve.step)
