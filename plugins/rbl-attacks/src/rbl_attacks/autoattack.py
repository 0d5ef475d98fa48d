"""AutoAttack (Croce & Hein, 2020, arXiv:2003.01690; under l1: 2021, arXiv:2103.01208): an ensemble of attacks in sequence."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from robustbench_lite import Randomness, Target, Threat

# Parameters that no member takes, by version.
UNUSED = {"rand": ("queries",), "custom": ("steps", "queries")}


@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """Each member runs on the examples that the members before it left; the result says which member beat which.

    version: ``standard``: apgd-ce, apgd-t, fab-t and square; under l1 apgd-ce has 5 restarts and apgd-t 5 targets. ``plus``:
    also apgd-dlr and fab, these and apgd-ce with 5 restarts. ``rand``, for stochastic defenses: apgd-ce and apgd-dlr, averaged
    over the protocol's draws. ``custom``: what ``attacks`` names. attacks: selectors, in order, for ``custom``. steps: gradient
    steps of each member's runs. queries: of square. Lower both for a quick look. Where no member takes them (queries with
    ``rand``, both with ``custom``, whose selectors say what to set) they return to their defaults: what has no effect is no
    part of a result's name or key.

    With fewer classes than their losses need, apgd-dlr and apgd-t climb others, and say so in the record of the run.
    """

    version: Literal["standard", "plus", "rand", "custom"] = "standard"
    attacks: tuple[str, ...] = ()
    steps: Annotated[int, Field(ge=1)] = 100
    queries: Annotated[int, Field(ge=1)] = 5000

    def __post_init__(self) -> None:
        if bool(self.attacks) != (self.version == "custom"):
            raise ValueError("attacks=[...] goes with version=custom, and version=custom with attacks=[...]")
        for field in fields(self):
            if field.name in UNUSED.get(self.version, ()):
                object.__setattr__(self, field.name, field.default)

    def members(self, threat: Threat) -> tuple[str, ...]:
        """The attacks in the order in which they run."""
        if self.version == "custom":
            return self.attacks

        def apgd(loss: str, restarts: int) -> str:
            return f"rbl/apgd-{loss}[steps={self.steps},restarts={restarts}]"

        def targeted(name: str, targets: int) -> str:
            return f"rbl/{name}[steps={self.steps},targets={targets}]"

        square = f"rbl/square[queries={self.queries}]"
        if self.version == "rand":
            return (apgd("ce", 1), apgd("dlr", 1))
        if self.version == "plus":
            fab = f"rbl/fab[steps={self.steps},restarts=5]"
            return (apgd("ce", 5), apgd("dlr", 5), fab, square, targeted("apgd-t", 9), targeted("fab-t", 9))
        restarts, targets = (5, 5) if threat.norm == "l1" else (1, 9)
        return (apgd("ce", restarts), targeted("apgd-t", targets), targeted("fab-t", 9), square)

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        for member in target.members:
            rows = (~target.broken).nonzero()[:, 0]
            if not len(rows):
                break
            member(target.select(rows), x[rows], y[rows], threat, rng.select(rows))
        return target.best(x)
