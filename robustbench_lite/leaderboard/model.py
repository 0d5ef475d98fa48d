"""What a leaderboard is: plain data, no formatting. Texts from plugins are already without control characters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_lite.leaderboard.measures import Measure
from robustbench_lite.provenance import REFUTED, RUN_HERE, SELF_REPORTED, VERIFIED, Origin, status_of
from robustbench_lite.published import Published
from robustbench_lite.results import MetricValue
from robustbench_lite.threat import Threat
from robustbench_lite.verdict import Verdict

NOT_APPLICABLE = "not-applicable"
STALE = "stale"


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A column. label: unique within the table.

    members: labels of the attacks that it is made of. surrogates: of the defenses that it is crafted on, for transfer.
    """

    label: str
    id: str
    version: int
    access: str
    goal: str
    members: tuple[str, ...] = ()
    surrogates: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Credit:
    """One attack that another is made of, and how many examples it beat as its member."""

    label: str
    beaten: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What attacking cost: forwards and backwards in passes per example, seconds of wall clock; None where not known."""

    forwards: float | None = None
    backwards: float | None = None
    seconds: float | None = None

    @property
    def passes(self) -> float | None:
        """Forward and backward passes per example; None where neither is known."""
        known = [number for number in (self.forwards, self.backwards) if number is not None]
        return sum(known) if known else None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One defense under one attack.

    status: of the stored cell (see ``CellResult``), ``stale`` where only a result of another version of the attack is stored,
    ``refuted`` for an imported result that did not stand a check, or ``not-applicable``. value: robust accuracy, of a done cell
    only. progress: ``256/2000`` examples of a partial cell. median: the median smallest perturbation, of minimal-norm attacks
    only. members: who beat how many, for an attack made of others. notes: why there is no value, or what to know about it.
    key: of the stored cell. cost: of a done cell. origin: of an imported result.
    """

    status: str
    value: MetricValue | None = None
    progress: str = ""
    median: MetricValue | None = None
    members: tuple[Credit, ...] = ()
    notes: tuple[str, ...] = ()
    key: str = ""
    cost: Cost = Cost()
    origin: Origin | None = None

    @property
    def whole(self) -> bool:
        """Whether it does not keep its row from being ranked."""
        return self.status in ("done", NOT_APPLICABLE)


@dataclass(frozen=True, kw_only=True)
class RadiusCurve:
    """Robust accuracy at growing radii: points (radius, accuracy, low, high), the first at 0, with 95 % intervals.

    step: each point holds up to the next one (a minimal-norm attack answers for every radius); otherwise these radii were
    attacked and nothing is known in between.
    """

    points: tuple[tuple[float, float, float, float], ...]
    step: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One defense. entries: in the order of the table's attacks.

    rank: None where a cell is missing or failed, or where there are flags; unranked: the reasons, in words. weights: sha256,
    or None. fidelity, extra_data: as its plugin declares them, with those of what it wraps. clean, worst: None where they
    cannot be given. naive: what the attacks leave that do not know the defense (``naive.py``), where that is more than the
    worst case. cost: sums over the done cells. curve: worst case over all radii at which the defense was attacked. flags: why
    the numbers cannot be trusted; verdicts: what every check found, ``fail`` ones among the flags; notes: what else to know.
    stale: why all of it is out of date.
    """

    rank: int | None
    defense: str
    id: str
    version: int
    weights: str | None = None
    stochastic: bool = False
    reference: str = ""
    fidelity: str = ""
    extra_data: str = ""
    clean: MetricValue | None = None
    entries: tuple[Entry, ...]
    naive: MetricValue | None = None
    worst: MetricValue | None = None
    cost: Cost = Cost()
    curve: RadiusCurve | None = None
    unranked: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    stale: str = ""

    @property
    def provenance(self) -> str:
        """Where its results come from: the least trusted of them decides. One of ``provenance.STATUSES``."""
        found = {status_of(entry.origin) for entry in self.entries if entry.key}
        return next((status for status in (REFUTED, SELF_REPORTED, VERIFIED) if status in found), RUN_HERE)


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Defenses that are comparable: one data set and subset, one threat model, one protocol version, one seed.

    dataset: its short name; dataset_spec: id, version, parameters, fingerprint and subset. protocol: name, version and
    settings as in the results' keys. n: examples, where known. measures: further metrics, which rank nothing.
    published: what others have published for the same data set and threat model, not run here.
    """

    dataset: str
    dataset_spec: Mapping[str, Any]
    threat: Threat
    protocol: Mapping[str, Any]
    seed: int
    n: int | None
    attacks: tuple[Attack, ...]
    rows: tuple[Row, ...]
    measures: tuple[Measure, ...] = ()
    published: tuple[Published, ...] = ()

    @property
    def ranked(self) -> tuple[Row, ...]:
        """The rows with a rank, best first."""
        return tuple(row for row in self.rows if row.rank is not None)

    @property
    def unranked(self) -> tuple[Row, ...]:
        """The rows without a rank: flagged, lacking results, or out of date."""
        return tuple(row for row in self.rows if row.rank is None)

    @property
    def outdated(self) -> bool:
        """Whether nothing in it is up to date, as after a change of the data."""
        return all(row.stale for row in self.rows)

    @property
    def title(self) -> str:
        """``digits, linf:0.15``."""
        return f"{self.dataset}, {self.threat}"

    @property
    def protocol_label(self) -> str:
        """``standard@1``."""
        return f"{self.protocol['name']}@{self.protocol['version']}"
