"""Keys of the store: the sha256 of what was asked, in its one spelling."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from robustbench_lite.errors import InvalidParameter


def canonical_json(spec: Mapping[str, Any]) -> str:
    """The one spelling of a spec: sorted keys, no blanks, ASCII; whole-numbered floats (below 2**53) as integers.

    Specs that are equal in Python have one spelling, except that True is not 1. Raises InvalidParameter, naming the place, for
    anything that JSON cannot hold exactly: NaN, infinities, keys that are not text, other types than text, numbers, booleans,
    None, lists, tuples and mappings.
    """
    return json.dumps(_canonical(spec, "spec"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidParameter(f"{place} is {value}, which no key can be made of", hint="give a finite number")
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidParameter(f"{place} has the key {key!r}, which is not text")
        return {str(key): _canonical(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item, f"{place}[{i}]") for i, item in enumerate(value)]
    raise InvalidParameter(f"{place} is a {type(value).__name__}, which JSON cannot hold: {value!r}")


class Spelling:
    """``canonical_json`` of objects that recur, such as the parts of a store's specs: each is spelled once, and not changed."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Mapping[str, Any], str]] = {}  # with the object itself, so that its id stays its own

    def __call__(self, part: Mapping[str, Any]) -> str:
        """The canonical JSON of ``part``."""
        found = self._known.get(id(part))
        if found is None:
            found = self._known[id(part)] = part, canonical_json(part)
        return found[1]


class SharedParts:
    """Parts of specs with their canonical JSON: of equal parts, one object and one spelling are kept."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Any]] = {}

    def __call__(self, part: Any) -> tuple[str, Any]:
        """The canonical JSON of a part, as it was read from JSON, and the object that stands for all that are spelled so."""
        written = json.dumps(part, sort_keys=True)  # faster than its canonical form, which 1.0 and 1 share
        if written not in self._known:
            spelled = canonical_json(part)
            self._known[written] = self._known.setdefault(spelled, (spelled, json.loads(spelled)))
        return self._known[written]


def cell_key(spec: Mapping[str, Any]) -> str:
    """The key of a cell: 64 hexadecimal digits, the sha256 of the spec's canonical JSON."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()
