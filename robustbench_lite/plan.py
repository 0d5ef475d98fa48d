"""What is to be run: the cells of a request, each with a state and a reason in words. Plain data: see ``planner.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robustbench_lite.measuring import is_measurement
from robustbench_lite.protocol import Protocol

SHARD = 256


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """One defense under one attack. spec and key are empty for a cell that was skipped before it could be identified.

    Of a measurement, metric is set, attack is empty, and threat too where the metric depends on none.

    shards: how many it has. cost: expected forward and backward passes per example, 0 where the attack does not say.
    files: weights by checksum, for the worker. subset: indices into the test split.
    """

    dataset: str
    threat: str
    defense: str
    attack: str
    state: str
    metric: str = ""
    reason: str = ""
    key: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    n: int = 0
    cost: int = 0
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def shards(self) -> int:
        """How many shards the cell has."""
        return shards_of(self.spec) if self.spec else count_shards(self.n)

    @property
    def label(self) -> str:
        """How messages call it."""
        if self.metric:
            return f"{self.defense} by {self.metric} ({', '.join(filter(None, (self.dataset, self.threat)))})"
        return f"{self.defense} x {self.attack} ({self.dataset}, {self.threat})"

    @property
    def to_run(self) -> bool:
        """Whether a run has something to do here."""
        return self.state not in ("cached", "skip")

    def to_json(self) -> dict[str, Any]:
        """For ``rbl plan --json``."""
        shown = ("dataset", "threat", "defense", "attack", "metric", "state", "reason", "key", "n", "cost")
        return {name: getattr(self, name) for name in shown}


@dataclass(frozen=True)
class Plan:
    """The cells of a request in the order in which they are run."""

    cells: tuple[PlannedCell, ...]
    protocol: Protocol

    def counts(self) -> dict[str, int]:
        """Cells per state, ``partial`` without its numbers."""
        found: dict[str, int] = {}
        for cell in self.cells:
            state = cell.state.partition(" ")[0]
            found[state] = found.get(state, 0) + 1
        return found


def count_shards(n: int) -> int:
    """Shards of 256 examples that n examples take."""
    return -(-n // SHARD)


def shards_of(spec: Mapping[str, Any]) -> int:
    """Shards of a cell or measurement: one where the rows of a measurement are no examples."""
    whole = is_measurement(spec) and not spec["metric"]["per_example"]
    return 1 if whole else count_shards(spec["protocol"]["n"])
