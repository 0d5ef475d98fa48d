"""The value of one parameter: read from text, checked against its type, shown, and made plain for a key.

A list is written ``[a,b]``, nothing is ``none``, a fraction such as ``8/255`` is a number, and a mapping is quoted JSON.
pydantic checks values in its lax mode, so ``"100"`` is fine where an int is wanted. Importing this module imports no torch.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from fractions import Fraction
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from robustbench_lite.errors import InvalidParameter, RblError
from robustbench_lite.selectors import find_stop, read_value, spell

_FRACTION = re.compile(r"\s*([+-]?\d+(?:\.\d*)?)\s*/\s*(\d+(?:\.\d*)?)\s*")


class Refused(Exception):
    """A value that pydantic's lax mode would take and that is surely a mistake."""


def adapter_of(hint: Any, *, allow_inf_nan: bool = False) -> TypeAdapter[Any]:
    """What checks values of this type. Raises TypeError, or an error of pydantic's, for a type that it does not know."""
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(allow_inf_nan=allow_inf_nan))
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":  # dataclasses and models bring their own configuration
            raise
        adapter = TypeAdapter(hint)
    if adapter.pydantic_complete is not True:
        raise TypeError(f"{hint!r} is not defined")
    return adapter


def validated(adapter: TypeAdapter[Any], value: object) -> Any:
    """The checked value. Raises ValidationError or Refused."""
    result = adapter.validate_python(value)
    if isinstance(value, bool) and type(result) in (int, float):
        raise Refused(f"{as_text(value)} is no number")
    if isinstance(result, float):
        return result + 0.0  # -0.0 and 0.0 are one setting and get one key
    return result


def from_text(hint: Any, value: object) -> object:
    """Text as the command line spells it, turned into what pydantic reads; anything else is left as it is."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return from_text(arguments[0], value)
    if _is_sequence(origin or hint):
        return _items(hint, arguments, value)
    if not isinstance(value, str):
        return value
    if origin is Literal:
        if value in arguments:
            return value
        return next((a for a in arguments if not isinstance(a, str) and as_text(jsonable(a)) == value.lower()), value)
    if origin in (Union, types.UnionType):
        return _from_text_of_union(arguments, value)
    if hint is float and (found := _FRACTION.fullmatch(value)) and float(found[2]):
        return float(found[1]) / float(found[2])
    if hint is type(None) and value.lower() in ("none", "null"):
        return None
    if (origin in (dict, Mapping) or hint is dict or dataclasses.is_dataclass(hint)) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise Refused(f"it is not JSON: {error}") from error
    return value


def _is_sequence(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, (Sequence, AbstractSet)) and not issubclass(kind, (str, bytes))


def _items(hint: Any, arguments: tuple[Any, ...], value: object) -> object:
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith("["):
            raise Refused("a list is written [a,b]")
        end = find_stop(text, 1, "]")
        if end != len(text) - 1:
            raise Refused("a list is written [a,b]")
        found: list[object] = []
        position = 1
        while text[1:end].strip() and position <= end:
            stop = find_stop(text, position, ",]")
            found.append(read_value(text, position, stop))
            position = stop + 1
    elif isinstance(value, (list, tuple)):
        found = list(value)
    else:
        return value
    if typing.get_origin(hint) is tuple and len(arguments) == len(found) and Ellipsis not in arguments:
        return [from_text(a, v) for a, v in zip(arguments, found, strict=True)]
    return [from_text(arguments[0], v) for v in found] if arguments else found


def _from_text_of_union(options: tuple[Any, ...], value: str) -> object:
    """``value`` as read by the first option that is not plain text and takes it: ``100`` for ``int | str`` is an int."""
    literals = [o for o in options if typing.get_origin(o) is Literal]  # first, since 'none' may be one of them
    for option in literals + [o for o in options if o not in literals]:
        if option is str or (isinstance(option, type) and issubclass(option, PurePath)):
            continue
        try:
            return adapter_of(option, allow_inf_nan=True).validate_python(from_text(option, value))
        except (ValidationError, Refused, InvalidParameter):
            continue
    return value


def complaint(error: Exception) -> str:
    """What is wrong with a value, in one line."""
    if not isinstance(error, ValidationError):
        return " ".join((error.message if isinstance(error, RblError) else str(error)).split())
    said = []
    for e in error.errors(include_url=False, include_context=False, include_input=False):
        index = "".join(f"item {i + 1}: " for i in e["loc"] if isinstance(i, int))
        said.append(index + e["msg"].removeprefix("Value error, ").replace("Input should", "it should"))
    return "; ".join(dict.fromkeys(said))


def jsonable(value: object) -> Any:
    """The value as JSON has it; infinities are text. Raises TypeError where it has no such form."""
    if value is None or isinstance(value, (bool, str)):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, enum.Enum):
        return jsonable(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, AbstractSet):
        return sorted((jsonable(v) for v in value), key=lambda v: (str(type(v)), json.dumps(v)))
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise TypeError(f"{value!r} of type {type(value).__name__} has no JSON form")


def as_text(value: object) -> str:
    """A JSON-able value as it is written on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list):
        return f"[{','.join(spell(as_text(v)) for v in value)}]"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _number(value: float) -> str:
    shortest = repr(value).removesuffix(".0")
    near = Fraction(value).limit_denominator(1000)  # 8/255 reads better than 0.03137254901960784
    if len(shortest) > 10 and near and near.numerator / near.denominator == value:
        return f"{near.numerator}/{near.denominator}"
    return shortest


def type_name(hint: Any) -> str:
    """A type as people read it: ``int | none``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None) or hint is None:
        return "none"
    if hint is Ellipsis:
        return "..."
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " | ".join("none" if a is None else repr(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(a) for a in arguments)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " | ".join(repr(jsonable(member)) for member in hint)
    if origin is not None:
        return f"{type_name(origin)}[{', '.join(type_name(a) for a in arguments)}]"
    return hint.__name__ if isinstance(hint, type) else str(hint)


_LIMITS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matching {}",
}


def constraints_of(adapter: TypeAdapter[Any]) -> tuple[str, ...]:
    """What the type demands of a value: ``(">= 1",)``."""

    def walk(schema: Mapping[str, Any]) -> Iterator[str]:
        yield from (text.format(schema[key]) for key, text in _LIMITS.items() if key in schema)
        for option in schema.get("anyOf", ()):
            yield from walk(option)
        if isinstance(schema.get("items"), dict):
            yield from (f"each {text}" for text in walk(schema["items"]))

    try:
        return tuple(dict.fromkeys(walk(adapter.json_schema())))
    except PydanticUserError:  # a custom validator has no JSON schema: nothing to show
        return ()
