"""The judge: decides, afresh and on the defense as deployed, what an attack's points are worth.

Nothing that an attack or a target says is taken over. A point counts when it is a finite float image inside the box and the
threat model and a wrong class leads strictly under the judge's own passes. Everything else is *not adversarial*, and the
reason is kept (``results.REJECTED``).

Per-example arrays of a verdict, all of length n:

==================  ==========================================================================================
index, y            the example's index in the test split, its label
clean_pred          predicted class of the clean image; ``clean_correct``: equal to y
adv_pred            predicted class of the accepted point; ``clean_pred`` where there is none
success             an accepted point exists (only for examples that were correct)
size                its size in the threat's norm; inf where there is none
linf, l2, l1, l0    its distance in each norm; 0 where there is none
entropy             how evenly its squared change is spread over the image: normalised entropy, 1 where it is the same
                    everywhere; 0 where there is none (AMUD of the delayed elastic-net attack)
values, pixels      of how many numbers, and pixels, the image consists
margin_clean/_adv   logit of y minus the best other: positive where correct
p_clean, p_adv      probability of y
logits_clean/_adv   (n, C) logits, of a stochastic defense log-probabilities, with a last column for "refuse" where it
                    has one; up to 100 columns. Beyond that ``top5_clean/_adv`` (n, 5), the best classes, best first,
                    and ``confidence_clean/_adv``, the largest probability
clean_rate/adv_rate share of the judge's passes that answer y: 0 or 1 for a deterministic defense
forwards, backwards, queries   what the attack spent; ``surrogate_forwards``, ``surrogate_backwards``: what it spent on
                    surrogates, where it has some
rejected            why the proposal was not accepted; ``source``: where the accepted point comes from
unstable            the target saw the example beaten and the judge's fresh passes disagree
member              of an attack made of others: the number of the member that found the accepted point, from 1 in the
                    order of the spec's ``members``; 0 for the attack itself, and where there is none
==================  ==========================================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustbench_lite import losses
from robustbench_lite.deployed import Deployed, average, misclassified
from robustbench_lite.errors import CellFailed
from robustbench_lite.ledger import Ledger
from robustbench_lite.results import REJECTED, SOURCES
from robustbench_lite.threat import Threat, in_portions

# With more classes, logits would take more room than everything else that is stored.
MOST_LOGITS = 100

_ACCEPTED, _NOT_MISCLASSIFIED, _NOT_FINITE, _OUTSIDE_BOX, _OUTSIDE_THREAT, _WRONG_SHAPE, _NOTHING, _CLEAN_ERROR, _BAD_LOGITS = (
    range(len(REJECTED))
)
_NONE, _PROPOSED, _SEEN = range(len(SOURCES))


@dataclass(frozen=True)
class Opinion:
    """The judge's own look at n points: averaged scores (n, C) and the share of its passes that answer y (n,)."""

    scores: Tensor
    rate: Tensor


@dataclass(frozen=True)
class Verdict:
    """Per-example arrays (see the module) and the accepted points (n, C, H, W), clean images where there is none."""

    arrays: dict[str, np.ndarray]
    x_adv: Tensor


