"""Square Attack (Andriushchenko et al., 2020, arXiv:1912.00049), and its l1 form (Croce & Hein, 2021, arXiv:2103.01208)."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks.best import best_of
from rbl_attacks.decision import continues
from rbl_attacks.geometry import select
from rbl_attacks.margins import lead
from rbl_attacks.windows import Faces, Masses, NewFaces, Proposals
from robustbench_lite import Randomness, Target, Threat

# Share of the image that a window covers, halved after these iterations (of 10,000).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True, kw_only=True)
class Square:
    """Random search: change a square window, keep the change where the margin falls.

    queries: per example and restart. p_init: share of the image that the first window covers. rescale: fit the schedule of
    window sizes, made for 10,000 queries, to ``queries``, as the authors' own code does; AutoAttack, whose member this is by
    default, does not. Worth setting for few queries. restarts: runs on what is left.

    Every example has its own windows and signs, so that nothing depends on the batch. Windows may touch the last row and
    column (the references' do not). Images of any height and width: where a square does not fit, its long side grows.

    Under linf, a deterministic defense is not asked about a change that changes nothing, nor twice about the same one while
    the point stays where it is: ``queries`` of them are drawn, and on small images far fewer are asked about.
    """

    queries: Annotated[int, Field(ge=1)] = 5000
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.8
    restarts: Annotated[int, Field(ge=1)] = 1
    rescale: bool = False

    def passes(self, num_classes: int) -> int:
        """Forward passes per example that is never beaten, at most."""
        return self.restarts * self.queries

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        def run(number: int, left: Target, rows: Tensor) -> tuple[Tensor, Tensor]:
            return self._search(left, x[rows], y[rows], threat, rng.select(rows).child("restart", number))

        return best_of(range(self.restarts), run, target, x)

    def share(self, query: int) -> float:
        """The share of the image that the window of this query covers."""
        at = query * 10_000 // self.queries if self.rescale else query
        return float(self.p_init / 2 ** bisect.bisect_left(HALVINGS, at))

    def _search(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> tuple[Tensor, Tensor]:
        """One restart on n examples: each one's point with the largest margin of a wrong class, and that margin."""
        kind = Masses if threat.norm != "linf" else Faces if target.stochastic else NewFaces
        proposals: Proposals = kind(x, threat, rng, self.share, self.queries)
        best, best_loss = x.clone(), x.new_full((len(x),), -math.inf)
        left, current, loss, label = torch.arange(len(x), device=x.device), x.clone(), best_loss.clone(), y
        finds = -1
        while True:
            if target.finds != finds or target.budget is not None:
                finds, stays = target.finds, continues(target, threat, left, 1).nonzero()[:, 0]
                if len(stays) < len(left):
                    best[left], best_loss[left] = current, loss
                    left, current, loss, label = select(stays, left, current, loss, label)
                    proposals.keep(stays)
            look = proposals.next(current) if len(left) else None
            if look is None:
                best[left], best_loss[left] = current, loss
                return best, best_loss
            rows, point = look
            asked, held = (left, label) if rows is None else select(rows, left, label)
            seen = lead(target.logits(point, asked), held, target.num_classes)
            better = (seen > (loss if rows is None else loss[rows])).nonzero()[:, 0]
            if len(better):
                went = better if rows is None else rows.index_select(0, better)
                current.index_copy_(0, went, point.index_select(0, better))
                loss.index_copy_(0, went, seen.index_select(0, better))
                proposals.moved(went, current)
