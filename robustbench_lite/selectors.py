r"""Selectors: how a variant of an attack, a defense, a data set or a metric is written.

A selector is a name and, in brackets, parameters::

    pgd
    mylab/pgd[steps=100, norm=l2]
    jpeg[base=noise[sigma=0.1, base=pgd-at], quality=50]
    random-resize[sizes=[28,30,32], pad=true, seed=none]
    arrays[path="a,b.npz"]

A value runs to the next comma or bracket of its own level, so selectors nest. Quotation marks that open a value, ``"..."`` or
``'...'``, protect whatever is inside; within them ``\"`` and ``\\`` stand for a mark and a backslash. What a value's text
means is in ``values.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from robustbench_lite.errors import InvalidParameter

NAME = re.compile(r"[^\s\[\],='\"]+")
_QUOTES = "\"'"


@dataclass(frozen=True)
class Selector:
    """A name and its parameters as they were written, in that order. ``str()`` gives text that parses to an equal one."""

    name: str
    parameters: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        inside = ",".join(f"{key}={spell(value)}" for key, value in self.parameters)
        return f"{self.name}[{inside}]" if inside else self.name


def parse_selector(text: str) -> Selector:
    """Read ``name[key=value,...]``. Raises InvalidParameter, which shows the position, where it cannot be read."""
    bracket = text.find("[")
    head = text if bracket < 0 else text[:bracket]
    name = head.strip()
    if not name:
        raise _unreadable(text, 0, "a name is missing")
    start = head.index(name[0])
    if found := NAME.match(text, start):
        if found.group() != name:
            raise _unreadable(text, found.end(), f"{text[found.end()]!r} cannot be part of a name")
    else:
        raise _unreadable(text, start, f"a name cannot begin with {text[start]!r}")
    if bracket < 0:
        return Selector(name)
    parameters: dict[str, str] = {}
    position = bracket + 1
    closing = find_stop(text, position, "]")
    if closing == len(text):
        raise _unreadable(text, bracket, "this '[' is never closed")
    if text[closing + 1 :].strip():
        raise _unreadable(text, closing + 1, "nothing may follow the closing ']'")
    while text[bracket + 1 : closing].strip() and position <= closing:
        equals = find_stop(text, position, ",=]")
        key = text[position:equals].strip()
        at = position + len(text[position:equals]) - len(text[position:equals].lstrip())
        if text[equals] != "=":
            raise _unreadable(text, at, f"expected key=value, found {key!r}")
        if not key.isidentifier():
            near = key.replace("-", "_")
            also = f"; did you mean {near!r}?" if near.isidentifier() else ""
            raise _unreadable(text, at, f"{key!r} cannot be the name of a parameter{also}")
        if key in parameters:
            raise _unreadable(text, at, f"{key!r} is given twice")
        end = find_stop(text, equals + 1, ",]")
        parameters[key] = read_value(text, equals + 1, end)
        position = end + 1
    return Selector(name, tuple(parameters.items()))


def split_selectors(text: str) -> list[str]:
    """The selectors of a comma separated list, ``pgd[steps=10,norm=l2],fgsm``; not yet parsed, each without outer spaces."""
    if not text.strip():
        return []
    found = []
    position = 0
    while position <= len(text):
        end = find_stop(text, position, ",")
        found.append(text[position:end].strip())
        if not found[-1]:
            raise _unreadable(text, position, "a name is missing between the commas")
        position = end + 1
    return found


def find_stop(text: str, start: int, stops: str) -> int:
    """Where the first of ``stops`` outside brackets and quotations stands, from ``start`` on; ``len(text)`` if nowhere."""
    opened: list[int] = []
    fresh = True  # at the start of a value, the only place where a quotation mark opens a quotation: path=o'brien needs none
    i = start
    while i < len(text):
        character = text[i]
        if fresh and character in _QUOTES:
            i = _quotation(text, i)[0]
            fresh = False
            continue
        if not opened and character in stops:
            return i
        if character == "[":
            opened.append(i)
        elif character == "]":
            if not opened:
                raise _unreadable(text, i, "this ']' closes nothing")
            opened.pop()
        fresh = character in "[,=" or (fresh and character.isspace())
        i += 1
    if opened:
        raise _unreadable(text, opened[-1], "this '[' is never closed")
    return i


def _quotation(text: str, start: int) -> tuple[int, str]:
    """The end of the quotation that opens at ``start`` (behind its closing mark), and what it says."""
    said: list[str] = []
    i = start + 1
    while i < len(text):
        if text[i] == text[start]:
            return i + 1, "".join(said)
        if text[i] == "\\" and text[i + 1 : i + 2] in ("\\", '"', "'"):
            i += 1
        said.append(text[i])
        i += 1
    raise _unreadable(text, start, f"this {text[start]} is never closed")


def read_value(text: str, start: int, end: int) -> str:
    """What the value in ``text[start:end]`` says: without outer spaces, and without the marks of a quotation."""
    raw = text[start:end].strip()
    if not raw:
        raise _unreadable(text, start, 'a value is missing (empty text is written "")')
    if raw[0] not in _QUOTES:
        return raw
    at = start + text[start:end].index(raw[0])
    behind, said = _quotation(text, at)
    if text[behind:end].strip():
        raise _unreadable(text, behind, "nothing may follow the closing quotation mark")
    return said


def spell(value: str) -> str:
    """``value`` as it must be written after ``key=``: as it is where that reads back, quoted otherwise."""
    try:
        plain = read_value(value, 0, find_stop(value, 0, ",]")) == value
    except InvalidParameter:
        plain = False
    return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unreadable(text: str, position: int, why: str) -> InvalidParameter:
    position = min(position, len(text))
    where = f"\n  {text}\n  {' ' * position}^" if text.isprintable() else ""
    return InvalidParameter(
        f"cannot read {text!r}: {why} (character {position + 1}){where}",
        hint="write name[key=value,key=value]; quote values that contain commas or brackets",
    )
