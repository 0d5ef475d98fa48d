"""Which plugins are installed, what they bring, and what is wrong with them. Importing this module imports no torch.

Loading is isolated: importing a plugin, registering each of its hooks, calling each hook and checking each spec is guarded on
its own, whatever is raised (``SystemExit`` too; only ``KeyboardInterrupt`` passes). What breaks becomes a ``Problem`` that
names distribution, version, object, cause and fix, and everything else is used. See ``isolation.py`` for its limits.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from robustbench_lite import hookspecs
from robustbench_lite.errors import AmbiguousName, PluginError, RblError, UnknownName, UsageError, did_you_mean
from robustbench_lite.isolation import cause_of, fix_for, isolated
from robustbench_lite.plugin_file import import_file
from robustbench_lite.records import Entry, Plugin, Problem
from robustbench_lite.specs import (
    API_VERSION,
    KINDS,
    SUPPORTED_APIS,
    WRAPPING,
    AttackSpec,
    DatasetSpec,
    DefenseSpec,
    MetricSpec,
    ProtocolSpec,
    Spec,
)

logger = logging.getLogger(__name__)

STRICT_VARIABLE = "RBL_STRICT_PLUGINS"

_HOOKS: Mapping[str, type[Spec]] = {
    "rbl_attacks": AttackSpec,
    "rbl_defenses": DefenseSpec,
    "rbl_datasets": DatasetSpec,
    "rbl_metrics": MetricSpec,
    "rbl_protocols": ProtocolSpec,
}
_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9-]*")
_HOOK_NAMES = tuple(name for name in vars(hookspecs) if name.startswith("rbl_"))
_MOST_SPECS = 10_000  # per hook: a generator that never ends must not hang the command


class StrictPluginError(PluginError):
    """``RBL_STRICT_PLUGINS`` is set and plugins have errors. ``registry`` is what was loaded all the same."""

    def __init__(self, registry: Registry) -> None:
        wrong = [str(p) for p in registry.problems if p.severity == "error"]
        count = f"{len(wrong)} error{'s' if len(wrong) > 1 else ''}"
        super().__init__(
            "\n  ".join([f"plugins have {count} and {STRICT_VARIABLE} is set", *wrong]),
            hint=f"mend or uninstall them, or unset {STRICT_VARIABLE}",
        )
        self.registry = registry


class Registry:
    """What the installed plugins bring. ``load()`` makes one; ``add`` puts an imported plugin into an empty one, for tests."""

    def __init__(self) -> None:
        self.plugins: list[Plugin] = []
        self._unreadable: list[Problem] = []  # of distributions whose plugins cannot even be listed
        self._refused: dict[tuple[str, str], Problem] = {}  # by kind and id
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        self._observers: dict[str, Plugin] = {}
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)

    @property
    def problems(self) -> list[Problem]:
        """Everything wrong with any plugin, in the order in which they were loaded."""
        return self._unreadable + [problem for plugin in self.plugins for problem in plugin.problems]

    # ------------------------------------------------------------------------------------------------------------- look-up

    def entries(self, kind: str) -> list[Entry]:
        """All objects of a kind, sorted by id. Raises UnknownName where there is no such kind."""
        return [entry for _, entry in sorted(self._table(kind).items())]

    def get(self, kind: str, name: str) -> Entry:
        """The object with this id, or with this short name if only one has it. Raises UnknownName, AmbiguousName."""
        table = self._table(kind)
        if name in table:
            return table[name]
        matches = [entry for entry in self.entries(kind) if entry.spec.name == name]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise AmbiguousName(
                f"{kind} {name!r} is ambiguous: {', '.join(f'{e.id} (of {e.distribution})' for e in matches)}",
                hint=f"write one of the ids: {' or '.join(e.id for e in matches)}",
            )
        for (of_kind, identifier), problem in self._refused.items():
            if of_kind == kind and name in (identifier, identifier.partition("/")[2]):
                message = f"{kind} {identifier!r} of {problem.distribution} {problem.version} was refused: {problem.cause}"
                raise UnknownName(message, hint=problem.fix)
        near = did_you_mean(name, [*table, *(entry.spec.name for entry in table.values())])
        broken = " (some plugins are broken: rbl plugins)" if any(p.severity == "error" for p in self.problems) else ""
        raise UnknownName(f"unknown {kind} {name!r}{'; ' + near if near else ''}", hint=f"rbl list {kind}s{broken}")

    def find(self, kind: str, identifier: str) -> Entry | None:
        """The object with exactly this id; None where there is none, without looking for what may have been meant."""
        return self._table(kind).get(identifier)

    def _table(self, kind: str) -> dict[str, Entry]:
        if kind not in self._entries:
            near = did_you_mean(kind, KINDS)
            raise UnknownName(f"unknown kind {kind!r}; {near or 'known: ' + ', '.join(KINDS)}", hint="rbl list --help")
        return self._entries[kind]

    # ----------------------------------------------------------------------------------------------------------- factories

    def factory(self, entry: Entry) -> Any:
        """Import and return the object that an entry's ``factory`` path names. Raises PluginError where that fails."""
        value, problem = self._resolve(entry)
        if problem:
            raise PluginError(
                f"{entry.kind} {entry.id!r} of {entry.distribution} {entry.version}: {problem.cause}".replace(" :", ":"),
                hint=problem.fix,
            )
        return value

    def _resolve(self, entry: Entry) -> tuple[Any, Problem | None]:
        path = entry.spec.factory
        module_name, _, attribute = path.partition(":")
        plugin = Plugin(distribution=entry.distribution, version=entry.version, namespace=entry.namespace, origin=path)
        module: ModuleType | None = None
        value: Any = None
        with isolated() as outcome:
            module = importlib.import_module(module_name)
            value = getattr(module, attribute)
        if outcome.error is None:
            return value, None
        cause = f"factory {path!r} cannot be loaded: {cause_of(outcome.error)}"
        fix = fix_for(outcome.error, plugin, module_name)
        if module is not None and isinstance(outcome.error, AttributeError):
            near = did_you_mean(attribute, (name for name in vars(module) if not name.startswith("_")))
            fix = f"correct the factory in {entry.module}{': ' + near if near else ''}"
        return None, plugin.report(entry.id, cause, fix)

    def verify(self) -> list[Problem]:
        """Import every factory and check that its parameters can be validated; what is wrong, as new problems. Never raises.

        It imports all that plugins use, torch included: for ``rbl check``, not for every command.
        """
        found = []
        for entry in itertools.chain.from_iterable(self.entries(kind) for kind in KINDS):
            value, problem = self._resolve(entry)
            if problem is None:
                with isolated() as outcome:
                    _check_factory(entry, value)
                if (error := outcome.error) is not None:
                    cause = error.message if isinstance(error, PluginError) else cause_of(error)
                    fix = (isinstance(error, RblError) and error.hint) or f"correct {entry.spec.factory}"
                    problem = Problem(entry.distribution, entry.version, entry.namespace, entry.id, cause, fix)
            if problem is not None:
                found.append(problem)
        return found

    # ----------------------------------------------------------------------------------------------------------- observers

    def notify(self, hook: str, **arguments: object) -> None:
        """Call every implementation of an observer hook. One that raises is logged, and the others are still called."""
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            plugin = self._observers[implementation.plugin_name]
            wanted = {name: arguments[name] for name in implementation.argnames}
            with isolated() as outcome:
                implementation.function(**wanted)
            if outcome.error is not None:
                who = f"{plugin.distribution} {plugin.version} [{plugin.namespace}]"
                logger.error("%s of %s failed: %s", hook, who, cause_of(outcome.error))

    # ------------------------------------------------------------------------------------------------------------- loading

    def add(self, plugin: object, *, namespace: str, distribution: str = "", version: str = "", origin: str = "") -> Plugin:
        """Register an imported plugin (a module, or an object with hook implementations) and collect what it brings."""
        name = getattr(plugin, "__name__", type(plugin).__name__)
        record = Plugin(distribution=distribution or name, version=version, namespace=namespace, origin=origin or name)
        self._load(record, name, lambda: plugin)
        return record

    def _load(self, record: Plugin, module: str, importer: Callable[[], object]) -> None:
        self.plugins.append(record)
        if not _NAMESPACE.fullmatch(record.namespace):
            fix = f"rename the entry point, for instance {re.sub(r'[^a-z0-9]+', '-', record.namespace.lower()).strip('-')!r}"
            record.report("", f"namespace {record.namespace!r} must be lower-case letters, digits and hyphens", fix)
            return
        known = set(sys.modules)
        started = time.perf_counter()
        plugin: object = None
        with isolated() as outcome:
            plugin = importer()
        record.seconds = time.perf_counter() - started
        if outcome.printed:
            fix = f"use logging, or print to stderr, in {module}"
            record.report("", "it prints to stdout when it is imported", fix, "warning")
        if _brought_torch(known, module):
            fix = f"import torch in the module of the factory, not in {module}"
            record.report("", f"it is slow: importing it imports torch ({record.seconds:.1f} s)", fix, "warning")
        if outcome.error is not None:
            record.report("", f"it cannot be imported: {cause_of(outcome.error)}", fix_for(outcome.error, record, module))
            return
        names: list[str] = []
        with isolated():
            names = list(vars(plugin)) if isinstance(plugin, ModuleType) else dir(plugin)  # dir() would list lazy names too
        hooks = sum(self._register(record, plugin, name, module) for name in names)
        if not hooks and not any(p.severity == "error" for p in record.problems):
            fix = f"implement one of {', '.join(_HOOKS)} in {module}, marked with @hookimpl"
            record.report("", "it brings nothing: no hook implementation was found", fix, "warning")

    def _register(self, record: Plugin, plugin: object, name: str, module: str) -> bool:
        """Register the hook implementation ``name`` of a plugin, if it is one; whether it was registered."""
        options: Mapping[str, Any] | None = None
        function: Any = None
        with isolated():  # a property may raise; then it is no hook
            options = self._manager.parse_hookimpl_opts(plugin, name)
            function = getattr(plugin, name) if options is not None or name.startswith("rbl_") else None
        if options is None:
            if name in _HOOK_NAMES and getattr(function, "__module__", None) == module:
                record.report(name, "it is not marked as a hook implementation, so it is ignored", "write @hookimpl above it")
            return False
        hook = options.get("specname") or name
        if hook not in _HOOK_NAMES:
            if not options.get("optionalhook"):
                near = did_you_mean(hook, _HOOK_NAMES) or f"the hooks are {', '.join(_HOOK_NAMES)}"
                record.report(hook, f"there is no hook {hook!r}: {near}", f"rename it in {module}")
            return False
        if options.get("wrapper") or options.get("hookwrapper"):
            record.report(hook, "hook wrappers are not supported", f"make it a plain @hookimpl in {module}")
            return False
        key = f"{len(self.plugins)}:{name}"
        holder = ModuleType(key)  # one holder per hook, so that a hook that is refused takes no other with it
        setattr(holder, name, function)
        with isolated() as outcome:
            self._manager.register(holder, name=key)
        if outcome.error is not None:
            self._manager.unregister(name=key)
            cause = str(outcome.error) if isinstance(outcome.error, pluggy.PluginValidationError) else cause_of(outcome.error)
            known = ", ".join(getattr(self._manager.hook, hook).spec.argnames)
            fix = f"in {module}, let {hook} take {f'nothing but {known}, or fewer' if known else 'no arguments'}"
            record.report(hook, f"wrong signature: {cause.splitlines()[-1]}", fix)
            return False
        self._observers[key] = record
        if hook in _HOOKS:
            self._collect(record, hook, function, module)
        return True

    def _collect(self, record: Plugin, hook: str, function: Callable[[], object], module: str) -> None:
        specs: list[object] = []  # filled one by one: what came before an exception is kept
        with isolated() as outcome:
            made = function()
            if isinstance(made, (str, bytes, Mapping)) or not isinstance(made, Iterable):
                close = getattr(made, "close", None)  # a coroutine, else it warns that it was never awaited
                if callable(close):
                    close()
                raise PluginError(f"it returned {_a(made)}, not an iterable of {_HOOKS[hook].__name__}")
            for spec in itertools.islice(made, _MOST_SPECS + 1):
                specs.append(spec)
        if outcome.printed:
            record.report(hook, "it prints to stdout", f"use logging, or print to stderr, in {module}", "warning")
        if len(specs) > _MOST_SPECS:
            record.report(hook, f"it yields more than {_MOST_SPECS} specs; the rest is ignored", f"end the loop in {module}")
            specs.pop()
        if outcome.error is not None:
            kept = f"; the {len(specs)} before it are kept" if specs else ""
            record.report(hook, f"it failed: {cause_of(outcome.error)}{kept}", fix_for(outcome.error, record, module))
        for spec in specs:
            with isolated() as outcome:
                self._admit(record, hook, spec, module)
            if outcome.error is not None:
                cause = f"a spec of type {type(spec).__name__} cannot be checked: {cause_of(outcome.error)}"
                record.report(hook, cause, fix_for(outcome.error, record, module))

    def _admit(self, record: Plugin, hook: str, spec: object, module: str) -> None:
        wanted = _HOOKS[hook]
        if not isinstance(spec, wanted):
            right = next((h for h, kind in _HOOKS.items() if isinstance(spec, kind)), "")
            fix = f"yield it from {right}" if right else f"yield {wanted.__name__} objects in {module}"
            record.report(hook, f"{_a(spec)} is no {wanted.__name__}", fix)
            return
        kind, identifier = wanted.kind_name, f"{record.namespace}/{spec.name}"
        if spec.api not in SUPPORTED_APIS:
            newer = isinstance(spec.api, int) and spec.api > API_VERSION
            fix = "upgrade robustbench-lite" if newer else f"upgrade {record.distribution}"
            cause = f"it is written for plugin API {spec.api!r}; this core speaks {API_VERSION}"
            self._refused[kind, identifier] = record.report(identifier, cause, fix)
            return
        if wrong := spec.problems():
            for cause in wrong:
                problem = record.report(identifier, cause, f"correct this {wanted.__name__} in {module}")
                self._refused.setdefault((kind, identifier), problem)
            return
        table = self._entries[kind]
        if (other := table.get(identifier)) is not None:
            whose = " ".join(f"{other.distribution} {other.version} ({other.module})".split())
            cause = f"{kind} {identifier!r} is already registered by {whose}, which keeps the name"
            fix = "give one of the two another name"
            if other.distribution != record.distribution:
                fix += f", or uninstall {record.distribution} or {other.distribution}"
            record.report(identifier, cause, fix)
            return
        table[identifier] = Entry(
            id=identifier,
            namespace=record.namespace,
            spec=spec,
            distribution=record.distribution,
            version=record.version,
            module=module,
        )
        record.counts[kind] = record.counts.get(kind, 0) + 1


