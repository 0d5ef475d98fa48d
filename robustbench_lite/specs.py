"""Specs: the light descriptions that plugins contribute. Importing this module imports no torch.

A spec names an object, says what it can do, and where its factory is found (``"package.module:attribute"``). The factory is
imported only when the object is used. Specs are plain data: they are not checked when they are made but when they are
registered, so that one bad spec costs itself and not its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

API_VERSION = 1
SUPPORTED_APIS = (1,)  # the current and the previous one

BALLS = ("linf", "l2", "l1", "l0")
UNRESTRICTED = "unrestricted"
NORMS = (*BALLS, "union", UNRESTRICTED)
ACCESS = ("gradient", "scores", "decision", "transfer", "none")
GOALS = ("fixed-budget", "minimal-norm")
DEFENSE_KINDS = ("trained", "wrapper", "fitted", "pretrained")
# Those with a parameter ``base``, and those whose weights ``rbl train`` makes.
WRAPPING = ("wrapper", "fitted")
TRAINABLE = ("trained", "fitted")
FIDELITIES = ("official-match", "paper-formula", "reconstruction")
SCOPES = ("cell", "defense", "model")
DIRECTIONS = ("higher", "lower", "none")
NEEDS = ("gradient", "deterministic", "certify", "training-data", "history")
TASKS = ("image-classification", "classification")

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every spec says.

    name: lower-case words joined by hyphens; the id is ``<namespace>/<name>``.
    factory: ``"package.module:attribute"``, imported on first use.
    summary: one line for tables. reference: ``arXiv:...``, ``doi:...`` or a URL.
    version: behaviour version; raise it when the same parameters give other results. It is part of every result's key.
    api: version of the plugin API that the plugin was written for.
    """

    kind_name: ClassVar[str] = "object"

    name: str
    factory: str
    summary: str = ""
    reference: str = ""
    version: int = 1
    api: int = API_VERSION

    def problems(self) -> list[str]:
        """What is wrong with this spec, in words; empty when it is sound."""
        found: list[str] = []
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            found.append(f"name {self.name!r} must be lower-case letters, digits and hyphens, such as 'my-attack'")
        if not isinstance(self.factory, str) or not _FACTORY.fullmatch(self.factory):
            found.append(f"factory {self.factory!r} must read 'package.module:attribute'")
        for key in ("summary", "reference"):
            if not isinstance(getattr(self, key), str):
                found.append(f"{key} must be text, not {type(getattr(self, key)).__name__}")
        if not isinstance(self.version, int) or self.version < 1:
            found.append(f"version {self.version!r} must be a whole number from 1")
        if self.api not in SUPPORTED_APIS:
            newer = isinstance(self.api, int) and self.api > API_VERSION
            fix = "upgrade robustbench-lite" if newer else "upgrade the plugin"
            found.append(f"written for plugin API {self.api!r}, this core speaks {SUPPORTED_APIS[-1]}: {fix}")
        return found

    def _one_of(self, key: str, known: tuple[str, ...]) -> list[str]:
        value = getattr(self, key)
        return [] if value in known else [f"unknown {key} {value!r}; known: {', '.join(known)}"]

    def _flags(self, *keys: str) -> list[str]:
        return [
            f"{key} must be True or False, not {getattr(self, key)!r}"
            for key in keys
            if not isinstance(getattr(self, key), bool)
        ]


@dataclass(frozen=True, kw_only=True)
class AttackSpec(Spec):
    """An attack: ``factory(**parameters)`` is callable as ``(target, x, y, threat, rng) -> x_adv``.

    One that is made of other attacks has a method ``members``, one that is crafted on other defenses a field ``surrogates``:
    see ``composition.py``.

    norms: the threat models it can work in. goal: ``fixed-budget`` or ``minimal-norm``. access: the least it needs.
    min_classes: fewest classes it works with. global_rng: it draws from torch's global generator (wrapped libraries), so
    it is run on whole shards with that generator seeded, and restored afterwards.
    """

    kind_name: ClassVar[str] = "attack"

    norms: tuple[str, ...]
    access: str
    goal: str = "fixed-budget"
    min_classes: int = 2
    global_rng: bool = False

    def problems(self) -> list[str]:
        found = super().problems() + self._one_of("access", ACCESS) + self._one_of("goal", GOALS) + self._flags("global_rng")
        if not isinstance(self.norms, tuple) or not self.norms:
            found.append("norms must be a tuple with at least one norm, such as ('linf', 'l2')")
        else:
            found += [f"unknown norm {n!r}; known: {', '.join(NORMS)}" for n in self.norms if n not in NORMS]
            if self.goal == "minimal-norm" and UNRESTRICTED in self.norms:
                found.append(f"a minimal-norm attack makes a norm small, and {UNRESTRICTED!r} has none: declare balls")
        return found


