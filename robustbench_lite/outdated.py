"""Which stored results are out of date: those whose key the plugins that are installed would not give any more.

Tables show them apart and never rank them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from robustbench_lite.errors import InvalidParameter, RblError
from robustbench_lite.keys import Spelling
from robustbench_lite.measuring import is_measurement
from robustbench_lite.resolve import attack_from_spec, dataset_from_fields, defense_from_fields, metric_from_spec

if TYPE_CHECKING:
    from robustbench_lite.registry import Registry

Spec = Mapping[str, Any]


def difference(old: Spec, new: Spec, prefix: str = "") -> str:
    """The names of what differs between two specs: ``attack version, defense weights``."""
    changed: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed.append(difference(before, after, f"{prefix}{key} "))
        elif _are_parts(before) and _are_parts(after) and [b["label"] for b in before] == [a["label"] for a in after]:
            changed += [difference(b, a, f"{prefix}{key} {b['label']} ") for b, a in zip(before, after, strict=True) if b != a]
        else:
            changed.append(f"{prefix}{key}")
    return ", ".join(changed)


def _are_parts(value: object) -> TypeGuard[list[Spec]]:
    """Whether it lists what an attack is made of."""
    return isinstance(value, list) and all(isinstance(part, Mapping) and "label" in part for part in value)


class Outdated:
    """Says of each of some stored specs why it is out of date.

    A plugin's version is always compared. Parameters, weights and data are compared where the store holds several results of
    one name, since that takes time. What cannot be found here (a plugin, weights, a data set) makes nothing out of date.
    """

    def __init__(self, specs: Iterable[Spec], registry: Registry, root: Path) -> None:
        self._registry = registry
        self._root = root
        self._spelled = Spelling()
        self._reasons: dict[str, str] = {}
        named: dict[tuple[str, ...], dict[str, Spec]] = {}
        for spec in specs:
            for name, identity in self._parts(spec):
                named.setdefault(name, {})[identity] = spec
        for (kind, *_), variants in named.items():
            found = {identity: self._version(kind, spec[kind]) for identity, spec in variants.items()}
            same = {identity: spec for identity, spec in variants.items() if not found[identity]}
            if len(same) > 1:
                found |= self._changed(kind, same)
            self._reasons |= found

    def why(self, spec: Spec) -> str:
        """Why a result is out of date; empty where it is not."""
        return next(iter(self.parts(spec).values()), "")

    def parts(self, spec: Spec) -> dict[str, str]:
        """What of a result is out of date (``attack``, ``defense``, ``dataset``), and why."""
        return {name[0]: reason for name, identity in self._parts(spec) if (reason := self._reasons[identity])}

    def _parts(self, spec: Spec) -> Iterator[tuple[tuple[str, ...], str]]:
        """What each part of a spec is called, starting with its kind, and what identifies it among its namesakes."""
        dataset = (spec["dataset"]["id"], spec["dataset"]["label"], str(spec["protocol"].get("n")))
        what = "metric" if is_measurement(spec) else "attack"
        crafted = dataset[:2] if "surrogates" in spec[what] else ()
        for kind, where in ((what, crafted), ("defense", dataset[:2]), ("dataset", dataset[2:])):
            part = spec[kind]
            name = (kind, part["id"], part["label"], *where)
            yield name, f"{name} {self._spelled(part)}"

    def _version(self, kind: str, part: Spec) -> str:
        entry = self._registry.find(kind, part["id"])
        if entry is None:
            return ""
        installed = entry.spec.version
        if installed != part["version"]:
            return f"{kind} {part['id']} was of version {part['version']}, installed is version {installed}"
        inner = [(kind, part["base"])] if part.get("base") else []
        inner += [(kind, each) for each in part.get("bases", ())]
        inner += [("attack", member) for member in part.get("members", ())]
        inner += [("defense", surrogate) for surrogate in part.get("surrogates", ())]
        return next((reason for inner_kind, each in inner if (reason := self._version(inner_kind, each))), "")

    def _changed(self, kind: str, variants: Mapping[str, Spec]) -> dict[str, str]:
        """Reasons by identity, for several results of one name and version."""
        found: dict[str, str] = {}
        for identity, spec in variants.items():
            try:
                now = self._now(kind, spec)
            except InvalidParameter:
                found[identity] = f"{kind} {spec[kind]['id']} has other parameters by now"
            except RblError:
                continue
            else:
                changed = difference(spec[kind], now)
                found[identity] = f"{kind} {spec[kind]['label']}: {changed} changed since" if changed else ""
        if "" in found.values():
            return found
        # None is what a run would use now. Weights may have been given by hand: their results are as good as any.
        return {identity: reason for identity, reason in found.items() if "weights" not in reason}

    def _now(self, kind: str, spec: Spec) -> Spec:
        """What the part of a spec would be if it were planned now."""
        if kind == "metric":
            others = {key: value for key, value in spec["metric"].items() if key == "datasets"}
            return metric_from_spec(self._registry, spec["metric"]).spec() | others
        if kind == "attack" and "surrogates" not in spec["attack"]:
            return attack_from_spec(self._registry, spec["attack"]).spec()
        dataset = dataset_from_fields(self._registry, spec["dataset"], self._root)
        if kind == "dataset":
            return dataset.spec(dataset.subset(spec["protocol"]["n"]))
        if kind == "attack":
            stored = spec["attack"]["surrogates"]
            surrogates = tuple(defense_from_fields(self._registry, part, dataset.info) for part in stored)
            return replace(attack_from_spec(self._registry, spec["attack"]), surrogates=surrogates).spec()
        return defense_from_fields(self._registry, spec["defense"], dataset.info).spec()
