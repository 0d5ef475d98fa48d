"""Further metrics beside a leaderboard: those that were measured on the models, and any others that are asked for.

They rank nothing. Each stands with the defense, and the attack where it is of scope ``cell``, that it is a number of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from robustbench_lite.errors import PluginError, RblError
from robustbench_lite.keys import canonical_json
from robustbench_lite.leaderboard.text import plain
from robustbench_lite.measuring import value_of
from robustbench_lite.resolve import ResolvedMetric
from robustbench_lite.results import CellResult, MetricValue
from robustbench_lite.threat import Threat

Spec = Mapping[str, Any]

_SAME_DATA = ("id", "version", "parameters", "fingerprint", "name")


class Stored(Protocol):
    """A result where it is stored; ``store.Cell`` is one."""

    @property
    def spec(self) -> Spec:
        """What was asked."""

    def load_for_tables(self) -> CellResult:
        """The result, with the arrays that could be read."""


class Table(Protocol):
    """What of a leaderboard decides which results belong beside it."""

    @property
    def dataset(self) -> str: ...
    @property
    def dataset_spec(self) -> Spec: ...
    @property
    def protocol(self) -> Spec: ...
    @property
    def seed(self) -> int: ...
    @property
    def threat(self) -> Threat: ...


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of one defense.

    metric: its label, with the parameters that are not defaults. attack: empty where the number is not of one attack. threat:
    whether it depends on the table's threat model. value: None where there is no number; note then says why.
    """

    defense: str
    attack: str
    metric: str
    id: str
    version: int
    scope: str
    direction: str
    unit: str
    value: MetricValue | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class MeasureTable:
    """Measures of models that no leaderboard stands beside: nothing was attacked on that data set, protocol and seed."""

    dataset: str
    dataset_spec: Spec
    protocol: Spec
    seed: int
    measures: tuple[Measure, ...]

    @property
    def title(self) -> str:
        """``digits, quick@1``."""
        return f"{self.dataset}, {self.protocol['name']}@{self.protocol['version']}"


def measured(stored: Iterable[Stored], resolve: Callable[[Spec], ResolvedMetric]) -> list[tuple[Spec, Measure]]:
    """What was measured on models, each with what was asked. resolve: the metric of a stored spec."""
    found = []
    for each in stored:
        spec, value, direction, unit = each.spec, None, "none", ""
        result = each.load_for_tables()
        note = "" if result.status == "done" else f"{result.status}: {result.reason or 'not finished'}"
        try:
            metric = resolve(spec["metric"])
        except RblError as error:
            note = note or error.message
        else:
            direction, unit = metric.declared.direction, metric.declared.unit
            if not note:
                value, note = _called(metric, partial(value_of, metric, result.arrays))
        measure = _measure(spec["defense"], None, spec["metric"], "model", direction, unit, value, note)
        found.append((spec, measure))
    return sorted(found, key=lambda pair: _order(pair[1]))


def beside(table: Table, found: Iterable[tuple[Spec, Measure]]) -> list[Measure]:
    """Those that belong beside a leaderboard: of its data set, protocol, seed, and threat model where they depend on one."""
    return [
        measure
        for spec, measure in found
        if _same(table, spec) and (spec["threat"] is None or Threat.parse(spec["threat"]) == table.threat)
    ]


def apart(tables: Sequence[Table], found: Iterable[tuple[Spec, Measure]]) -> list[MeasureTable]:
    """Those that belong beside none of the leaderboards."""
    groups: dict[str, tuple[Spec, list[Measure]]] = {}
    for spec, measure in found:
        if any(measure in beside(table, [(spec, measure)]) for table in tables):
            continue
        about = {key: spec["dataset"][key] for key in _SAME_DATA}
        key = canonical_json({"dataset": about, "protocol": _settings(spec["protocol"]), "seed": spec["seed"]})
        groups.setdefault(key, (spec, []))[1].append(measure)
    return [
        MeasureTable(
            dataset=plain(spec["dataset"]["name"]),
            dataset_spec={key: spec["dataset"][key] for key in _SAME_DATA if key != "name"},
            protocol=_settings(spec["protocol"]),
            seed=spec["seed"],
            measures=tuple(measures),
        )
        for _, (spec, measures) in sorted(groups.items())
    ]


def computed(table: Table, cells: Sequence[Stored], metrics: Sequence[ResolvedMetric]) -> list[Measure]:
    """The values of metrics of scope ``cell`` and ``defense`` for a table. cells: of a store, those of other tables too.

    A metric of scope ``defense`` is called with all cells of a defense under the table's threat model; under a union, with
    those under its parts as well.
    """
    found: list[Measure] = []
    by_defense: dict[str, list[Stored]] = {}
    for cell in cells:
        if _same(table, cell.spec) and _inside(Threat.parse(cell.spec["threat"]), table.threat):
            by_defense.setdefault(repr(cell.spec["defense"]), []).append(cell)
    for stored in by_defense.values():
        results = [result for each in stored if (result := each.load_for_tables()).status == "done" and result.n]
        if not results:
            continue
        for metric in metrics:
            declared = metric.declared
            subjects: list[tuple[Spec | None, Any]] = [(None, results)]
            if declared.scope == "cell":
                subjects = [(result.spec["attack"], result) for result in results]
            for attack, subject in subjects:
                value, note = _called(metric, partial(metric.instance, subject, table.threat))
                defense = results[0].spec["defense"]
                found.append(
                    _measure(defense, attack, metric.identity(), declared.scope, declared.direction, declared.unit, value, note)
                )
    return sorted(found, key=_order)


def _called(metric: ResolvedMetric, call: Callable[[], Any]) -> tuple[MetricValue | None, str]:
    """What a metric gives, or why it gives nothing."""
    try:
        value = call()
        if not isinstance(value, MetricValue):
            raise PluginError(f"metric {metric.entry.id} returned {type(value).__name__}, not a MetricValue")
    except RblError as error:
        return None, error.message
    except Exception as error:
        return None, f"metric {metric.entry.id} failed: {type(error).__name__}: {error}"
    return (None, "no number") if math.isnan(value.value) else (value, "")


def _measure(
    defense: Spec,
    attack: Spec | None,
    metric: Spec,
    scope: str,
    direction: str,
    unit: str,
    value: MetricValue | None,
    note: str,
) -> Measure:
    return Measure(
        defense=plain(defense["label"]),
        attack="" if attack is None else plain(attack["label"]),
        metric=plain(metric["label"]),
        id=plain(metric["id"]),
        version=metric["version"],
        scope=scope,
        direction=direction,
        unit=plain(unit),
        value=value,
        note=plain(note),
    )


def _same(table: Table, spec: Spec) -> bool:
    """Whether a result is of the table's data set, protocol and seed; over how many examples is another matter."""
    about = {**table.dataset_spec, "name": table.dataset}
    return (
        all(spec["dataset"].get(key) == about.get(key) for key in _SAME_DATA)
        and _settings(spec["protocol"]) == _settings(table.protocol)
        and spec["seed"] == table.seed
        and ("metric" in spec or spec["dataset"]["subset"] == table.dataset_spec["subset"])
    )


def _settings(protocol: Spec) -> dict[str, Any]:
    return {key: value for key, value in protocol.items() if key != "n"}


def _inside(searched: Threat, asked: Threat) -> bool:
    """Whether a cell answers for a threat model: attacked in it or in a part of it, or minimal-norm in its norm."""
    return any(searched.answers(ball) for ball in (asked, *asked.parts))


def _order(measure: Measure) -> tuple[str, ...]:
    return (measure.defense, measure.attack, measure.metric)