class Judge:
    """Judges one defense on one shard of examples. ``passes``: draws of a stochastic defense; ``key`` fixes them."""

    def __init__(self, deployed: Deployed, x: Tensor, y: Tensor, ids: Tensor, *, passes: int, key: str) -> None:
        self._deployed = deployed
        self._x, self._y, self._ids = x, y, ids
        self._passes = passes if deployed.stochastic else 1
        self._key = key
        self.clean = self._look(x, torch.arange(len(x), device=x.device), "clean")
        if not bool(self.clean.scores.isfinite().all()):
            bad = int((~self.clean.scores.isfinite().all(1)).sum())
            raise CellFailed(
                f"{deployed.name} gives NaN or infinite logits on {bad} of {len(x)} clean images",
                status="error",
                hint="mend the defense; rbl check NAME shows where its outputs stop being finite",
            )
        self.predicted = self.clean.scores.argmax(1)
        self.correct = self.predicted == y

    def judge(self, ledger: Ledger, proposal: object, threat: Threat, *, members: bool = False) -> Verdict:
        """Judge what an attack proposed for the correct examples, and what its target saw.

        ledger: of the attack on ``x[correct]``. proposal: whatever the attack returned; None where it raised. members: whether
        it is made of other attacks, so that it is told which of them found a point.
        """
        rows = self.correct.nonzero()[:, 0]
        x, y = self._x[rows], self._y[rows]
        rejected, points = _validate(proposal, x, threat)
        seen = ledger.found() & threat.contains(x, ledger.best) & threat.in_box(ledger.best)

        valid = rejected == _ACCEPTED
        adv = self._try(points, rows, valid, "proposed")
        beaten = torch.zeros_like(valid)
        beaten[valid] = misclassified(adv.scores, y[valid], self._deployed.rejects)
        beaten &= (points != x).flatten(1).any(1)  # a stochastic defense's own errors are nobody's find
        finite = torch.ones_like(valid)
        finite[valid] = adv.scores.isfinite().all(1)
        rejected[valid & ~beaten] = _NOT_MISCLASSIFIED
        rejected[valid & ~finite] = _BAD_LOGITS

        size = torch.full((len(rows),), float("inf"), dtype=torch.float64, device=x.device)
        size[beaten] = threat.size(x[beaten], points[beaten])
        source = torch.where(beaten, _PROPOSED, _NONE)
        scores = self.clean.scores[rows].clone()
        rate = self.clean.rate[rows].clone()
        scores[beaten], rate[beaten] = adv.scores[beaten[valid]], adv.rate[beaten[valid]]

        same = valid & (points == ledger.best).flatten(1).all(1)  # a second look at one point would be a second chance
        again = seen & ~same & (~beaten | (ledger.size < size))
        look = self._try(ledger.best, rows, again, "seen")
        won = torch.zeros_like(again)
        won[again] = misclassified(look.scores, y[again], self._deployed.rejects)
        size[won], source[won] = ledger.size[won], _SEEN
        scores[won], rate[won] = look.scores[won[again]], look.rate[won[again]]
        chosen = torch.where(_per_image(won, x), ledger.best, torch.where(_per_image(beaten, x), points, x))
        success = beaten | won
        verdict = self._verdict(rows, chosen, success, size, scores, rate, rejected, source, seen & ~success, ledger)
        if members:
            found = success & (chosen == ledger.best).flatten(1).all(1)
            verdict.arrays["member"] = self._spread(rows, torch.where(found, ledger.member, 0), 0).cpu().numpy()
        if ledger.surrogates:
            for name in ("forwards", "backwards"):
                spent = torch.stack([getattr(each, name) for each in ledger.surrogates]).sum(0)
                verdict.arrays[f"surrogate_{name}"] = self._spread(rows, spent, 0).cpu().numpy()
        return verdict

    def _look(self, x: Tensor, rows: Tensor, purpose: str) -> Opinion:
        start = torch.zeros_like(rows)
        stacked = self._deployed.stack(
            x, passes=self._passes, key=f"{self._key}|judge|{purpose}", ids=self._ids[rows], draw=start
        )
        right = stacked.argmax(2) == self._y[rows][:, None]
        return Opinion(average(stacked), right.float().mean(1))

    def _try(self, points: Tensor, rows: Tensor, chosen: Tensor, purpose: str) -> Opinion:
        return self._look(points[chosen], rows[chosen], purpose)

    def _spread(self, rows: Tensor, values: Tensor, fill: float) -> Tensor:
        """Values of the correct examples among all; ``fill`` for the others."""
        full = torch.full((len(self._y),), fill, dtype=values.dtype, device=values.device)
        full[rows] = values
        return full

    def _verdict(
        self,
        rows: Tensor,
        chosen: Tensor,
        success: Tensor,
        size: Tensor,
        scores: Tensor,
        rate: Tensor,
        rejected: Tensor,
        source: Tensor,
        unstable: Tensor,
        ledger: Ledger,
    ) -> Verdict:
        y = self._y
        x_adv = self._x.clone()
        x_adv[rows] = chosen
        adv_scores = self.clean.scores.clone()
        adv_scores[rows] = scores
        adv_rate = self.clean.rate.clone()
        adv_rate[rows] = rate

        def spread(values: Tensor, fill: float) -> Tensor:
            return self._spread(rows, values, fill)

        columns = {
            "index": self._ids,
            "y": y,
            "clean_pred": self.predicted,
            "clean_correct": self.correct,
            "adv_pred": torch.where(spread(success, False), adv_scores.argmax(1), self.predicted),
            "success": spread(success, False),
            "size": spread(size, float("inf")),
            **{norm: Threat(norm, float("inf")).size(self._x, x_adv) for norm in ("linf", "l2", "l1", "l0")},
            "entropy": torch.where(spread(success, False), energy_entropy(self._x, x_adv), 0.0),
            "values": torch.full_like(y, self._x[0].numel()),
            "pixels": torch.full_like(y, math.prod(self._x.shape[2:])),
            "margin_clean": -losses.margin(self.clean.scores, y),
            "margin_adv": -losses.margin(adv_scores, y),
            "p_clean": self.clean.scores.softmax(1).gather(1, y[:, None])[:, 0],
            "p_adv": adv_scores.softmax(1).gather(1, y[:, None])[:, 0],
            **_answers(self.clean.scores, "clean"),
            **_answers(adv_scores, "adv"),
            "clean_rate": self.clean.rate,
            "adv_rate": adv_rate,
            "forwards": spread(ledger.forwards, 0),
            "backwards": spread(ledger.backwards, 0),
            "queries": spread(ledger.queries, 0),
            "rejected": spread(rejected, _CLEAN_ERROR).to(torch.uint8),
            "source": spread(source, _NONE).to(torch.uint8),
            "unstable": spread(unstable, False),
        }
        return Verdict({name: values.cpu().numpy() for name, values in columns.items()}, x_adv)


