r"""Parameters of attacks, defenses, data sets and metrics: how they are written, checked, shown and put in a key.

A variant is a *selector*: a name and, in brackets, parameters::

    pgd
    mylab/pgd[steps=100, norm=l2]
    jpeg[base=noise[sigma=0.1, base=pgd-at], quality=50]
    random-resize[sizes=[28,30,32], pad=true, seed=none]
    arrays[path="a,b.npz"]

A value runs to the next comma or bracket of its own level, so selectors nest. Quotation marks that open a value, ``"..."`` or
``'...'``, protect whatever is inside; within them ``\"`` and ``\\`` stand for a mark and a backslash. A list is written
``[a,b]``, nothing is ``none``, a fraction such as ``8/255`` is a number, and a mapping is quoted JSON.

The types come from the factory: the fields of a dataclass, or the keyword-only arguments of a function. pydantic checks them
in its lax mode, so ``"100"`` is fine where an int is wanted. Importing this module imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import inspect
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from robustbench_lite.errors import InvalidParameter, PluginError, RblError, did_you_mean

REQUIRED: Any = inspect.Parameter.empty
Factory = Callable[..., Any]

_NAME = re.compile(r"[^\s\[\],='\"]+")
_FRACTION = re.compile(r"\s*([+-]?\d+(?:\.\d*)?)\s*/\s*(\d+(?:\.\d*)?)\s*")
_QUOTES = "\"'"


# ---------------------------------------------------------------------------------------------------------------- selectors


@dataclass(frozen=True)
class Selector:
    """A name and its parameters as they were written, in that order. ``str()`` gives text that parses to an equal one."""

    name: str
    parameters: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        inside = ",".join(f"{key}={_spell(value)}" for key, value in self.parameters)
        return f"{self.name}[{inside}]" if inside else self.name


def parse_selector(text: str) -> Selector:
    """Read ``name[key=value,...]``. Raises InvalidParameter, which shows the position, where it cannot be read."""
    bracket = text.find("[")
    head = text if bracket < 0 else text[:bracket]
    name = head.strip()
    if not name:
        raise _unreadable(text, 0, "a name is missing")
    start = head.index(name[0])
    if found := _NAME.match(text, start):
        if found.group() != name:
            raise _unreadable(text, found.end(), f"{text[found.end()]!r} cannot be part of a name")
    else:
        raise _unreadable(text, start, f"a name cannot begin with {text[start]!r}")
    if bracket < 0:
        return Selector(name)
    parameters: dict[str, str] = {}
    position = bracket + 1
    closing = _next(text, position, "]")
    if closing == len(text):
        raise _unreadable(text, bracket, "this '[' is never closed")
    if text[closing + 1 :].strip():
        raise _unreadable(text, closing + 1, "nothing may follow the closing ']'")
    while text[bracket + 1 : closing].strip() and position <= closing:
        equals = _next(text, position, ",=]")
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
        end = _next(text, equals + 1, ",]")
        parameters[key] = _value(text, equals + 1, end)
        position = end + 1
    return Selector(name, tuple(parameters.items()))


def split_selectors(text: str) -> list[str]:
    """The selectors of a comma separated list, ``pgd[steps=10,norm=l2],fgsm``; not yet parsed, each without outer spaces."""
    if not text.strip():
        return []
    found = []
    position = 0
    while position <= len(text):
        end = _next(text, position, ",")
        found.append(text[position:end].strip())
        if not found[-1]:
            raise _unreadable(text, position, "a name is missing between the commas")
        position = end + 1
    return found


def _next(text: str, start: int, stops: str) -> int:
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


def _value(text: str, start: int, end: int) -> str:
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


def _spell(value: str) -> str:
    """``value`` as it must be written after ``key=``: as it is where that reads back, quoted otherwise."""
    try:
        plain = _value(value, 0, _next(value, 0, ",]")) == value
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


# ------------------------------------------------------------------------------------------------------ what a factory takes


@dataclass(frozen=True)
class Parameter:
    """One parameter of a factory, for people: ``rbl show``.

    default: as in a result's key (JSON-able), or ``REQUIRED``. constraints: ``(">= 1",)``. doc: from ``Field(description=...)``
    or from a ``name: text.`` entry in the docstring of the factory.
    """

    name: str
    type: str
    default: Any
    constraints: tuple[str, ...] = ()
    doc: str = ""

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is REQUIRED

    @property
    def expected(self) -> str:
        """Type and constraints: ``int >= 1``."""
        return " ".join([self.type, ", ".join(self.constraints)]).strip()

    def to_json(self) -> dict[str, Any]:
        """The same as plain data; ``default`` is absent where the parameter is required."""
        found = {"name": self.name, "type": self.type, "constraints": list(self.constraints), "doc": self.doc}
        return found | {"required": self.required} | ({} if self.required else {"default": self.default})


@dataclass(frozen=True, eq=False)
class _Field:
    name: str
    hint: Any
    default: Any
    adapter: TypeAdapter[Any]


def describe(factory: Factory) -> list[Parameter]:
    """The parameters of ``factory``, in order. Raises PluginError where one of them cannot be validated."""
    return [_shown(factory, f) for f in _fields(factory)]


def _shown(factory: Factory, f: _Field) -> Parameter:
    default = REQUIRED if f.default is REQUIRED else _jsonable(f.default)
    return Parameter(f.name, _type_name(f.hint), default, _constraints(f.adapter), _doc(factory, f.name, f.hint))


def _fields(factory: Any) -> tuple[_Field, ...]:
    if not _is_dataclass(factory) and not inspect.isfunction(factory):
        kind = "a class without @dataclass" if isinstance(factory, type) else f"of type {type(factory).__name__}"
        raise PluginError(
            f"factory {_called(factory)} is {kind}, so its parameters cannot be validated",
            hint="make it a class with @dataclass(frozen=True, kw_only=True), or a function",
        )
    return _checked_fields(factory)


@functools.lru_cache(maxsize=1024)
def _checked_fields(factory: Any) -> tuple[_Field, ...]:
    found = []
    for name, annotation, default, scope in _declared(factory):
        where = f"parameter {name!r} of {_called(factory)}"
        if isinstance(default, FieldInfo):
            raise PluginError(
                f"{where} has a pydantic Field as its default",
                hint=f"write `{name}: Annotated[TYPE, Field(...)] = DEFAULT`: a plain dataclass does not read it otherwise",
            )
        try:
            hint = _resolve(annotation, scope)
            adapter = _adapter(hint, allow_inf_nan=isinstance(default, float) and not math.isfinite(default))
        except Exception as error:
            reason = " ".join(str(error).split("\n")[0].split())
            raise PluginError(
                f"{where} has the type {_spelled(annotation)}, which cannot be validated: {type(error).__name__}: {reason}",
                hint="use a type that pydantic knows (int, float, bool, str, Path, Literal[...], tuple[int, ...]), and import "
                "it at run time, not only under TYPE_CHECKING",
            ) from error
        if default is not REQUIRED:
            try:
                default = _validated(adapter, default)
                _jsonable(default)
            except (ValidationError, _Refused, TypeError) as error:
                raise PluginError(
                    f"{where} has the default {default!r}, which is no {_type_name(hint)}: {_complaint(error)}",
                    hint="change the default or the annotation (`X | None` where nothing is allowed)",
                ) from error
        found.append(_Field(name, hint, default, adapter))
    return tuple(found)


def _declared(factory: Any) -> Iterator[tuple[str, Any, Any, Mapping[str, Any]]]:
    """(name, annotation, default, the names its annotation may use) for each parameter."""
    if inspect.isfunction(factory):
        for p in inspect.signature(factory).parameters.values():
            if p.kind is not p.KEYWORD_ONLY:
                continue
            if p.annotation is p.empty:
                raise PluginError(
                    f"parameter {p.name!r} of {_called(factory)} has no type, so it cannot be validated",
                    hint=f"write `{p.name}: TYPE`",
                )
            yield p.name, p.annotation, p.default, factory.__globals__
        return
    for f in dataclasses.fields(factory):
        if not f.init:
            continue
        default: Any = REQUIRED if f.default is dataclasses.MISSING else f.default
        if f.default_factory is not dataclasses.MISSING:
            try:
                default = f.default_factory()
            except Exception as error:
                raise PluginError(f"the default of parameter {f.name!r} of {_called(factory)} failed: {error!r}") from error
        owner = next((c for c in factory.__mro__ if f.name in inspect.get_annotations(c)), factory)
        module = sys.modules.get(owner.__module__)
        yield f.name, f.type, default, {**(vars(module) if module else {}), **vars(owner)}


def _resolve(annotation: Any, scope: Mapping[str, Any]) -> Any:
    """The type that a (perhaps quoted) annotation names, with its ``Annotated`` constraints."""
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    return typing.get_type_hints(holder, globalns=dict(scope), include_extras=True)["it"]


def _adapter(hint: Any, *, allow_inf_nan: bool = False) -> TypeAdapter[Any]:
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(allow_inf_nan=allow_inf_nan))
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":  # dataclasses and models bring their own configuration
            raise
        adapter = TypeAdapter(hint)
    if adapter.pydantic_complete is not True:
        raise TypeError(f"{hint!r} is not defined")
    return adapter


def _is_dataclass(factory: object) -> bool:
    return isinstance(factory, type) and dataclasses.is_dataclass(factory)


def _origin(hint: Any) -> Any:
    return typing.get_origin(hint)


def _called(factory: object) -> str:
    return f"{getattr(factory, '__module__', '?')}:{getattr(factory, '__qualname__', None) or repr(factory)}"


def _spelled(annotation: object) -> str:
    return repr(annotation) if isinstance(annotation, str) else _type_name(annotation)


def _type_name(hint: Any) -> str:
    origin, arguments = _origin(hint), typing.get_args(hint)
    if hint is type(None) or hint is None:
        return "none"
    if hint is Ellipsis:
        return "..."
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " | ".join("none" if a is None else repr(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(_type_name(a) for a in arguments)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " | ".join(repr(_jsonable(member)) for member in hint)
    if origin is not None:
        return f"{_type_name(origin)}[{', '.join(_type_name(a) for a in arguments)}]"
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


def _constraints(adapter: TypeAdapter[Any]) -> tuple[str, ...]:
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


def _doc(factory: Factory, name: str, hint: Any) -> str:
    for extra in typing.get_args(hint)[1:] if _origin(hint) is Annotated else ():
        if isinstance(extra, FieldInfo) and extra.description:
            return extra.description
    for owner in factory.__mro__ if isinstance(factory, type) else (factory,):
        text = inspect.cleandoc(vars(owner).get("__doc__") or "") if isinstance(owner, type) else inspect.getdoc(owner) or ""
        # An entry opens a line or follows a sentence, and ends before the next entry or at the end of the paragraph.
        entry = re.search(rf"(?:^|\n|[.;] ) *`*{name}`*: +(.*?)(?=\n\n|(?:\n|[.;] ) *`*[a-z]\w*`*: |\Z)", text, re.DOTALL)
        if entry:
            return " ".join(entry[1].split()).rstrip(".;")
    return ""


# ----------------------------------------------------------------------------------------------------------------- building


class _Refused(Exception):
    """A value that pydantic's lax mode would take and that is surely a mistake."""


