"""Labels that are unique within a table: one name may stand for several versions, weights or plugins."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from robustbench_lite.errors import AmbiguousName
from robustbench_lite.leaderboard.text import plain

_TELLING: tuple[Callable[[Mapping[str, Any]], str], ...] = (
    lambda spec: plain(spec["id"]),
    lambda spec: f"version {spec['version']}",
    lambda spec: f"weights {plain(spec.get('weights') or 'none')[:8]}",
)


def meant(name: str, labels: Iterable[str]) -> str:
    """The label that a name stands for: the name itself, or the only label that adds parameters to it (``fmn[steps=40]``).

    The name as it is where there is none. Raises AmbiguousName where there are several.
    """
    known = set(labels)
    longer = sorted(label for label in known if label.startswith(f"{name}["))
    if name in known or not longer:
        return name
    if len(longer) > 1:
        several = ", ".join(map(repr, longer))
        raise AmbiguousName(f"{name!r} stands for {len(longer)} with results", hint=f"name one of {several}")
    return longer[0]


def distinct_labels(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A label for each defense or attack, sorted by it. specs: by whatever identifies them, parts of cells' specs.

    Where several share a label, what tells them apart is added: the plugin's id, the version, the weights, and failing
    these the start of a checksum of everything.
    """
    shared: dict[str, list[str]] = {}
    for identity, spec in specs.items():
        shared.setdefault(plain(spec["label"]), []).append(identity)
    found: dict[str, str] = {}
    for label, identities in shared.items():
        telling = [tell for tell in _TELLING if len({tell(specs[i]) for i in identities}) > 1]
        for identity in identities:
            said = ", ".join(tell(specs[identity]) for tell in telling)
            found[identity] = f"{label} ({said})" if said else label
    times = Counter(found.values())
    for identity, label in found.items():
        if times[label] > 1:
            found[identity] = f"{label} #{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))
