"""Randomized smoothing (Cohen et al., ICML 2019, arXiv:1902.02918): a majority vote under noise, with a certificate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.stats import beta, binomtest, norm
from torch import Tensor, nn

from rbl_defenses.behind import Step, through
from robustbench_lite import DatasetInfo, randn_like

ABSTAIN = -1
# How much the mean probability counts beside a vote: it decides ties, and gives attacks an order of the classes without votes.
TIES = 1e-3
# Noisy copies of a batch that are looked at together while counting. Fixed, so that an image's draws are its own in any batch.
COPIES = 50


@dataclass(frozen=True, kw_only=True)
class RandomizedSmoothing:
    """The class that the base defense gives most often under N(0, sigma^2) on every pixel; noise is not clipped to [0, 1].

    base: the defense that classifies; the paper's are trained under the same noise. sigma: in units of the pixel range. draws:
    noisy copies in each pass; attacks and the judge see several passes, and their votes together.

    The module has a method ``certify``: see ``Smoothed``.
    """

    base: str = "standard"
    sigma: Annotated[float, Field(gt=0)] = 0.25
    draws: Annotated[int, Field(ge=1)] = 8

    def __call__(self, info: DatasetInfo, base: nn.Module) -> nn.Module:
        """The module; it draws anew in every pass."""
        return Smoothed(base, self.sigma, self.draws)


class Smoothed(nn.Module):
    """A smoothed defense. sigma: of the noise. draws: noisy copies in a pass.

    A pass answers with the logarithms of the shares of votes. ``surrogate`` gives attacks a gradient: that of the mean
    probability over the same copies.

    ``certify(x, n0, n, alpha)`` and ``predict(x, n, alpha)`` are the paper's CERTIFY and PREDICT. They draw from torch's
    global generator, or by example under ``keyed_draws``, and look at 50 copies of the batch at a time.
    """

    def __init__(self, base: nn.Module, sigma: float, draws: int) -> None:
        super().__init__()
        self.base = base
        self.sigma = sigma
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        logits = self._noisy(x, self.draws, self.base)
        votes = _votes(logits).to(x.dtype)
        return torch.logaddexp(votes.log(), _mean(logits) + math.log(TIES)) - math.log(self.draws + TIES)

    def surrogate(self, x: Tensor) -> Tensor:
        """(n, C) logarithms of the mean probability."""
        return _mean(self._noisy(x, self.draws, through(self.base)))

    def certify(self, x: Tensor, n0: int = 100, n: int = 100_000, alpha: float = 1e-3) -> tuple[Tensor, Tensor]:
        """Class (N,) int64 and certified l2 radius (N,) float64 of images (N, C, H, W); class -1 and radius 0 to abstain.

        n0 draws choose the class, n fresh ones bound its probability from below. For each image by itself: with probability at
        least 1 - alpha over the draws it abstains, or the smoothed defense gives this class to every point within the radius.
        """
        chosen = self.counts(x, n0).argmax(1)
        hits = self.counts(x, n).gather(1, chosen[:, None])[:, 0]
        low = torch.from_numpy(lower_bound(hits.cpu().numpy(), n, alpha))
        radius = torch.from_numpy(self.sigma * norm.ppf(low.numpy())).to(x.device)
        sure = (low > 0.5).to(x.device)
        return torch.where(sure, chosen, ABSTAIN), torch.where(sure, radius, 0.0)

    def predict(self, x: Tensor, n: int = 1000, alpha: float = 1e-3) -> Tensor:
        """(N,) int64: the class with most of n votes; -1 where a two-sided test of the two foremost cannot tell them apart.

        Where it answers, it is wrong about the smoothed defense with probability at most alpha.
        """
        votes, order = self.counts(x, n).topk(2)
        pairs = votes.tolist()
        p_values = torch.tensor([binomtest(first, first + second, 0.5).pvalue for first, second in pairs], device=x.device)
        return torch.where(p_values > alpha, ABSTAIN, order[:, 0])

    def counts(self, x: Tensor, n: int) -> Tensor:
        """(N, C) int64: votes among n draws."""
        total: Tensor | None = None
        with torch.no_grad():
            for first in range(0, n, COPIES):
                found = _votes(self._noisy(x, min(COPIES, n - first), self.base))
                total = found if total is None else total + found
        if total is None:
            raise ValueError("n must be at least 1")
        return total

    def _noisy(self, x: Tensor, draws: int, base: Step) -> Tensor:
        """(draws, n, C) logits of noisy copies."""
        copies = x.repeat(draws, 1, 1, 1)
        logits = base(copies + self.sigma * randn_like(copies))
        return logits.view(draws, len(x), -1)


def _votes(logits: Tensor) -> Tensor:
    """(n, C) int64 votes of (draws, n, C) logits."""
    return F.one_hot(logits.argmax(2), logits.shape[2]).sum(0)


def _mean(logits: Tensor) -> Tensor:
    """(n, C) logarithm of the mean probability of (draws, n, C) logits."""
    return logits.log_softmax(2).logsumexp(0) - math.log(len(logits))


def lower_bound(hits: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """The one-sided lower confidence bound of level 1 - alpha for proportions of which ``hits`` of n were observed: exact.

    After Clopper and Pearson, Biometrika 1934.
    """
    return np.where(hits > 0, beta.ppf(alpha, np.maximum(hits, 1), n - hits + 1), 0.0)