def load(plugin_files: Sequence[Path] = (), *, entry_points: bool = True) -> Registry:
    """Load every installed plugin, in the order of distribution names, and then the given files.

    A file is a plugin of its own: ``my_attack.py`` has the namespace ``my-attack`` and is imported as module ``my_attack``, so
    its factories are written ``my_attack:Attr``.

    Raises UsageError where a file does not exist; StrictPluginError where ``RBL_STRICT_PLUGINS`` is set (to anything but 0)
    and a plugin has an error. Warnings raise nothing.
    """
    registry = Registry()
    if entry_points:
        for name, distribution in sorted(_distributions(registry).items()):
            for point in sorted(distribution.entry_points.select(group=hookspecs.ENTRY_POINT_GROUP)):
                record = Plugin(
                    distribution=distribution.metadata["Name"] or name,
                    version=distribution.version,
                    namespace=point.name,
                    origin=point.value,
                )
                registry._load(record, point.value.partition(":")[0].strip(), point.load)
    for path in dict.fromkeys(Path(file).resolve() for file in plugin_files):
        _load_file(registry, path)
    strict = os.environ.get(STRICT_VARIABLE, "").lower() not in ("", "0", "false", "no")
    if strict and any(problem.severity == "error" for problem in registry.problems):
        raise StrictPluginError(registry)
    return registry


