"""``manifest.json``: what a bundle says is in it, with the size and checksum of every other member."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustbench_lite.errors import InvalidBundle

KIND: Literal["robustbench-lite bundle"] = "robustbench-lite bundle"
VERSION: Literal[1] = 1

_CONFIG = ConfigDict(extra="forbid", frozen=True, strict=True)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[str, Field(max_length=500)]


class Member(BaseModel):
    """A file in the bundle."""

    model_config = _CONFIG

    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Summary(BaseModel):
    """One result, for people and for what its arrays do not hold; the rest must agree with its spec.

    model: checksums of the weights of the defense and of what it wraps. n: examples, in ``shards``. examples: how many shards
    have images. seconds, environment: what it took, and where.
    """

    model_config = _CONFIG

    defense: str
    attack: str
    dataset: str
    threat: str
    model: tuple[str, ...]
    n: Annotated[int, Field(ge=1)]
    shards: Annotated[int, Field(ge=1)]
    examples: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    environment: dict[str, str | int | dict[str, str]]

    def agrees_with(self, spec: Mapping[str, Any]) -> str:
        """What it says that the spec does not; empty where they agree."""
        for name, asked in asked_of(spec).items():
            if (said := getattr(self, name)) != asked:
                return f"the manifest says {name} {_listed(said)}, its spec {_listed(asked)}"
        return ""


class Manifest(BaseModel):
    """What a bundle says is in it. by, where: whose results these are and where more is told, as the maker says."""

    model_config = _CONFIG

    kind: Literal["robustbench-lite bundle"] = KIND
    version: Literal[1] = VERSION
    created: Line
    by: Line = ""
    where: Line = ""
    made_with: dict[str, str]
    cells: Annotated[dict[Sha256, Summary], Field(min_length=1)]
    members: dict[str, Member]


def asked_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary repeats of a spec."""
    return {
        "defense": spec["defense"]["label"],
        "attack": spec["attack"]["label"],
        "dataset": spec["dataset"]["name"],
        "threat": spec["threat"],
        "model": model_hashes(spec["defense"]),
        "n": spec["protocol"]["n"],
    }


def model_hashes(defense: Mapping[str, Any]) -> tuple[str, ...]:
    """The checksums of the weights of a defense and of all that it wraps, its own first; both as in a cell's spec."""
    bases = [base for base in (defense["base"], *defense.get("bases", ())) if base]
    own = [defense["weights"]] if defense["weights"] else []
    return tuple(own + [checksum for base in bases for checksum in model_hashes(base)])


def _listed(value: Any) -> str:
    return (", ".join(value) or "none") if isinstance(value, tuple) else repr(value)


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest; raises InvalidBundle, naming what is wrong with it."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidBundle(f"manifest.json is not JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("kind") != KIND:
        raise InvalidBundle("manifest.json is not that of a bundle", hint="rbl export makes bundles")
    if raw.get("version") != VERSION:
        raise InvalidBundle(
            f"it is a bundle of version {raw.get('version')!r}, this robustbench-lite reads version {VERSION}",
            hint="pip install --upgrade robustbench-lite, or ask for a bundle of another version",
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise InvalidBundle(f"manifest.json: {first_of(error)}") from error


def first_of(error: ValidationError) -> str:
    """The first thing that is wrong, with its place; and how many others."""
    first, *others = error.errors()
    place = ".".join(map(str, first["loc"]))
    more = f" (and {len(others)} more)" if others else ""
    return f"{place}: {first['msg']}{more}"[:500]
