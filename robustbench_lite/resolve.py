"""From a selector such as ``jpeg[base=pgd-at]`` to an object that can be used, and to the JSON that identifies it.

A resolved object knows its plugin entry, the factory's instance with every parameter, and the part of a cell's spec that
it contributes; ``*_from_spec`` goes the other way, which is how worker processes get their objects without pickling.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_lite import parameters
from robustbench_lite.data import DatasetBundle, DatasetInfo
from robustbench_lite.errors import MissingWeights, PluginError, RblError, UsageError
from robustbench_lite.selectors import parse_selector
from robustbench_lite.specs import TRAINABLE, WRAPPING, AttackSpec, DefenseSpec, MetricSpec, base_selectors
from robustbench_lite.weights import WeightsFile, find_weights, rbl_home, state_hash

if TYPE_CHECKING:
    from torch import nn

    from robustbench_lite.records import Entry
    from robustbench_lite.registry import Registry


@dataclass(frozen=True)
class Resolved:
    """A plugin object with its parameters fixed. label: as tables show it, with the parameters that are not defaults."""

    entry: Entry
    instance: Any
    label: str

    @property
    def parameters(self) -> dict[str, Any]:
        """Every parameter with its value, as JSON."""
        return parameters.resolved(self.instance)

    def identity(self) -> dict[str, Any]:
        """What of it is part of a result's key."""
        return {"id": self.entry.id, "version": self.entry.spec.version, "parameters": self.parameters, "label": self.label}


def resolve(registry: Registry, kind: str, text: str, defaults: Mapping[str, object] | None = None) -> Resolved:
    """The object that a selector names. defaults: parameters used where the selector sets none of its own.

    Raises UnknownName, AmbiguousName, InvalidParameter, PluginError.
    """
    selector = parse_selector(text)
    entry = registry.get(kind, selector.name)
    return _instance(registry, entry, {**(defaults or {}), **dict(selector.parameters)})


def _instance(registry: Registry, entry: Entry, values: Mapping[str, object]) -> Resolved:
    factory = registry.factory(entry)
    instance = parameters.build(factory, values, where=entry.id)
    label = parameters.label(entry.spec.name, factory, instance)
    found = Resolved(entry, instance, label)
    inner = inner_method(registry, found)
    return found if inner is None else Resolved(entry, instance.around(inner.instance), label)


def inner_method(registry: Registry, outer: Resolved) -> Resolved | None:
    """The trained defense that a training method around another names in its field ``method``; None for all others."""
    entry, name = outer.entry, getattr(outer.instance, "method", None)
    if entry.kind != "defense" or not hasattr(outer.instance, "around"):
        return None
    if not isinstance(name, str) or parse_selector(name).name in (entry.id, entry.spec.name):
        raise PluginError(
            f"{entry.id} of {entry.distribution} is around another method and names {name!r}",
            hint="give its dataclass a field method: str, the id of another trained defense",
        )
    found = resolve(registry, "defense", name)
    spec = found.entry.spec
    if not isinstance(spec, DefenseSpec) or spec.kind != "trained":
        raise UsageError(f"{found.label} is not trained, so {entry.spec.name} cannot be around it", hint="rbl list defenses")
    return found


# ---------------------------------------------------------------------------------------------------------- data sets


@dataclass(frozen=True)
class ResolvedDataset(Resolved):
    """A data set, loaded."""

    bundle: DatasetBundle

    @property
    def info(self) -> DatasetInfo:
        """What defenses may know of it."""
        return self.bundle.info

    def subset(self, n: int | None) -> tuple[int, ...]:
        """The first n indices of the fixed evaluation subset; all of them for None."""
        indices = [int(i) for i in self.bundle.evaluation]
        return tuple(indices if n is None else indices[:n])

    def spec(self, subset: Sequence[int]) -> dict[str, Any]:
        """What of it is part of a result's key: its content and the examples that are judged, by checksum."""
        listed = subset_checksum(subset)
        return self.identity() | {"name": self.info.name, "fingerprint": self.bundle.fingerprint, "subset": listed}


def subset_checksum(subset: Sequence[int]) -> str:
    """By what specs name a list of examples."""
    return hashlib.sha256(",".join(map(str, subset)).encode()).hexdigest()


def resolve_dataset(registry: Registry, text: str, root: Path) -> ResolvedDataset:
    """Resolve and load a data set. Raises MissingData, and PluginError where its factory fails in another way."""
    return _loaded(resolve(registry, "dataset", text), root)