def energy_entropy(x: Tensor, x_adv: Tensor) -> Tensor:
    """(n,) float64: entropy of the share that each value has in the squared change, over that of equal shares.

    x, x_adv: (n, ...). Squares are clipped to [1e-8, 1 - 1e-8] first, so that no change at all counts as even.
    """
    if len(portions := in_portions(x, x_adv)) > 1:
        return torch.cat([energy_entropy(*portion) for portion in portions])
    square = (x_adv.double() - x.double()).flatten(1).square().clamp(1e-8, 1 - 1e-8)
    share = square / square.sum(1, keepdim=True)
    return -(share * share.log()).sum(1) / math.log(max(2, square.shape[1]))


def _answers(scores: Tensor, when: str) -> dict[str, Tensor]:
    """What is kept of scores (n, C), so that calibration and detection can be derived from it."""
    if scores.shape[1] <= MOST_LOGITS:
        return {f"logits_{when}": scores}
    return {f"top5_{when}": scores.topk(5).indices, f"confidence_{when}": scores.softmax(1).amax(1)}


def _validate(proposal: object, x: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """Why each proposed point is refused (int64; 0 for none so far), and the points, clean where refused."""
    rejected = torch.full((len(x),), _ACCEPTED, device=x.device)
    if proposal is None:
        return rejected.fill_(_NOTHING), x
    if not isinstance(proposal, Tensor) or proposal.shape != x.shape or proposal.dtype != x.dtype:
        return rejected.fill_(_WRONG_SHAPE), x
    points = proposal.detach().to(x.device)
    rejected[~threat.contains(x, points)] = _OUTSIDE_THREAT
    rejected[~threat.in_box(points)] = _OUTSIDE_BOX
    rejected[~points.flatten(1).isfinite().all(1)] = _NOT_FINITE
    return rejected, torch.where(_per_image(rejected == _ACCEPTED, x), points, x)


def _per_image(mask: Tensor, x: Tensor) -> Tensor:
    return mask.view(-1, *(1,) * (x.dim() - 1))
