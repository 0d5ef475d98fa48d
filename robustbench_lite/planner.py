"""From a request to cells and measurements, each with a state and a reason in words. Nothing is run or written here.

States: ``run``, ``cached``, ``partial 3/8`` (some shards are stored), ``failed`` (an earlier attempt ended badly; it is tried
again), ``skip`` (it cannot be run, and why).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_lite import parameters
from robustbench_lite.composition import compose, surrogate_selectors, white_box
from robustbench_lite.errors import (
    InvalidParameter,
    MissingData,
    MissingWeights,
    PluginError,
    RblError,
    UsageError,
    did_you_mean,
)
from robustbench_lite.keys import cell_key
from robustbench_lite.measuring import (
    examples_of,
    is_measurement,
    measurement_spec,
    other_datasets,
    require_model_scope,
    unmeasurable,
)
from robustbench_lite.outdated import difference
from robustbench_lite.protocol import Protocol, find_protocol
from robustbench_lite.request import RunRequest, parse_shard
from robustbench_lite.resolve import (
    ResolvedAttack,
    ResolvedDataset,
    ResolvedDefense,
    ResolvedMetric,
    resolve,
    resolve_attack,
    resolve_dataset,
    resolve_defense,
    resolve_metric,
)
from robustbench_lite.specs import base_selectors
from robustbench_lite.store import Store
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.registry import Registry

log = logging.getLogger(__name__)

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


def make_plan(request: RunRequest, registry: Registry, store: Store | None) -> Plan:
    """Plan a request. store: where results may already be; None to plan as if there were none.

    Raises UsageError for a request that cannot be understood, MissingData for a data set that is not there. What concerns
    one defense or one attack only (no weights, a norm that it does not support) is a reason on its cells.
    """
    protocol = find_protocol(request.protocol, contributed_protocols(registry))
    attacks = _attacks(request, registry, protocol)
    metrics = _metrics(request, registry)
    weights = _given_weights(request, registry, attacks)
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
        defenses = _defenses(request, registry, dataset, weights)
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


def contributed_protocols(registry: Registry) -> dict[str, str]:
    """YAML texts of the protocols that plugins bring, by id. One that cannot be read is logged and left out."""
    found: dict[str, str] = {}
    for entry in registry.entries("protocol"):
        try:
            value = registry.factory(entry)
            found[entry.id] = value if isinstance(value, str) else value.read_text(encoding="utf-8")
        except Exception as error:
            log.warning("protocol %s of %s cannot be read: %s", entry.id, entry.distribution, error)
    return found


def inapplicable(defense: Mapping[str, Any], attack: Mapping[str, Any]) -> str:
    """Why an attack cannot be run on a defense whatever the data set; both as in a cell's spec. Empty where it can."""
    if attack["access"] == "gradient" and not defense["differentiable"] and not defense["surrogate"]:
        return "gradient attack on a non-differentiable defense without surrogate"
    if white_box(defense, attack):
        return f"{defense['label']} is itself what {attack['label']} is crafted on: that is no transfer, but a white-box attack"
    return ""


def unsupported(attack: ResolvedAttack, threat: Threat, classes: int) -> str:
    """Why an attack cannot be run on a data set under a threat model; empty where it can."""
    norms = attack.declared.norms
    if threat.norm not in norms:
        return f"norm {threat.norm} not supported by {attack.label} (it has {', '.join(norms)})"
    minimal = attack.declared.goal == "minimal-norm"
    if minimal and threat.norm == "union":
        return f"{attack.label} minimises one norm and a union has several: run it under {threat.parts[0].norm}"
    if not minimal and math.isinf(threat.eps):
        return f"{attack.label} needs a radius: write {threat.norm}:EPS"
    if classes < attack.declared.min_classes:
        return f"{attack.label} needs at least {attack.declared.min_classes} classes, the data set has {classes}"
    for member in attack.members:
        if reason := unsupported(member, Threat.parse(sized(attack, threat)), classes):
            return f"member {member.label}: {reason}"
    return ""


def _attacks(request: RunRequest, registry: Registry, protocol: Protocol) -> list[_Asked]:
    found: list[_Asked] = []
    for text in _expand(request.attacks, registry, "attack") if request.attacks else ():
        try:
            found.append(_Asked(resolve_attack(registry, text.selector, protocol.attacks), text.from_all))
        except PluginError as error:  # a broken plugin costs its own cells; a misspelt request is raised
            found.append(_Asked(_Unusable(text.label, error), text.from_all))
        except InvalidParameter as error:  # 'all' gives no parameters, and some attacks cannot do without
            if not text.from_all or not _incomplete(registry, text.selector):
                raise
            found.append(_Asked(_Unusable(text.label, error, kind="needs parameters"), text.from_all))
    return found


def _metrics(request: RunRequest, registry: Registry) -> list[ResolvedMetric]:
    """The metrics to measure; of ``all`` those of scope model that can be used without parameters."""
    found: list[ResolvedMetric] = []
    for text in _expand(request.metric, registry, "metric") if request.metric else ():
        if text.from_all and getattr(registry.get("metric", text.selector).spec, "scope", "") != "model":
            continue
        try:
            found.append(require_model_scope(resolve_metric(registry, text.selector)))
        except (PluginError, InvalidParameter) as error:  # a broken plugin costs its own numbers only
            if not text.from_all:
                raise
            log.warning("metric %s is left out: %s", text.selector, error.message)
    return found