def build(factory: Factory, parameters: Mapping[str, object], *, where: str) -> Any:
    """Check ``parameters`` against ``factory`` and make the instance: a dataclass, or a ``functools.partial`` of a function.

    parameters: texts from the command line, typed values from YAML, or a mixture. where: how messages call the object, best
    its name: ``"pgd"``. Defaults are validated too, so a default ``1`` of a float field becomes ``1.0``.

    Raises InvalidParameter, naming every wrong parameter; PluginError where the factory itself is at fault.
    """
    fields = {f.name: f for f in _fields(factory)}
    wrong: list[str] = []
    values: dict[str, Any] = {}
    for key in parameters:
        if key not in fields:
            near = did_you_mean(str(key), fields)
            known = f"known: {', '.join(fields)}" if fields else "it takes none"
            wrong.append(f"{where} has no parameter {key!r}{'; ' + near if near else ''} ({known})")
    for f in fields.values():
        given = parameters.get(f.name, f.default)
        if given is REQUIRED:
            wrong.append(f"{where} needs {f.name} ({_shown(factory, f).expected})")
            continue
        try:
            values[f.name] = _validated(f.adapter, _from_text(f.hint, given))
        except (ValidationError, _Refused, InvalidParameter) as error:
            shown = _shown(factory, f)
            default = "" if shown.required else f" (default {_text(shown.default)})"
            wrong.append(f"{where}: {f.name} must be {shown.expected}{default}, not {given!r}: {_complaint(error)}")
        except Exception as error:
            raise PluginError(f"validating {f.name}={given!r} of {_called(factory)} failed: {error!r}") from error
    if wrong:
        name = where if _NAME.fullmatch(where) else "NAME"
        raise InvalidParameter("\n  ".join(wrong), hint=f"`rbl show {name}` lists the parameters with their types and defaults")
    if inspect.isfunction(factory):
        return functools.partial(factory, **values)
    try:
        return factory(**values)
    except RblError:
        raise
    except ValueError as error:  # __post_init__ refuses a combination
        raise InvalidParameter(f"{where}: {_complaint(error)}", hint="change one of the parameters") from error
    except Exception as error:
        raise PluginError(f"{_called(factory)} failed to build with {values}: {error!r}") from error


