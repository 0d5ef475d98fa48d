"""The basic iterative method (Kurakin et al., 2017, arXiv:1607.02533), or I-FGSM, in linf and l2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from rbl_attacks.ascent import Climb
from rbl_attacks.objectives import objective
from rbl_attacks.schedule import Fixed
from robustbench_lite import Randomness, Target, Threat


@dataclass(frozen=True, kw_only=True)
class BIM:
    """PGD from the clean image: steps of one length on the cross-entropy, projected onto ball and box after each.

    steps: gradient steps. step: their length in the threat's norm; None for eps / 4. stop_on_success: what counts as success.
    False, as published: the point after the last step alone, so that an example which was beaten on the way and is classified
    correctly at the end counts as robust. True: the first step that succeeds, where the example leaves; at least as strong,
    and cheaper.

    No random numbers: a gradient of zero moves nothing.
    """

    steps: Annotated[int, Field(ge=1)] = 10
    step: Annotated[float, Field(gt=0)] | None = None
    stop_on_success: bool = False

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example that is never beaten; the judge looks at the last point."""
        return 2 * self.steps + self.stop_on_success

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        seen = target if self.stop_on_success else target.forgetful()
        climb = Climb(seen, x, threat, objective("ce", target), (y,), x)
        last = climb.run(self.steps, self._schedule(threat), look_at_last=self.stop_on_success)
        if self.stop_on_success:
            return target.best(climb.result()[0])
        points = target.best(x)  # of those that were beaten before, as a member of another attack
        points[climb.rows] = last.where(last.isfinite(), climb.x)
        return points

    def _schedule(self, threat: Threat) -> Fixed:
        return Fixed(threat.eps / 4 if self.step is None else self.step, threat.norm)