def _composed(
    asked: _Asked,
    registry: Registry,
    threat: Threat,
    dataset: ResolvedDataset,
    weights: Mapping[str, Path],
    protocol: Protocol,
) -> ResolvedAttack | _Unusable:
    """The attack with its members and surrogates for a threat model and a data set."""
    attack = asked.attack
    if isinstance(attack, _Unusable) or unsupported(attack, threat, dataset.info.num_classes):
        return attack  # the cell says why
    limits = Threat.parse(sized(attack, threat))
    try:
        return compose(
            registry, attack, limits, dataset.info, overrides=protocol.attacks, weights=weights, dataset=dataset.label
        )
    except (PluginError, MissingWeights) as error:
        return _Unusable(attack.label, error)
    except UsageError as error:
        if not asked.from_all:
            raise
        return _Unusable(attack.label, error)


def _incomplete(registry: Registry, attack: str) -> bool:
    """Whether an attack has parameters without a default."""
    return any(p.required for p in parameters.describe(registry.factory(registry.get("attack", attack))))


def _defenses(
    request: RunRequest, registry: Registry, dataset: ResolvedDataset, weights: Mapping[str, Path]
) -> list[ResolvedDefense | _Unusable]:
    found: list[ResolvedDefense | _Unusable] = []
    for text in _expand(request.defense, registry, "defense"):
        try:
            found.append(resolve_defense(registry, text.selector, dataset.info, weights, dataset=dataset.label))
        except (PluginError, MissingWeights) as error:
            found.append(_Unusable(text.label, error))
        except UsageError as error:
            if not text.from_all:
                raise
            found.append(_Unusable(text.label, error))
    return found


def _given_weights(request: RunRequest, registry: Registry, attacks: Sequence[_Asked]) -> dict[str, Path]:
    """The weights files that were given, by the defense's label. Raises UnknownName, and UsageError for one of no use."""
    found: dict[str, Path] = {}
    if not request.weights:
        return found
    used = _labels([s.selector for s in _expand(request.defense, registry, "defense")], registry)
    for attack in attacks:
        if not isinstance(attack.attack, _Unusable):
            used |= _labels(surrogate_selectors(attack.attack.instance), registry)
    for text, path in request.weights.items():
        label = resolve(registry, "defense", text).label
        if label not in used:
            near = did_you_mean(label, used)
            raise UsageError(
                f"weights were given for {label}, which is not among the defenses to run or to craft on",
                hint=near or f"they are: {', '.join(sorted(used))}",
            )
        found[label] = path
    return found


def _labels(selectors: Iterable[str], registry: Registry, inside: tuple[str, ...] = ()) -> set[str]:
    """The labels of defenses and of what they wrap; those that cannot be used are passed over."""
    found: set[str] = set()
    for selector in selectors:
        with contextlib.suppress(RblError):
            defense = resolve(registry, "defense", selector)
            found.add(defense.label)
            if defense.label not in inside:
                found |= _labels(base_selectors(defense.instance), registry, (*inside, defense.label))
    return found


@dataclass(frozen=True)
class _Selected:
    selector: str
    label: str
    from_all: bool


@dataclass(frozen=True)
class _Unusable:
    """An object that was asked for and cannot be used."""

    label: str
    error: RblError
    kind: str = "unusable"


@dataclass(frozen=True)
class _Asked:
    """An attack as it was asked for. What it is made of is found for each data set and threat model."""

    attack: ResolvedAttack | _Unusable
    from_all: bool


def _expand(selectors: Sequence[str], registry: Registry, kind: str) -> list[_Selected]:
    found: list[_Selected] = []
    for text in selectors:
        if text == "all":
            found += [_Selected(entry.id, entry.spec.name, True) for entry in registry.entries(kind)]
        else:
            found.append(_Selected(text, text, False))
    if not found:
        raise UsageError(f"no {kind} is installed", hint=f"pip install rbl-{kind}s; rbl plugins says what was found")
    return list({s.selector: s for s in found}.values())


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
    defense: ResolvedDefense | _Unusable,
    attack: ResolvedAttack | _Unusable,
    request: RunRequest,
    store: Store | None,
    earlier: _Earlier,
) -> PlannedCell:
    named = PlannedCell(
        dataset=dataset.label, threat=str(threat), defense=defense.label, attack=attack.label, state="skip", n=len(subset)
    )
    for thing in (defense, attack):
        if isinstance(thing, _Unusable):
            return replace(named, reason=_why_unusable(thing))
    if isinstance(defense, _Unusable) or isinstance(attack, _Unusable):
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
    defense: ResolvedDefense | _Unusable,
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
    if isinstance(defense, _Unusable):
        return replace(named, reason=_why_unusable(defense))
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


def _why_unusable(thing: _Unusable) -> str:
    kind = "no weights" if isinstance(thing.error, MissingWeights) else thing.kind
    return f"{kind}: {thing.error.message if kind == 'unusable' else thing.error.hint}"


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


def sized(attack: ResolvedAttack, threat: Threat) -> str:
    """The threat model as the attack is given it: of a minimal-norm attack one cell serves every size."""
    return threat.norm if attack.declared.goal == "minimal-norm" else str(threat)


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
