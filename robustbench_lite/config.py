"""Reading YAML into pydantic models, with errors that name the file, the key and the nearest known key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from robustbench_lite.errors import InvalidConfig, RblError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(text: str, *, source: str) -> dict[str, Any]:
    """A YAML mapping. Raises InvalidConfig where the text is no YAML or no mapping."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{source} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidConfig(f"{source} must be a mapping of keys to values", hint="write lines such as 'dataset: digits'")
    return content


def validate(model: type[Model], content: Mapping[str, Any], *, source: str, spell: Callable[[str], str] = str) -> Model:
    """``content`` as a ``model``. Raises InvalidConfig for the first mistake. spell: how ``source`` writes a key."""
    try:
        return model.model_validate(content)
    except RblError as error:  # one of our own validators: it says more than pydantic can
        raise InvalidConfig(f"{source}: {error.message}", hint=error.hint) from None
    except ValidationError as error:
        raise _readable(model, error, source, spell) from None


def _readable(model: type[BaseModel], error: ValidationError, source: str, spell: Callable[[str], str]) -> InvalidConfig:
    # An unknown key first: it may be why another one is missing.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields(model, first["loc"][:-1])
        near = did_you_mean(str(first["loc"][-1]), known)
        return InvalidConfig(f"{source}: unknown key {where!r}", hint=near or f"known keys: {', '.join(known)}")
    if first["type"] == "missing":
        return InvalidConfig(f"{source}: {spell(where)}: field required", hint=f"add a line '{first['loc'][-1]}: ...'")
    return InvalidConfig(f"{source}: {spell(where)}: {first['msg'].lower()}, not {first['input']!r}")


def _fields(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys known at ``path`` inside ``model``; a mapping's own keys are free and are passed over."""
    current: type[BaseModel] = model
    for part in path:
        field = current.model_fields.get(str(part))
        if field is None:
            continue
        found = [a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(a, type)]
        inner = [a for a in found if issubclass(a, BaseModel)]
        if inner:
            current = inner[0]
    return [f.alias or name for name, f in current.model_fields.items()]