def dataset_from_spec(registry: Registry, spec: Mapping[str, Any], root: Path) -> ResolvedDataset:
    """The data set of a stored spec; PluginError where its content is no longer the same."""
    found = dataset_from_fields(registry, spec, root)
    if found.bundle.fingerprint != spec["fingerprint"]:
        raise PluginError(
            f"data set {spec['label']} has changed since the run was planned",
            hint="run the same command again: it plans with the data as they are now",
        )
    return found


def dataset_from_fields(registry: Registry, spec: Mapping[str, Any], root: Path) -> ResolvedDataset:
    """The data set of that id and parameters as it is now, whatever it was when the spec was stored."""
    return _loaded(_instance(registry, registry.get("dataset", spec["id"]), spec["parameters"]), root)


def _loaded(found: Resolved, root: Path) -> ResolvedDataset:
    try:
        bundle = found.instance(root)
    except RblError:
        raise
    except Exception as error:
        raise PluginError(
            f"data set {found.entry.id} of {found.entry.distribution} failed: {type(error).__name__}: {error}",
            hint=f"rbl check {found.entry.id} --data {root}, or rbl --verbose to see where",
        ) from error
    if not isinstance(bundle, DatasetBundle):
        raise PluginError(
            f"data set {found.entry.id} of {found.entry.distribution} returned {type(bundle).__name__}, not a DatasetBundle",
            hint="see robustbench_lite.DatasetBundle",
        )
    return ResolvedDataset(found.entry, found.instance, found.label, bundle)


# ----------------------------------------------------------------------------------------------------------- defenses


@dataclass(frozen=True)
class ResolvedDefense(Resolved):
    """A defense for one data set. weights: the file it will load, if any. bases: what a wrapper wraps.

    method: what a training method around another is around.
    """

    info: DatasetInfo
    weights: WeightsFile | None = None
    bases: tuple[ResolvedDefense, ...] = ()
    method: Resolved | None = None

    @property
    def declared(self) -> DefenseSpec:
        """The spec that its plugin declared."""
        spec = self.entry.spec
        if not isinstance(spec, DefenseSpec):
            raise PluginError(f"{self.entry.id} is not a defense")
        return spec

    @property
    def base(self) -> ResolvedDefense | None:
        """What a wrapper with a parameter ``base`` wraps; None for one with ``bases``, and for other defenses."""
        return self.bases[0] if self.bases and not hasattr(self.instance, "bases") else None

    @property
    def _architects(self) -> tuple[DefenseSpec, ...]:
        """Of all whose module this is: a method around another has that one's, and may add to it."""
        inner = None if self.method is None else self.method.entry.spec
        return (self.declared, inner) if isinstance(inner, DefenseSpec) else (self.declared,)

    @property
    def stochastic(self) -> bool:
        """Whether two passes over one input may differ, here or in what it wraps."""
        return any(each.stochastic for each in self._architects) or any(each.stochastic for each in self.bases)

    @property
    def differentiable(self) -> bool:
        """Whether autograd gives useful gradients, all the way through what it wraps."""
        return all(each.differentiable for each in self._architects) and all(each.differentiable for each in self.bases)

    @property
    def rejects(self) -> bool:
        """Whether it may refuse to answer."""
        return any(each.rejects for each in self._architects) or any(each.rejects for each in self.bases)

    @property
    def surrogate(self) -> bool:
        """Whether a module that is not differentiable offers another gradient, all the way through what it wraps."""
        return all(each.surrogate for each in self._architects) and all(each.attackable_by_gradient for each in self.bases)

    @property
    def attackable_by_gradient(self) -> bool:
        """Whether there is a gradient to follow: autograd's or a surrogate's."""
        return self.differentiable or self.surrogate

    @property
    def extra_data(self) -> str:
        """What it was trained on besides the data set, it, its method or what it wraps; empty for nothing."""
        own = next((each.extra_data for each in reversed(self._architects) if each.extra_data), "")
        return own or ("" if self.base is None else self.base.extra_data)

    @cached_property
    def weights_id(self) -> str | None:
        """sha256 of the weights file; of the state of a module that brings its own; None for a wrapper."""
        if self.weights is not None:
            return self.weights.sha256
        return None if self.bases else "state:" + state_hash(self.build())

    def spec(self) -> dict[str, Any]:
        """What of it is part of a result's key."""
        found = self.identity() | {
            "weights": self.weights_id,
            "base": None if self.base is None else self.base.spec(),
            "stochastic": self.stochastic,
            "differentiable": self.differentiable,
            "surrogate": not self.differentiable and self.surrogate,
            "rejects": self.rejects,
        }
        if self.method is not None:
            found["method"] = self.method.identity()
        if self.bases and self.base is None:
            found["bases"] = [each.spec() for each in self.bases]
        if self.extra_data:
            found["extra_data"] = self.extra_data
        return found

    def weights_files(self) -> dict[str, str]:
        """Path by checksum of every weights file it needs, those of what it wraps too."""
        return {file.sha256: str(file.path) for file in self.all_weights()}

    def all_weights(self) -> list[WeightsFile]:
        """Its weights, and those of what it wraps."""
        own = [] if self.weights is None else [self.weights]
        return own + [file for each in self.bases for file in each.all_weights()]

    @property
    def weights_ids(self) -> list[str]:
        """``weights_id`` of all that it is made of, its own first."""
        own = [] if self.weights_id is None else [self.weights_id]
        return own + [identifier for each in self.bases for identifier in each.weights_ids]

    def build(self) -> nn.Module:
        """The module, in evaluation mode. Raises PluginError where the factory returns something else."""
        path = None if self.weights is None else self.weights.path
        if not self.bases:
            module = self.instance(self.info, path)
        elif self.base is None:
            module = self.instance(self.info, tuple(each.build() for each in self.bases))
        elif self.declared.kind == "fitted":
            module = self.instance(self.info, self.base.build(), path)
        else:
            module = self.instance(self.info, self.base.build())
        from torch import nn

        if not isinstance(module, nn.Module):
            raise PluginError(
                f"defense {self.entry.id} of {self.entry.distribution} built {type(module).__name__}, not a torch.nn.Module",
                hint="its factory is called as (info, weights), a wrapper's as (info, base), a fitted one's as (info, base, "
                "weights), and returns the module",
            )
        return module.eval()


