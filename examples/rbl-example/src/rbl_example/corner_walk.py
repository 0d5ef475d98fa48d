"""Random search over the corners of the linf ball: the worst point of a model that is linear nearby is one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustbench_lite import Randomness, Target, Threat, losses


@dataclass(frozen=True, kw_only=True)
class CornerWalk:
    """Start at a random corner; turn some coordinates round, and stay where the margin of a wrong class has grown.

    queries: per example. share: of the coordinates that the first move turns round; it falls to one coordinate in the end.
    """

    queries: Annotated[int, Field(ge=1)] = 500
    share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example: from it the planner estimates what a run takes."""
        return self.queries

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        shape = x.shape[1:]
        sign = rng.sign(None, shape)
        best = threat.project(x, x + threat.eps * sign)
        margin = losses.margin(target.logits(best), y)
        for query in range(1, self.queries):
            # Beaten examples leave, so that every query is spent on one that still matters.
            left = (~target.broken).nonzero()[:, 0]
            if not len(left):
                break
            # A draw is a function of the example and the draw's number: who else is in the batch does not matter.
            noise = rng.child("turn").uniform(left, shape, draw=query)
            turned = torch.where(noise < self._share(query, noise[0].numel()), -sign[left], sign[left])
            point = threat.project(x[left], x[left] + threat.eps * turned)
            seen = losses.margin(target.logits(point, index=left), y[left])
            better = seen > margin[left]
            kept = left[better]
            sign[kept], best[kept], margin[kept] = turned[better], point[better], seen[better]
        return target.best(best)

    def _share(self, query: int, coordinates: int) -> float:
        """The expected share of coordinates that this query turns round."""
        return max(self.share * (1 - query / self.queries) ** 2, 1 / coordinates)