def _validated(adapter: TypeAdapter[Any], value: object) -> Any:
    result = adapter.validate_python(value)
    if isinstance(value, bool) and type(result) in (int, float):
        raise _Refused(f"{_text(value)} is no number")
    if isinstance(result, float):
        return result + 0.0  # -0.0 and 0.0 are one setting and get one key
    return result


def _from_text(hint: Any, value: object) -> object:
    """Text as the command line spells it, turned into what pydantic reads; anything else is left as it is."""
    origin, arguments = _origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _from_text(arguments[0], value)
    if _is_sequence(origin or hint):
        return _items(hint, arguments, value)
    if not isinstance(value, str):
        return value
    if origin is Literal:
        if value in arguments:
            return value
        return next((a for a in arguments if not isinstance(a, str) and _text(_jsonable(a)) == value.lower()), value)
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
            raise _Refused(f"it is not JSON: {error}") from error
    return value


def _is_sequence(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, (Sequence, AbstractSet)) and not issubclass(kind, (str, bytes))


def _items(hint: Any, arguments: tuple[Any, ...], value: object) -> object:
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith("["):
            raise _Refused("a list is written [a,b]")
        end = _next(text, 1, "]")
        if end != len(text) - 1:
            raise _Refused("a list is written [a,b]")
        found: list[object] = []
        position = 1
        while text[1:end].strip() and position <= end:
            stop = _next(text, position, ",]")
            found.append(_value(text, position, stop))
            position = stop + 1
    elif isinstance(value, (list, tuple)):
        found = list(value)
    else:
        return value
    if _origin(hint) is tuple and len(arguments) == len(found) and Ellipsis not in arguments:
        return [_from_text(a, v) for a, v in zip(arguments, found, strict=True)]
    return [_from_text(arguments[0], v) for v in found] if arguments else found