def resolve_defense(
    registry: Registry, text: str, info: DatasetInfo, given: Mapping[str, Path] | None = None, *, dataset: str = ""
) -> ResolvedDefense:
    """Resolve a defense for a data set and find its weights. given: weights files by label, before all other places.

    dataset: the selector of the data set, for messages; its short name where empty.

    Raises MissingWeights, and UsageError where the defense does not work on this data set.
    """
    return _with_weights(registry, resolve(registry, "defense", text), info, dict(given or {}), (), dataset)


def defense_from_spec(
    registry: Registry, spec: Mapping[str, Any], info: DatasetInfo, files: Mapping[str, str]
) -> ResolvedDefense:
    """The defense of a stored spec. files: path by checksum of the weights that the planner found."""
    found = _instance(registry, registry.get("defense", spec["id"]), spec["parameters"])
    wrapped = spec.get("bases", ()) if spec["base"] is None else (spec["base"],)
    bases = tuple(defense_from_spec(registry, each, info, files) for each in wrapped)
    weights = None
    if spec["weights"] in files:
        weights = WeightsFile(path=Path(files[spec["weights"]]), sha256=spec["weights"], origin="plan")
    return ResolvedDefense(found.entry, found.instance, found.label, info, weights, bases, inner_method(registry, found))


def defense_from_fields(
    registry: Registry, spec: Mapping[str, Any], info: DatasetInfo, given: Mapping[str, Path] | None = None
) -> ResolvedDefense:
    """The defense of that id and parameters with the weights that a run would use now. Raises as ``resolve_defense``."""
    found = _instance(registry, registry.get("defense", spec["id"]), spec["parameters"])
    return _with_weights(registry, found, info, dict(given or {}), ())


def _with_weights(
    registry: Registry,
    found: Resolved,
    info: DatasetInfo,
    given: Mapping[str, Path],
    inside: tuple[str, ...],
    dataset: str = "",
) -> ResolvedDefense:
    """inside: labels of the wrappers that it is wrapped by. dataset: see ``resolve_defense``."""
    declared = found.entry.spec
    if not isinstance(declared, DefenseSpec):
        raise PluginError(f"{found.entry.id} is not a defense")
    if declared.datasets and info.name not in declared.datasets:
        raise UsageError(
            f"defense {found.label} works on {', '.join(declared.datasets)}, not on {info.name}",
            hint=f"rbl show {found.entry.id}",
        )
    bases = wrapped(registry, found, info, given, inside, dataset) if declared.kind in WRAPPING else ()
    if declared.kind == "wrapper":
        return ResolvedDefense(found.entry, found.instance, found.label, info, bases=bases)
    inner = inner_method(registry, found)
    try:
        path, home, parts = given.get(found.label), rbl_home(), _parts(inner, bases)
        weights = find_weights(found.entry, found.instance, info.name, given=path, home=home, selector=dataset, parts=parts)
    except MissingWeights:
        if declared.kind in TRAINABLE:
            raise
        weights = None
    return ResolvedDefense(found.entry, found.instance, found.label, info, weights, bases, inner)


