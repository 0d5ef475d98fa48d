"""What the registry keeps: plugins, what they bring, and what is wrong with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from robustbench_lite.specs import Spec


@dataclass(frozen=True)
class Problem:
    """Something wrong with a plugin. plugin: its namespace, or its file. object: the hook or id concerned, or ""."""

    distribution: str
    version: str
    plugin: str
    object: str
    cause: str
    fix: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        who = " ".join(part for part in (self.distribution, self.version, f"[{self.plugin}]", self.object) if part)
        return " ".join(f"{self.severity}: {who}: {self.cause}; fix: {self.fix}".split())

    def to_json(self) -> dict[str, str]:
        """The same as plain data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One registered object. id: ``namespace/name``. module: the plugin that contributed it. version: of the distribution."""

    id: str
    namespace: str
    spec: Spec
    distribution: str
    version: str
    module: str

    @property
    def kind(self) -> str:
        """``attack``, ``defense``, ``dataset``, ``metric`` or ``protocol``."""
        return self.spec.kind_name

    def to_json(self) -> dict[str, Any]:
        """Everything about it as plain data; the fields of the spec are under ``spec``."""
        plain = {key: getattr(self, key) for key in ("id", "kind", "namespace", "distribution", "version", "module")}
        return plain | {"spec": {f.name: _plain(getattr(self.spec, f.name)) for f in dataclasses.fields(self.spec)}}


@dataclass(kw_only=True)
class Plugin:
    """One entry point or file. origin: the entry point's value, or the path; counts: accepted objects per kind."""

    distribution: str
    version: str
    namespace: str
    origin: str
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    seconds: float = 0.0  # to import

    def report(self, subject: str, cause: str, fix: str, severity: Literal["error", "warning"] = "error") -> Problem:
        """Note a problem of this plugin."""
        found = Problem(self.distribution, self.version, self.namespace, subject, cause, fix, severity)
        self.problems.append(found)
        return found

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return dataclasses.asdict(self)


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
