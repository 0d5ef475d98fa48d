"""From a request to cells and measurements, each with a state and a reason in words. Nothing is run or written here.

States: ``run``, ``cached``, ``partial 3/8`` (some shards are stored), ``failed`` (an earlier attempt ended badly; it is tried
again), ``skip`` (it cannot be run, and why).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_lite.applicable import inapplicable, sized, unsupported
from robustbench_lite.asked import Asked, Unusable, attacks_of, defenses_of, metrics_of, weights_of
from robustbench_lite.composition import compose
from robustbench_lite.errors import MissingData, MissingWeights, PluginError, RblError, UsageError
from robustbench_lite.keys import cell_key
from robustbench_lite.measuring import (
    examples_of,
    is_measurement,
    measurement_spec,
    other_datasets,
    unmeasurable,
)
from robustbench_lite.outdated import difference
from robustbench_lite.plan import Plan, PlannedCell, count_shards, shards_of
from robustbench_lite.protocol import Protocol, contributed_protocols, find_protocol
from robustbench_lite.request import RunRequest, parse_shard
from robustbench_lite.resolve import ResolvedAttack, ResolvedDataset, ResolvedDefense, ResolvedMetric, resolve_dataset
from robustbench_lite.store import Store
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.registry import Registry

log = logging.getLogger(__name__)


def make_plan(request: RunRequest, registry: Registry, store: Store | None) -> Plan:
    """Plan a request. store: where results may already be; None to plan as if there were none.

    Raises UsageError for a request that cannot be understood, MissingData for a data set that is not there. What concerns
    one defense or one attack only (no weights, a norm that it does not support) is a reason on its cells.
    """
    protocol = find_protocol(request.protocol, contributed_protocols(registry))
    attacks = attacks_of(request, registry, protocol)
    metrics = metrics_of(request, registry)
    weights = weights_of(request, registry, attacks)
    earlier = _Earlier(store)
    cells: list[PlannedCell] = []
    for dataset_text in request.dataset:
        dataset = resolve_dataset(registry, dataset_text, request.data)
        rules = protocol.rules(dataset.info.name)
        threats = request.threat or rules.threats
        if not threats and (attacks or any(metric.declared.norms for metric in metrics)):
            raise UsageError(
                f"protocol {protocol.name} sets no threat model for data set {dataset.label}",
                hint=f"rbl run --dataset {dataset_text} --threat linf:8/255",
            )
        subset = dataset.subset(request.n or rules.n)
        if request.n and request.n > len(subset):
            log.warning("data set %s has %d images to judge on; n = %d takes them all", dataset.label, len(subset), request.n)
        defenses = defenses_of(request, registry, dataset, weights)
        for threat in map(Threat.parse, threats):
            if math.isfinite(threat.eps) and threat.holds_every(dataset.info.shape):
                plain = threat.norm == "linf" and "/" not in threat.spelling
                grey = f": write {threat}/255 for grey levels" if plain else ""
                log.warning("threat %s holds every image of %s, whose values are in [0, 1]%s", threat, dataset.label, grey)
            composed = [_composed(attack, registry, threat, dataset, weights, protocol) for attack in attacks]
            for defense in defenses:
                for attack in composed:
                    cells.append(_cell(protocol, dataset, subset, threat, defense, attack, request, store, earlier))
        for metric in metrics:
            for inside in [Threat.parse(text) for text in threats] if metric.declared.norms else [None]:
                for defense in defenses:
                    cells.append(_measurement(registry, protocol, dataset, inside, defense, metric, request, store, earlier))
    unique = list({(c.key or (c.dataset, c.threat, c.defense, c.attack, c.metric)): c for c in cells}.values())
    if request.shard:
        unique = _share(unique, *parse_shard(request.shard))
    return Plan(tuple(_ordered(unique)), protocol)


def _composed(
    asked: Asked,
    registry: Registry,
    threat: Threat,
    dataset: ResolvedDataset,
    weights: Mapping[str, Path],
    protocol: Protocol,
) -> ResolvedAttack | Unusable:
    """The attack with its members and surrogates for a threat model and a data set."""
    attack = asked.attack
    if isinstance(attack, Unusable) or unsupported(attack, threat, dataset.info.num_classes):
        return attack  # the cell says why
    limits = Threat.parse(sized(attack, threat))
    try:
        return compose(
            registry, attack, limits, dataset.info, overrides=protocol.attacks, weights=weights, dataset=dataset.label
        )
    except (PluginError, MissingWeights) as error:
        return Unusable(attack.label, error)
    except UsageError as error:
        if not asked.from_all:
            raise
        return Unusable(attack.label, error)


class _Earlier:
    """What the store already holds, by what was asked: to say why a cell is run again."""

    def __init__(self, store: Store | None) -> None:
        self._specs: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for cell in (*store.cells(), *store.measurements()) if store is not None else ():
            self._specs.setdefault(self._slot(cell.spec), []).append(cell.spec)

    @staticmethod
    def _slot(spec: Mapping[str, Any]) -> tuple[str, ...]:
        what = spec["metric" if is_measurement(spec) else "attack"]
        return (
            spec["protocol"]["name"],
            spec["dataset"]["id"],
            spec["defense"]["id"],
            spec["defense"]["label"],
            what["id"],
            what["label"],
            str(spec["threat"]),
            str(spec["seed"]),
        )

    def why_stale(self, spec: Mapping[str, Any]) -> str:
        """What has changed since a stored result of the same name; empty where there is none."""
        found = self._specs.get(self._slot(spec), [])
        differences = [difference(old, spec) for old in found if old != spec]
        return "" if not differences else "stale: " + min(differences, key=len) + " changed since the stored result"


def _cell(
    protocol: Protocol,
    dataset: ResolvedDataset,
    subset: tuple[int, ...],
    threat: Threat,
    defense: ResolvedDefense | Unusable,
    attack: ResolvedAttack | Unusable,
    request: RunRequest,
    store: Store | None,
    earlier: _Earlier,
) -> PlannedCell:
    named = PlannedCell(
        dataset=dataset.label, threat=str(threat), defense=defense.label, attack=attack.label, state="skip", n=len(subset)
    )
    for thing in (defense, attack):
        if isinstance(thing, Unusable):
            return replace(named, reason=thing.reason)
    if isinstance(defense, Unusable) or isinstance(attack, Unusable):
        raise TypeError("unreachable")
    if reason := unsupported(attack, threat, dataset.info.num_classes):
        return replace(named, reason=reason)
    try:
        spec = _spec(protocol, dataset, subset, threat, defense, attack, request.seed)
    except RblError as error:  # building a module that brings its own weights may fail
        return replace(named, reason=f"unusable: {error.message}")
    except Exception as error:
        return replace(named, reason=f"unusable: {type(error).__name__}: {error}")
    if reason := inapplicable(spec["defense"], spec["attack"]):
        return replace(named, reason=reason)
    key = cell_key(spec)
    state, why = _state(store, spec, count_shards(len(subset)))
    return replace(
        named,
        state=state,
        reason=why or (earlier.why_stale(spec) if state == "run" else ""),
        key=key,
        spec=spec,
        cost=_cost(attack, dataset.info.num_classes) * (protocol.eot if defense.stochastic else 1),
        files=defense.weights_files() | attack.weights_files(),
    )


def _measurement(
    registry: Registry,
    protocol: Protocol,
    dataset: ResolvedDataset,
    threat: Threat | None,
    defense: ResolvedDefense | Unusable,
    metric: ResolvedMetric,
    request: RunRequest,
    store: Store | None,
    earlier: _Earlier,
) -> PlannedCell:
    subset = dataset.subset(examples_of(metric, request.n or protocol.rules(dataset.info.name).n or len(dataset.subset(None))))
    named = PlannedCell(
        dataset=dataset.label,
        threat="" if threat is None else str(threat),
        defense=defense.label,
        attack="",
        metric=metric.label,
        state="skip",
        n=len(subset),
    )
    if isinstance(defense, Unusable):
        return replace(named, reason=defense.reason)
    try:
        others = other_datasets(registry, metric, request.data)
        if reason := unmeasurable(metric, defense, dataset, threat, others):
            return replace(named, reason=reason)
        spec = measurement_spec(protocol, dataset, subset, defense, metric, threat, request.seed, others)
    except MissingData as error:
        return replace(named, reason=f"no data: {error.message}")
    except RblError as error:
        return replace(named, reason=f"unusable: {error.message}")
    except Exception as error:
        return replace(named, reason=f"unusable: {type(error).__name__}: {error}")
    state, why = _state(store, spec, shards_of(spec))
    return replace(
        named,
        state=state,
        reason=why or (earlier.why_stale(spec) if state == "run" else ""),
        key=cell_key(spec),
        spec=spec,
        files=defense.weights_files(),
    )


def _spec(
    protocol: Protocol,
    dataset: ResolvedDataset,
    subset: tuple[int, ...],
    threat: Threat,
    defense: ResolvedDefense,
    attack: ResolvedAttack,
    seed: int,
) -> dict[str, Any]:
    """What was asked, with everything resolved that can change a number, and nothing else. Its checksum is the key."""
    return {
        "format": 1,
        "protocol": protocol.settings() | {"n": len(subset)},
        "dataset": dataset.spec(subset),
        "defense": defense.spec(),
        "attack": attack.spec(),
        "threat": sized(attack, threat),
        "seed": seed,
    }


def _state(store: Store | None, spec: Mapping[str, Any], shards: int) -> tuple[str, str]:
    if store is None:
        return "run", ""
    found = store.cell(spec).state(shards, verify=True)
    if found.status == "done":
        origin = store.cell(spec).origin
        return "cached", "" if origin is None else origin.said
    if found.status not in ("new", "partial"):
        return "failed", f"tried again: {found.status}: {(found.reason.splitlines() or [''])[0]}"
    if found.shards:
        return f"partial {len(found.shards)}/{shards}", ""
    return "run", ""


def _cost(attack: ResolvedAttack, classes: int) -> int:
    """Passes per example that the attack expects: by its own method ``passes(num_classes)``, or else those of its members."""
    passes = getattr(attack.instance, "passes", None)
    return int(passes(classes)) if callable(passes) else sum(_cost(member, classes) + 1 for member in attack.members)


def _share(cells: Iterable[PlannedCell], i: int, n: int) -> list[PlannedCell]:
    """The cells of job i of n: by key, so that every job comes to the same division whatever it finds in the store."""
    return [c for c in cells if c.key and int(c.key[:12], 16) % n == i - 1]


def _ordered(cells: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Cells of one defense together, so that its model is loaded once; the costliest group and cell first."""
    group: dict[tuple[str, str], int] = {}
    for cell in cells:
        name = (cell.dataset, cell.defense)
        group[name] = group.get(name, 0) + cell.cost * cell.n
    return sorted(
        cells,
        key=lambda c: (not c.to_run, -group[c.dataset, c.defense], c.dataset, c.defense, -c.cost * c.n, c.threat, c.attack),
    )
