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
from robustbench_lite.protocol import DEFAULT
from robustbench_lite.selectors import split_selectors
from robustbench_lite.threat import Threat

Positive = Annotated[int, Field(ge=1)]


def _selectors(value: object) -> object:
    """``"pgd[steps=10],fgsm"``, or a list of such texts, as a flat list."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        return value
    return [name for item in items for name in split_selectors(item)]


def _files(value: object) -> object:
    """One path as a list of one."""
    return [value] if isinstance(value, (str, Path)) else value


def _assignments(value: object) -> object:
    """``"pgd-at=w.safetensors"``, or a list of such texts, as a mapping. Raises UsageError."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        return value
    found: dict[str, str] = {}
    for text in texts:
        defense, separator, path = text.rpartition("=")
        if not separator or not defense or not path or "]" in path:
            raise UsageError(f"weights: {text!r} must read DEFENSE=FILE", hint="for instance --weights pgd-at=mine.safetensors")
        found[defense] = path
    return found


def _kept(value: object) -> object:
    """``true`` as all, ``false`` as none."""
    return {True: "all", False: 0}[value] if isinstance(value, bool) else value


Selectors = Annotated[tuple[str, ...], BeforeValidator(_selectors)]


def default_store() -> Path:
    """$RBL_STORE, or ``rbl-results`` in the current folder."""
    return Path(os.environ.get("RBL_STORE") or "rbl-results")


def default_data() -> Path:
    """$RBL_DATA, or ``data`` in the current folder."""
    return Path(os.environ.get("RBL_DATA") or "data")


class RunRequest(BaseModel):
    """What to run, and how. The first block decides the numbers; the second does not.

    metric: metrics of scope ``model`` to measure on each defense. Attacks are all that are installed where neither they nor
    metrics are named, and none where only metrics are.

    defense, attack, dataset: selectors (``all``, ``pgd-at``, ``pgd[steps=100]``). threat: empty for the protocol's. n: fewer
    or more examples than the protocol wants. seed: of attacks and of stochastic defenses. weights: files by defense label.

    store, data: folders. device: auto, cpu, or devices joined by commas. workers: per CPU; one per GPU. timeout: seconds a
    cell may take. keep_examples: store clean and adversarial images of so many beaten examples of a cell, or of all examples.
    shard: i/n, every n-th cell, for job arrays that share a store. diagnose: whether to make the expensive checks of the
    defenses, too; None as the protocol says. plugin: one-file plugins.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    defense: Selectors = ("all",)
    attack: Selectors = ("all",)
    dataset: Selectors = ("digits",)
    metric: Selectors = ()
    threat: Selectors = ()
    protocol: str = DEFAULT
    seed: Annotated[int, Field(ge=0)] = 0
    n: Positive | None = None
    weights: Annotated[Mapping[str, Path], BeforeValidator(_assignments)] = Field(default_factory=dict)

    store: Path = Field(default_factory=default_store)
    data: Path = Field(default_factory=default_data)
    executor: Literal["local", "inline"] = "local"
    device: str = "auto"
    workers: Positive | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None
    micro_batch: Positive | None = None
    keep_examples: Annotated[Annotated[int, Field(ge=0)] | Literal["all"], BeforeValidator(_kept)] = 0
    shard: str | None = None
    diagnose: bool | None = None
    plugin: Annotated[tuple[Path, ...], BeforeValidator(_files)] = ()

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks to run: none where metrics are named and attacks are not."""
        return () if self.metric and "attack" not in self.model_fields_set else self.attack

    @field_validator("threat")
    @classmethod
    def _threats(cls, threats: tuple[str, ...]) -> tuple[str, ...]:
        for text in threats:
            Threat.parse(text)
        return threats

    @field_validator("device")
    @classmethod
    def _devices(cls, text: str) -> str:
        parse_devices(text)
        return text

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


def parse_devices(text: str) -> tuple[str, ...]:
    """``"cuda:0,cuda:1"`` as ("cuda:0", "cuda:1"); ``auto`` and ``cpu`` stand alone. Raises UsageError."""
    names = tuple(name.strip() for name in text.split(","))
    if names in (("auto",), ("cpu",)):
        return names
    for name in names:
        if not re.fullmatch(r"cuda(:\d+)?", name):
            known = name in ("auto", "cpu")
            problem = f"{name} cannot be combined with other devices" if known else f"unknown device {name!r}"
            raise UsageError(problem, hint="--device auto, cpu, cuda or cuda:0,cuda:1")
    full = [name if ":" in name else f"{name}:0" for name in names]
    if len(set(full)) < len(full):
        raise UsageError(f"a device stands twice in {text!r}", hint="--workers 2 gives each GPU two workers")
    return tuple(full)


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
    return validate(RunRequest, content, source="command line", spell=lambda key: "--" + key.replace("_", "-"))
