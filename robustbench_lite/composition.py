"""What an attack is made of besides its own code: other attacks (its members) and the defenses that it is crafted on.

An attack's factory names them by selectors, when a run is planned::

    def members(self, threat: Threat) -> tuple[str, ...]: ...    # attacks, in order
    surrogates: tuple[str, ...] = ("standard",)                  # a field: defenses

They are resolved here, checked before any work, and become part of the cell's spec. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_lite.errors import MissingWeights, PluginError, RblError, UsageError
from robustbench_lite.resolve import ResolvedAttack, resolve_attack, resolve_defense
from robustbench_lite.specs import ACCESS

if TYPE_CHECKING:
    from robustbench_lite.data import DatasetInfo
    from robustbench_lite.registry import Registry
    from robustbench_lite.threat import Threat

Overrides = Mapping[str, Mapping[str, object]]


def is_composed(instance: object) -> bool:
    """Whether an attack is made of others, or crafted on surrogates."""
    return callable(getattr(instance, "members", None)) or bool(surrogate_selectors(instance))


def surrogate_selectors(instance: object) -> tuple[str, ...]:
    """The selectors of the defenses that an attack is crafted on."""
    named = getattr(instance, "surrogates", ())
    return tuple(named) if isinstance(named, (tuple, list)) else ()


def compose(
    registry: Registry,
    attack: ResolvedAttack,
    threat: Threat,
    info: DatasetInfo,
    *,
    overrides: Overrides | None = None,
    weights: Mapping[str, Path] | None = None,
    dataset: str = "",
) -> ResolvedAttack:
    """The attack with its members for a threat model and its surrogates for a data set.

    overrides: a protocol's parameters by attack id, which also hold for members that do not set them. weights, dataset: as for
    ``resolve_defense``.

    Raises UsageError where a selector is wrong or a member cannot be one, PluginError where the attack or a named plugin is at
    fault, MissingWeights. Whether a member works under the threat model is for the planner to say.
    """
    if not is_composed(attack.instance):
        return attack
    members = resolve_members(registry, attack, threat, overrides)
    surrogates = []
    for text in surrogate_selectors(attack.instance):
        try:
            surrogates.append(resolve_defense(registry, text, info, weights, dataset=dataset))
        except MissingWeights:
            raise
        except RblError as error:
            raise _of(attack, "surrogate", text, error) from error
    for surrogate in surrogates:
        if not surrogate.attackable_by_gradient and any(m.declared.access == "gradient" for m in members):
            raise UsageError(
                f"{attack.label}: {surrogate.label} gives no gradient to craft on", hint="name a differentiable surrogate"
            )
    return replace(attack, members=members, surrogates=tuple(surrogates))


def resolve_members(
    registry: Registry, attack: ResolvedAttack, threat: Threat, overrides: Overrides | None = None
) -> tuple[ResolvedAttack, ...]:
    """The members that an attack names, each checked to be one that it may have. Raises as ``compose``."""
    found = []
    for text in _named(attack, threat):
        try:
            member = resolve_attack(registry, text, overrides)
        except RblError as error:
            raise _of(attack, "member", text, error) from error
        if why := _unfit(attack, member):
            raise UsageError(f"{attack.label}: {member.label} cannot be a member: {why}")
        found.append(member)
    return tuple(found)


def _named(attack: ResolvedAttack, threat: Threat) -> tuple[str, ...]:
    method: Any = getattr(attack.instance, "members", None)
    if not callable(method):
        return ()
    at_fault = f"attack {attack.entry.id} of {attack.entry.distribution}"
    try:
        named = method(threat)
    except RblError:
        raise
    except Exception as error:
        raise PluginError(f"{at_fault} could not name its members: {type(error).__name__}: {error}") from error
    if not isinstance(named, (tuple, list)) or not named or not all(isinstance(text, str) for text in named):
        raise PluginError(f"{at_fault} named the members {named!r}", hint="return a tuple of selectors: ('apgd-ce', 'square')")
    return tuple(named)


def _unfit(attack: ResolvedAttack, member: ResolvedAttack) -> str:
    """Why an attack cannot be a member of another; empty where it can."""
    if is_composed(member.instance):
        return "it is made of other attacks itself"
    if surrogate_selectors(attack.instance):  # members run there, where everything is allowed
        return "" if member.declared.goal == "fixed-budget" else "on a surrogate nothing is found that could be made smaller"
    if ACCESS.index(member.declared.access) < ACCESS.index(attack.declared.access):
        return f"it needs access {member.declared.access!r}, and {attack.label} has {attack.declared.access!r}"
    return ""


def _of(attack: ResolvedAttack, role: str, text: str, error: RblError) -> RblError:
    """The same kind of error, saying whose part it is about."""
    said = f"{role} {text!r} of {attack.label}: {error.message}"
    return type(error)(said, hint=error.hint) if isinstance(error, (UsageError, PluginError)) else error


def white_box(defense: Mapping[str, Any], attack: Mapping[str, Any]) -> bool:
    """Whether an attack is crafted on the very defense that it is run against; both as in a cell's spec."""
    return any(surrogate == defense for surrogate in attack.get("surrogates", ()))
