"""Evaluation protocols: versioned YAML that says which threat models, how many examples and what budgets.

A protocol's name, version and settings are part of every result's key; rows of different protocol versions are never
ranked together. Raise ``version`` with any change that can change a number.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from robustbench_lite.config import read_yaml, validate
from robustbench_lite.errors import InvalidConfig, UnknownName, did_you_mean
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite.registry import Registry

log = logging.getLogger(__name__)

Positive = Annotated[int, Field(ge=1)]

# The protocol of a run that names none.
DEFAULT = "quick"


class Rules(BaseModel):
    """What a protocol wants of one data set. threats: as ``Threat.parse`` reads them. n: examples; None for all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threats: tuple[str, ...] = ()
    n: Positive | None = None

    @field_validator("threats")
    @classmethod
    def _readable(cls, threats: tuple[str, ...]) -> tuple[str, ...]:
        for text in threats:
            Threat.parse(text)
        return threats


class Protocol(BaseModel):
    """One protocol.

    datasets: rules by the data set's short name; others follow ``default``. eot: draws that a gradient or a score of a
    stochastic defense is averaged over. eval_draws: fresh draws by which the judge decides. budget: queries per example, or
    None. diagnose: whether a run also makes the expensive checks of its defenses, which change no number. attacks:
    parameters by attack id, for attacks that are named without parameters of their own. naive: ids of the attacks that papers
    evaluate with and that know nothing of a defense; tables show what they leave beside the worst case.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    version: Positive
    summary: str = ""
    reference: str = ""
    datasets: Mapping[str, Rules] = Field(default_factory=dict)
    default: Rules = Rules()
    eot: Positive = 1
    eval_draws: Positive = 1
    budget: Positive | None = None
    diagnose: bool = False
    attacks: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    naive: tuple[str, ...] = ()

    def rules(self, dataset: str) -> Rules:
        """The rules for a data set by its short name."""
        return self.datasets.get(dataset, self.default)

    def settings(self) -> dict[str, Any]:
        """What of the protocol is part of a result's key."""
        return {
            "name": self.name,
            "version": self.version,
            "eot": self.eot,
            "eval_draws": self.eval_draws,
            "budget": self.budget,
        }


def parse_protocol(text: str, *, source: str) -> Protocol:
    """Read a protocol from YAML. Raises InvalidConfig, naming ``source``, the key and the nearest known one."""
    return validate(Protocol, read_yaml(text, source=source), source=source)


def builtin_protocols() -> dict[str, Protocol]:
    """The protocols that come with the core, by name."""
    folder = resources.files("robustbench_lite") / "protocols"
    found = {}
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            protocol = parse_protocol(file.read_text(encoding="utf-8"), source=file.name)
            found[protocol.name] = protocol
    return found


def contributed_protocols(registry: Registry) -> dict[str, str]:
    """YAML texts of the protocols that plugins bring, by id. One that cannot be read is logged and left out."""
    found: dict[str, str] = {}
    for entry in registry.entries("protocol"):
        try:
            value = registry.factory(entry)
            found[entry.id] = value if isinstance(value, str) else value.read_text(encoding="utf-8")
        except Exception as error:
            log.warning("protocol %s of %s cannot be read: %s", entry.id, entry.distribution, error)
    return found


def known_protocols(contributed: Mapping[str, str]) -> dict[str, Protocol]:
    """The protocols that can be read, by the name that they give themselves. contributed: YAML texts of plugins, by id."""
    known: dict[str, Protocol] = {}
    for identifier, text in contributed.items():
        with suppress(InvalidConfig):  # costs whoever asks for it
            protocol = parse_protocol(text, source=identifier)
            known[protocol.name] = protocol
    return known | builtin_protocols()


def find_protocol(name: str, contributed: Mapping[str, str] | None = None) -> Protocol:
    """A protocol by name, or by the path of a YAML file. contributed: YAML texts of plugins, by id.

    Raises UnknownName with the names that exist.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UnknownName(f"no protocol file {name}", hint="give the path of a YAML file, or the name of a protocol")
        return parse_protocol(path.read_text(encoding="utf-8"), source=name)
    builtin, others = builtin_protocols(), contributed or {}
    if name in builtin:
        return builtin[name]
    for identifier, text in others.items():
        if name in (identifier, identifier.rpartition("/")[2]):
            return parse_protocol(text, source=identifier)
    near = did_you_mean(name, [*builtin, *others, *(identifier.rpartition("/")[2] for identifier in others)])
    raise UnknownName(f"no protocol {name!r}", hint=f"{near} known: {', '.join(sorted([*builtin, *others]))}".strip())