def _distributions(registry: Registry) -> dict[str, metadata.Distribution]:
    """The installed distributions with plugins, by normalised name. Each is read on its own: any may be damaged."""
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        where = name = version = ""
        ours = False
        with isolated() as outcome:
            where = str(distribution.locate_file(""))
            text = distribution.read_text("entry_points.txt") or ""
            ours = f"[{hookspecs.ENTRY_POINT_GROUP}]" in "".join(text.split())
            if ours:
                name = distribution.metadata["Name"] or ""
                winner = metadata.distribution(name)  # the first of that name on sys.path is the one that Python imports
                version = winner.version
                winner.entry_points.select(group=hookspecs.ENTRY_POINT_GROUP)
                found[re.sub(r"[-_.]+", "-", name).lower()] = winner
        if outcome.error is not None:
            cause = f"the metadata of a distribution in {where} cannot be read: {cause_of(outcome.error)}"
            fix = f"reinstall {name or 'it'}"
            # Where even the list of groups is unreadable, it may have nothing to do with this project.
            registry._unreadable.append(Problem(name or "?", version, "?", "", cause, fix, "error" if ours else "warning"))
    return found


def _load_file(registry: Registry, path: Path) -> None:
    if not path.is_file() or path.suffix != ".py":
        raise UsageError(f"plugin file {str(path)!r} is no Python file", hint="--plugin takes the path of an existing .py file")
    module = path.stem.replace("-", "_")
    namespace = path.stem.replace("_", "-").strip("-").lower()
    if not module.isidentifier() or not _NAMESPACE.fullmatch(namespace):
        raise UsageError(
            f"plugin file {path.name!r} cannot give its name to a namespace",
            hint="name it in letters, digits and underscores, such as my_attack.py",
        )
    record = Plugin(distribution=path.name, version="", namespace=namespace, origin=str(path))
    registry._load(record, module, lambda: import_file(path, module))