@dataclass(frozen=True, kw_only=True)
class DefenseSpec(Spec):
    """A defense: ``factory(**parameters)`` builds a model with logits out for images in [0, 1].

    kind: ``trained`` (``rbl train`` makes its weights; see ``robustbench_lite.training``), ``wrapper`` (has a parameter
    ``base``, the id of another defense, or ``bases``, those of several), ``fitted`` (a wrapper with weights of its own, which
    ``rbl train`` fits to its base) or ``pretrained`` (brings its weights). stochastic: two passes over one input may differ.
    differentiable: False where autograd gives no useful gradient; the module then has a method ``surrogate(x)`` that does
    (BPDA), or the spec says surrogate=False and gradient attacks are skipped.
    rejects: logits have one more column than there are classes, and the last means "refuse to answer". certifies: the module
    has a method ``certify(x, n0, n, alpha) -> (classes, radii)`` after Cohen et al. (arXiv:1902.02918), class -1 to abstain.
    fidelity: how close to its paper. extra_data: what else than the data set's training split it has seen ("500k images of 80
    Million Tiny Images"); empty for nothing. datasets: names it works with; empty for any. weights: data set -> URL of a
    safetensors file, with ``weights_sha256`` for each.
    """

    kind_name: ClassVar[str] = "defense"

    kind: str = "pretrained"
    stochastic: bool = False
    differentiable: bool = True
    surrogate: bool = True
    rejects: bool = False
    certifies: bool = False
    fidelity: str = "paper-formula"
    extra_data: str = ""
    datasets: tuple[str, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    weights_sha256: Mapping[str, str] = field(default_factory=dict)

    def problems(self) -> list[str]:
        found = super().problems() + self._one_of("kind", DEFENSE_KINDS) + self._one_of("fidelity", FIDELITIES)
        found += self._flags("stochastic", "differentiable", "surrogate", "rejects", "certifies")
        if not isinstance(self.extra_data, str):
            found.append(f"extra_data must be text, not {type(self.extra_data).__name__}: say which data")
        found += [f"weights for {d!r} have no weights_sha256" for d in self.weights if d not in self.weights_sha256]
        return found


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """A data set: ``factory(**parameters)`` is callable as ``(root) -> DatasetBundle``."""

    kind_name: ClassVar[str] = "dataset"

    task: str = "image-classification"

    def problems(self) -> list[str]:
        return super().problems() + self._one_of("task", TASKS)


@dataclass(frozen=True, kw_only=True)
class MetricSpec(Spec):
    """A metric: ``factory(**parameters)`` is callable on what is stored and returns a ``MetricValue``.

    scope: ``cell`` (called as ``(cell, threat)`` with one ``CellResult``), ``defense`` (``(cells, threat)`` with all cells
    of one defense) or ``model``. direction: which values are better. unit: ``%`` for proportions (values stay in [0, 1]),
    otherwise what the number counts.

    A metric of scope ``model`` has a method ``measure(model, threat) -> arrays`` besides, which ``rbl run --metric`` calls
    with a ``MeasuredModel``; the arrays, of one common length, are stored, and it is called as ``(arrays,)`` with them. A
    field ``examples: int`` says on how many of the evaluation subset at most, a field ``datasets: tuple[str, ...]`` which other
    data sets it looks at.

    per_example: its rows are those examples, and it is measured in shards of them. norms: in which threat models; empty where
    it depends on none, and is given None. needs: what a defense must have (``gradient``: is differentiable; ``deterministic``;
    ``certify``: declares certifies) or its data set and weights (``training-data``; ``history``: a model card with the course
    of training); others are skipped with a reason.
    """

    kind_name: ClassVar[str] = "metric"

    scope: str
    direction: str
    unit: str = ""
    per_example: bool = False
    norms: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        found = super().problems() + self._one_of("scope", SCOPES) + self._one_of("direction", DIRECTIONS)
        found += self._flags("per_example")
        for key, known in (("norms", NORMS), ("needs", NEEDS)):
            values = getattr(self, key)
            if not isinstance(values, tuple):
                found.append(f"{key} must be a tuple of texts, not {values!r}")
                continue
            found += [f"unknown {key[:-1]} {value!r}; known: {', '.join(known)}" for value in values if value not in known]
        if self.scope != "model" and (self.per_example or self.norms or self.needs):
            found.append("per_example, norms and needs are of metrics of scope 'model'")
        return found


@dataclass(frozen=True, kw_only=True)
class ProtocolSpec(Spec):
    """A protocol contributed by a plugin; ``factory`` names a text or ``pathlib.Path`` of YAML."""

    kind_name: ClassVar[str] = "protocol"


def base_selectors(instance: object) -> tuple[str, ...]:
    """The selectors of what a wrapper wraps: its parameter ``base``, or those in ``bases``; empty for other defenses."""
    several = getattr(instance, "bases", None)
    named = tuple(several) if isinstance(several, (tuple, list)) else (getattr(instance, "base", None),)
    return named if all(isinstance(text, str) for text in named) else ()


KINDS: Mapping[str, type[Spec]] = {s.kind_name: s for s in (AttackSpec, DefenseSpec, DatasetSpec, MetricSpec, ProtocolSpec)}
