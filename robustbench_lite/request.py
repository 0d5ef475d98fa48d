"""What a run is asked to do: the same fields whether they come from the command line or from ``--config run.yaml``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from robustbench_lite.config import read_yaml, validate
from robustbench_lite.errors import InvalidConfig, UsageError
from robustbench_lite.parameters import split_selectors
from robustbench_lite.threat import Threat

Positive = Annotated[int, Field(ge=1)]


def _selectors(value: object) -> object:
    """``"pgd[steps=10],fgsm"``, or a list of such texts, as a flat list."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        return value
    return [name for item in items for name in split_selectors(item)]


Selectors = Annotated[tuple[str, ...], BeforeValidator(_selectors)]


def default_store() -> Path:
    """$RBL_STORE, or ``rbl-results`` in the current folder."""
    return Path(os.environ.get("RBL_STORE") or "rbl-results")


def default_data() -> Path:
    """$RBL_DATA, or ``data`` in the current folder."""
    return Path(os.environ.get("RBL_DATA") or "data")


class RunRequest(BaseModel):
    """What to run, and how. The first block decides the numbers; the second does not.

    defense, attack, dataset: selectors (``all``, ``pgd-at``, ``pgd[steps=100]``). threat: empty for the protocol's. n: fewer
    or more examples than the protocol wants. seed: of attacks and of stochastic defenses. weights: files by defense label.

    store, data: folders. device: auto, cpu, or devices joined by commas. workers: per CPU; one per GPU. timeout: seconds a
    cell may take. shard: i/n, every n-th cell, for job arrays that share a store. plugin: one-file plugins.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    defense: Selectors = ("all",)
    attack: Selectors = ("all",)
    dataset: Selectors = ("digits",)
    threat: Selectors = ()
    protocol: str = "quick"
    seed: Annotated[int, Field(ge=0)] = 0
    n: Positive | None = None
    weights: Mapping[str, Path] = Field(default_factory=dict)

    store: Path = Field(default_factory=default_store)
    data: Path = Field(default_factory=default_data)
    executor: Literal["local", "inline"] = "local"
    device: str = "auto"
    workers: Positive | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None
    micro_batch: Positive | None = None
    keep_examples: bool = False
    shard: str | None = None
    plugin: tuple[Path, ...] = ()

    @field_validator("threat")
    @classmethod
    def _threats(cls, threats: tuple[str, ...]) -> tuple[str, ...]:
        for text in threats:
            Threat.parse(text)
        return threats

    @field_validator("shard")
    @classmethod
    def _shard(cls, text: str | None) -> str | None:
        if text is not None:
            parse_shard(text)
        return text

    @field_validator("defense", "attack", "dataset")
    @classmethod
    def _some(cls, selectors: tuple[str, ...]) -> tuple[str, ...]:
        if not selectors:
            raise InvalidConfig("nothing selected", hint="name at least one, or 'all'")
        return selectors


def parse_shard(text: str) -> tuple[int, int]:
    """``"2/8"`` as (2, 8). Raises UsageError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"shard {text!r} must read i/n with 1 <= i <= n", hint="for instance --shard 2/8")
    return int(match[1]), int(match[2])


def load_request(config: Path | None, options: Mapping[str, object]) -> RunRequest:
    """The request of a configuration file, overridden by command-line options (those that are not None).

    Raises InvalidConfig, naming the file or the option and the nearest known key.
    """
    content: dict[str, object] = {}
    if config is not None:
        if not config.is_file():
            raise InvalidConfig(f"no configuration file {config}", hint="rbl run --config run.yaml")
        content = read_yaml(config.read_text(encoding="utf-8"), source=str(config))
        validate(RunRequest, content, source=str(config))
    content |= {key: value for key, value in options.items() if value is not None}
    return validate(RunRequest, content, source="command line")
