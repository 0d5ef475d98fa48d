"""What a request names: attacks, defenses and metrics resolved, each or what keeps it from being used."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_lite import parameters
from robustbench_lite.composition import surrogate_selectors
from robustbench_lite.errors import InvalidParameter, MissingWeights, PluginError, RblError, UsageError, did_you_mean
from robustbench_lite.measuring import require_model_scope
from robustbench_lite.protocol import Protocol
from robustbench_lite.request import RunRequest
from robustbench_lite.resolve import (
    ResolvedAttack,
    ResolvedDataset,
    ResolvedDefense,
    ResolvedMetric,
    resolve,
    resolve_attack,
    resolve_defense,
    resolve_metric,
)
from robustbench_lite.specs import base_selectors

if TYPE_CHECKING:
    from robustbench_lite.registry import Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Selected:
    selector: str
    label: str
    from_all: bool


@dataclass(frozen=True)
class Unusable:
    """An object that was asked for and cannot be used."""

    label: str
    error: RblError
    kind: str = "unusable"

    @property
    def reason(self) -> str:
        """Why, for its cells."""
        kind = "no weights" if isinstance(self.error, MissingWeights) else self.kind
        return f"{kind}: {self.error.message if kind == 'unusable' else self.error.hint}"


@dataclass(frozen=True)
class Asked:
    """An attack as it was asked for. What it is made of is found for each data set and threat model."""

    attack: ResolvedAttack | Unusable
    from_all: bool


def attacks_of(request: RunRequest, registry: Registry, protocol: Protocol) -> list[Asked]:
    """The attacks, with the protocol's parameters where they are named without any."""
    found: list[Asked] = []
    for text in _expand(request.attacks, registry, "attack") if request.attacks else ():
        try:
            found.append(Asked(resolve_attack(registry, text.selector, protocol.attacks), text.from_all))
        except PluginError as error:  # a broken plugin costs its own cells; a misspelt request is raised
            found.append(Asked(Unusable(text.label, error), text.from_all))
        except InvalidParameter as error:  # 'all' gives no parameters, and some attacks cannot do without
            if not text.from_all or not _incomplete(registry, text.selector):
                raise
            found.append(Asked(Unusable(text.label, error, kind="needs parameters"), text.from_all))
    return found


def metrics_of(request: RunRequest, registry: Registry) -> list[ResolvedMetric]:
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


def defenses_of(
    request: RunRequest, registry: Registry, dataset: ResolvedDataset, weights: Mapping[str, Path]
) -> list[ResolvedDefense | Unusable]:
    """The defenses, for a data set."""
    found: list[ResolvedDefense | Unusable] = []
    for text in _expand(request.defense, registry, "defense"):
        try:
            found.append(resolve_defense(registry, text.selector, dataset.info, weights, dataset=dataset.label))
        except (PluginError, MissingWeights) as error:
            found.append(Unusable(text.label, error))
        except UsageError as error:
            if not text.from_all:
                raise
            found.append(Unusable(text.label, error))
    return found


def weights_of(request: RunRequest, registry: Registry, attacks: Sequence[Asked]) -> dict[str, Path]:
    """The weights files that were given, by the defense's label. Raises UnknownName, and UsageError for one of no use."""
    found: dict[str, Path] = {}
    if not request.weights:
        return found
    used = _labels([s.selector for s in _expand(request.defense, registry, "defense")], registry)
    for attack in attacks:
        if not isinstance(attack.attack, Unusable):
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


def _incomplete(registry: Registry, attack: str) -> bool:
    """Whether an attack has parameters without a default."""
    return any(p.required for p in parameters.describe(registry.factory(registry.get("attack", attack))))


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