def _brought_torch(known: set[str], module: str) -> bool:
    """Whether importing ``module`` imported torch, or would have if torch had not been there before."""
    new = sys.modules.keys() - known
    if "torch" in new:
        return True
    own = [sys.modules.get(name) for name in new if name.partition(".")[0] == module.partition(".")[0]]
    values = (value for found in own if isinstance(found, ModuleType) for value in list(vars(found).values()))
    named = (value.__name__ for value in values if isinstance(value, ModuleType))
    return "torch" in known and any(name.partition(".")[0] == "torch" for name in named)


def _check_factory(entry: Entry, factory: Any) -> None:
    """Raise PluginError where ``factory`` is not what its kind of entry needs."""
    from robustbench_lite.parameters import describe  # imports pydantic, which listing plugins does not need

    path = entry.spec.factory
    if isinstance(entry.spec, ProtocolSpec):
        if not isinstance(factory, (str, Path)):
            raise PluginError(f"factory {path!r} is {_a(factory)}, not YAML text or a path", hint="make it a str or Path")
        if isinstance(factory, Path) and not factory.is_file():
            raise PluginError(f"factory {path!r} names {str(factory)!r}, which does not exist", hint="package the file")
        return
    names = [parameter.name for parameter in describe(factory)]
    if isinstance(factory, type) and not any("__call__" in vars(base) for base in factory.__mro__):
        raise PluginError(f"instances of {path!r} cannot be called", hint=f"give it a __call__, as every {entry.kind} has")
    kind = entry.spec.kind if isinstance(entry.spec, DefenseSpec) else ""
    if kind in WRAPPING and "base" not in names and not (kind == "wrapper" and "bases" in names):
        raise PluginError(
            f"{path!r} is a wrapper without a parameter 'base'",
            hint="add a field `base: str`, or `bases: tuple[str, ...]` where it wraps several",
        )


def _a(value: object) -> str:
    return "nothing" if value is None else f"an object of type {type(value).__name__}"


__all__ = ["STRICT_VARIABLE", "Registry", "StrictPluginError", "load"]