def wrapped(
    registry: Registry, found: Resolved, info: DatasetInfo, given: Mapping[str, Path], inside: tuple[str, ...], dataset: str
) -> tuple[ResolvedDefense, ...]:
    """What a wrapper wraps: the defenses that ``base_selectors`` names, with their weights."""
    selectors = base_selectors(found.instance)
    if not selectors:
        raise PluginError(
            f"wrapper {found.entry.id} of {found.entry.distribution} wraps nothing",
            hint="give its dataclass a field base: str, the id of the defense to wrap, or bases: tuple[str, ...]",
        )
    if found.label in inside:
        raise PluginError(
            f"wrapper {found.label} wraps itself: {' in '.join([found.label, *reversed(inside)])}",
            hint=f"name another base: {found.entry.spec.name}[base=...]",
        )
    within, named = (*inside, found.label), (resolve(registry, "defense", text) for text in selectors)
    return tuple(_with_weights(registry, each, info, given, within, dataset) for each in named)


def _parts(inner: Resolved | None, bases: Sequence[ResolvedDefense]) -> dict[str, dict[str, Any]]:
    """What must not have changed since weights were trained: the version of the method inside, the weights of the base."""
    method = {} if inner is None else {"method": {"id": inner.entry.id, "version": inner.entry.spec.version}}
    weights = [identifier for base in bases for identifier in base.weights_ids]
    return method | ({"base": {"weights": weights}} if bases else {})


# ------------------------------------------------------------------------------------------------------------ attacks


@dataclass(frozen=True)
class ResolvedAttack(Resolved):
    """An attack with its parameters, and what else it is made of: see ``composition.py``."""

    members: tuple[ResolvedAttack, ...] = ()
    surrogates: tuple[ResolvedDefense, ...] = ()

    @property
    def declared(self) -> AttackSpec:
        """The spec that its plugin declared."""
        spec = self.entry.spec
        if not isinstance(spec, AttackSpec):
            raise PluginError(f"{self.entry.id} is not an attack")
        return spec

    def spec(self) -> dict[str, Any]:
        """What of it is part of a result's key."""
        found = self.identity() | {"access": self.declared.access, "goal": self.declared.goal}
        if self.members:
            found["members"] = [member.spec() for member in self.members]
        if self.surrogates:
            found["surrogates"] = [surrogate.spec() for surrogate in self.surrogates]
        return found

    def weights_files(self) -> dict[str, str]:
        """Path by checksum of every weights file that its surrogates need."""
        return {sha256: path for each in self.surrogates for sha256, path in each.weights_files().items()}


def resolve_attack(
    registry: Registry, text: str, overrides: Mapping[str, Mapping[str, object]] | None = None
) -> ResolvedAttack:
    """Resolve an attack. overrides: a protocol's parameters by attack id; the selector's own win."""
    identifier = registry.get("attack", parse_selector(text).name).id
    found = resolve(registry, "attack", text, (overrides or {}).get(identifier))
    return ResolvedAttack(found.entry, found.instance, found.label)


def attack_from_spec(registry: Registry, spec: Mapping[str, Any]) -> ResolvedAttack:
    """The attack of a stored spec with its members; its surrogates are for whoever knows the data set and the weights."""
    found = _instance(registry, registry.get("attack", spec["id"]), spec["parameters"])
    members = tuple(attack_from_spec(registry, member) for member in spec.get("members", ()))
    return ResolvedAttack(found.entry, found.instance, found.label, members)


# ------------------------------------------------------------------------------------------------------------ metrics


@dataclass(frozen=True)
class ResolvedMetric(Resolved):
    """A metric with its parameters."""

    @property
    def declared(self) -> MetricSpec:
        """The spec that its plugin declared."""
        spec = self.entry.spec
        if not isinstance(spec, MetricSpec):
            raise PluginError(f"{self.entry.id} is not a metric")
        return spec

    def spec(self) -> dict[str, Any]:
        """What of it is part of a measurement's key."""
        return self.identity() | {"per_example": self.declared.per_example}


def resolve_metric(registry: Registry, text: str) -> ResolvedMetric:
    """Resolve a metric. Raises as ``resolve``."""
    found = resolve(registry, "metric", text)
    return ResolvedMetric(found.entry, found.instance, found.label)


def metric_from_spec(registry: Registry, spec: Mapping[str, Any]) -> ResolvedMetric:
    """The metric of a stored spec."""
    found = _instance(registry, registry.get("metric", spec["id"]), spec["parameters"])
    return ResolvedMetric(found.entry, found.instance, found.label)
