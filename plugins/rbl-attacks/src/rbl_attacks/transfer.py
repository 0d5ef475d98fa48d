"""Transfer: points crafted on other defenses, and shown to this one (Papernot et al., 2016, arXiv:1605.07277)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robustbench_lite import Randomness, Target, Threat, mean_of_logits


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One point for each example, crafted without the defense: what an attacker achieves who only has other models.

    surrogates: defenses with weights for the data set, attacked together through the mean of their logits. attack: what crafts
    the points; any attack with a fixed budget. It goes on to its last step, since a point that has just fooled its surrogate
    transfers badly.

    Where a surrogate is the defense itself this would be a white-box attack under another name, and is not run.
    """

    surrogates: Annotated[tuple[str, ...], Field(min_length=1)] = ("rbl/standard",)
    attack: str = "rbl/mifgsm"

    def members(self, threat: Threat) -> tuple[str, ...]:
        """What is run on the surrogates."""
        return (self.attack,)

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        (craft,) = target.members
        points = craft(mean_of_logits(target.surrogates), x, y, threat, rng)
        target.labels(points)
        return target.best(points)
