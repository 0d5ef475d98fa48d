"""The momentum iterative method (Dong et al., 2018, arXiv:1710.06081) in linf and l2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from rbl_attacks.bim import BIM
from rbl_attacks.schedule import Accumulated
from robustbench_lite import Threat


@dataclass(frozen=True, kw_only=True)
class MIFGSM(BIM):
    """BIM along accumulated gradients, which transfer better to other defenses than single ones.

    step: length of a step in the threat's norm; None for eps / steps. decay: by what the sum of the earlier gradients, each
    brought to l1 length 1, is multiplied at each step; 0 for BIM, of which the other parameters are.
    """

    decay: Annotated[float, Field(ge=0)] = 1.0

    def _schedule(self, threat: Threat) -> Accumulated:
        return Accumulated(threat.eps / self.steps if self.step is None else self.step, threat.norm, decay=self.decay)
