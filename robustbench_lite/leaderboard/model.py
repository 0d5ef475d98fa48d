"""What a leaderboard is: plain data, no formatting. Texts from plugins are already without control characters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_lite.results import MetricValue
from robustbench_lite.threat import Threat
from robustbench_lite.verdict import Verdict

NOT_APPLICABLE = "not-applicable"


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A column. label: unique within the table."""

    label: str
    id: str
    version: int
    access: str
    goal: str


@dataclass(frozen=True, kw_only=True)
class Credit:
    """One attack that another is made of, and how many examples it beat as its member."""

    label: str
    beaten: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One defense under one attack.

    status: of the stored cell (``results.STATUSES``), or ``not-applicable``. value: robust accuracy, of a done cell only.
    progress: ``256/2000`` examples of a partial cell. median: the median smallest perturbation, of minimal-norm attacks only.
    members: who beat how many, for an attack made of others. notes: why there is no value, or what to know about it.
    """

    status: str
    value: MetricValue | None = None
    progress: str = ""
    median: MetricValue | None = None
    members: tuple[Credit, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it does not keep its row from being ranked."""
        return self.status in ("done", NOT_APPLICABLE)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One defense. entries: in the order of the table's attacks.

    rank: None where a cell is missing or failed, or where there are flags. weights: sha256, or None. clean, worst: None where
    they cannot be given. forwards, backwards: passes per example, seconds: wall clock; sums over the done cells. flags: why
    the numbers cannot be trusted; verdicts: what every check found, ``fail`` ones among the flags; notes: what else to know.
    """

    rank: int | None
    defense: str
    id: str
    version: int
    weights: str | None = None
    stochastic: bool = False
    reference: str = ""
    clean: MetricValue | None = None
    entries: tuple[Entry, ...]
    worst: MetricValue | None = None
    forwards: float | None = None
    backwards: float | None = None
    seconds: float | None = None
    flags: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Defenses that are comparable: one data set and subset, one threat model, one protocol version, one seed.

    dataset: its short name; dataset_spec: id, version, parameters, fingerprint and subset. protocol: name, version and
    settings as in the results' keys. n: examples, where known.
    """

    dataset: str
    dataset_spec: Mapping[str, Any]
    threat: Threat
    protocol: Mapping[str, Any]
    seed: int
    n: int | None
    attacks: tuple[Attack, ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """``digits, linf:0.15``."""
        return f"{self.dataset}, {self.threat}"

    @property
    def protocol_label(self) -> str:
        """``standard@1``."""
        return f"{self.protocol['name']}@{self.protocol['version']}"