def _from_text_of_union(options: tuple[Any, ...], value: str) -> object:
    """``value`` as read by the first option that is not plain text and takes it: ``100`` for ``int | str`` is an int."""
    literals = [o for o in options if _origin(o) is Literal]  # first, since 'none' may be one of them
    for option in literals + [o for o in options if o not in literals]:
        if option is str or (isinstance(option, type) and issubclass(option, PurePath)):
            continue
        try:
            return _adapter(option, allow_inf_nan=True).validate_python(_from_text(option, value))
        except (ValidationError, _Refused, InvalidParameter):
            continue
    return value


def _complaint(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return " ".join((error.message if isinstance(error, RblError) else str(error)).split())
    said = []
    for e in error.errors(include_url=False, include_context=False, include_input=False):
        index = "".join(f"item {i + 1}: " for i in e["loc"] if isinstance(i, int))
        said.append(index + e["msg"].removeprefix("Value error, ").replace("Input should", "it should"))
    return "; ".join(dict.fromkeys(said))


# ------------------------------------------------------------------------------------------------------------ keys and labels


def resolved(instance: object) -> dict[str, Any]:
    """Every parameter of what ``build`` (or a plain constructor call) made, with its final value, ready for canonical JSON.

    Fields declared float are floats (``1`` becomes 1.0), paths are text, tuples lists, enums their values, and the infinite
    ``"inf"`` or ``"-inf"`` (JSON has none). Raises PluginError for a value with no JSON form.
    """
    factory: Factory = instance.func if isinstance(instance, functools.partial) else type(instance)
    found = {}
    for f in _fields(factory):
        if isinstance(instance, functools.partial):
            value = instance.keywords.get(f.name, f.default)
        else:
            value = getattr(instance, f.name)
        # __post_init__ may keep what its annotation does not describe: then the value itself decides.
        with contextlib.suppress(ValidationError, _Refused):
            value = _validated(f.adapter, value)
        try:
            found[f.name] = _jsonable(value)
        except TypeError as error:
            raise PluginError(
                f"{f.name} of {_called(factory)} cannot be part of a result's key: {error}",
                hint="keep parameters to numbers, text, paths, and tuples or mappings of them",
            ) from error
    return found


def label(name: str, factory: Factory, instance: object) -> str:
    """``pgd``, or ``pgd[steps=100]``: the parameters that differ from a default instance, in field order.

    The text parses and builds to the same parameters.
    """
    return str(Selector(name, tuple((key, _text(value)) for key, value in chosen(name, factory, instance).items())))


def chosen(name: str, factory: Factory, instance: object) -> dict[str, Any]:
    """The parameters that differ from a default instance or have no default, in field order, as ``resolved`` has them."""
    final = resolved(instance)
    required = {f.name for f in _fields(factory) if f.default is REQUIRED}
    try:
        usual = resolved(build(factory, {key: final[key] for key in required}, where=name))
    except RblError:  # the required ones do not go with the defaults of the others
        usual = {f.name: _jsonable(f.default) for f in _fields(factory) if f.name not in required}
    return {key: value for key, value in final.items() if key in required or value != usual[key]}


def _jsonable(value: object) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, enum.Enum):
        return _jsonable(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if isinstance(value, AbstractSet):
        return sorted((_jsonable(v) for v in value), key=lambda v: (str(type(v)), json.dumps(v)))
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise TypeError(f"{value!r} of type {type(value).__name__} has no JSON form")


def _text(value: object) -> str:
    """A JSON-able value as it is written on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list):
        return f"[{','.join(_spell(_text(v)) for v in value)}]"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _number(value: float) -> str:
    shortest = repr(value).removesuffix(".0")
    near = Fraction(value).limit_denominator(1000)  # 8/255 reads better than 0.03137254901960784
    if len(shortest) > 10 and near and near.numerator / near.denominator == value:
        return f"{near.numerator}/{near.denominator}"
    return shortest


__all__ = [
    "REQUIRED",
    "Parameter",
    "Selector",
    "build",
    "describe",
    "label",
    "parse_selector",
    "resolved",
    "split_selectors",
]
