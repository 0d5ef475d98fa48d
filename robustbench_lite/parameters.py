"""Parameters of attacks, defenses, data sets and metrics: what a factory takes, building it, and its key and label.

The types come from the factory: the fields of a dataclass, or the keyword-only arguments of a function. How a variant is
written is in ``selectors.py``, how one value is read and shown in ``values.py``. Importing this module imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from robustbench_lite.errors import InvalidParameter, PluginError, RblError, did_you_mean
from robustbench_lite.selectors import NAME, Selector
from robustbench_lite.values import (
    Refused,
    adapter_of,
    as_text,
    complaint,
    constraints_of,
    from_text,
    jsonable,
    type_name,
    validated,
)

REQUIRED: Any = inspect.Parameter.empty
Factory = Callable[..., Any]


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
    default = REQUIRED if f.default is REQUIRED else jsonable(f.default)
    return Parameter(f.name, type_name(f.hint), default, constraints_of(f.adapter), _doc(factory, f.name, f.hint))


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
            adapter = adapter_of(hint, allow_inf_nan=isinstance(default, float) and not math.isfinite(default))
        except Exception as error:
            reason = " ".join(str(error).split("\n")[0].split())
            raise PluginError(
                f"{where} has the type {_spelled(annotation)}, which cannot be validated: {type(error).__name__}: {reason}",
                hint="use a type that pydantic knows (int, float, bool, str, Path, Literal[...], tuple[int, ...]), and import "
                "it at run time, not only under TYPE_CHECKING",
            ) from error
        if default is not REQUIRED:
            try:
                default = validated(adapter, default)
                jsonable(default)
            except (ValidationError, Refused, TypeError) as error:
                raise PluginError(
                    f"{where} has the default {default!r}, which is no {type_name(hint)}: {complaint(error)}",
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


def _is_dataclass(factory: object) -> bool:
    return isinstance(factory, type) and dataclasses.is_dataclass(factory)


def _called(factory: object) -> str:
    return f"{getattr(factory, '__module__', '?')}:{getattr(factory, '__qualname__', None) or repr(factory)}"


def _spelled(annotation: object) -> str:
    return repr(annotation) if isinstance(annotation, str) else type_name(annotation)


def _doc(factory: Factory, name: str, hint: Any) -> str:
    for extra in typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ():
        if isinstance(extra, FieldInfo) and extra.description:
            return extra.description
    # An entry, of one parameter or of several, opens a line or follows a sentence, and ends before the next parameter's or at
    # the end of the paragraph.
    known = "|".join(re.escape(f.name) for f in _fields(factory))
    several, opens = rf"`*(?:{known})`*,\s+", r"(?:^|\n|[.;] ) *"
    entry = re.compile(
        rf"{opens}(?:{several})*`*{name}`*(?:,\s+`*(?:{known})`*)*: +(.*?)"
        rf"(?=\n\n|(?:\n|[.;] ) *(?:{several})*`*(?:{known})`*: |\Z)",
        re.DOTALL,
    )
    for owner in factory.__mro__ if isinstance(factory, type) else (factory,):
        text = inspect.cleandoc(vars(owner).get("__doc__") or "") if isinstance(owner, type) else inspect.getdoc(owner) or ""
        if found := entry.search(text):
            return " ".join(found[1].split()).rstrip(".;")
    return ""


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
            values[f.name] = validated(f.adapter, from_text(f.hint, given))
        except (ValidationError, Refused, InvalidParameter) as error:
            shown = _shown(factory, f)
            default = "" if shown.required else f" (default {as_text(shown.default)})"
            wrong.append(f"{where}: {f.name} must be {shown.expected}{default}, not {given!r}: {complaint(error)}")
        except Exception as error:
            raise PluginError(f"validating {f.name}={given!r} of {_called(factory)} failed: {error!r}") from error
    if wrong:
        name = where if NAME.fullmatch(where) else "NAME"
        raise InvalidParameter("\n  ".join(wrong), hint=f"`rbl show {name}` lists the parameters with their types and defaults")
    if inspect.isfunction(factory):
        return functools.partial(factory, **values)
    try:
        return factory(**values)
    except RblError:
        raise
    except ValueError as error:  # __post_init__ refuses a combination
        raise InvalidParameter(f"{where}: {complaint(error)}", hint="change one of the parameters") from error
    except Exception as error:
        raise PluginError(f"{_called(factory)} failed to build with {values}: {error!r}") from error


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
        with contextlib.suppress(ValidationError, Refused):
            value = validated(f.adapter, value)
        try:
            found[f.name] = jsonable(value)
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
    return str(Selector(name, tuple((key, as_text(value)) for key, value in chosen(name, factory, instance).items())))


def chosen(name: str, factory: Factory, instance: object) -> dict[str, Any]:
    """The parameters that differ from a default instance or have no default, in field order, as ``resolved`` has them."""
    final = resolved(instance)
    required = {f.name for f in _fields(factory) if f.default is REQUIRED}
    try:
        usual = resolved(build(factory, {key: final[key] for key in required}, where=name))
    except RblError:  # the required ones do not go with the defaults of the others
        usual = {f.name: jsonable(f.default) for f in _fields(factory) if f.name not in required}
    return {key: value for key, value in final.items() if key in required or value != usual[key]}


__all__ = ["REQUIRED", "Parameter", "build", "chosen", "describe", "label", "resolved"]
