"""What detectors share: a base defense that refuses to answer where a score is above a threshold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.behind import Step, through
from robustbench_lite import DatasetInfo, FittedDefense, UsageError
from robustbench_lite.training import Context

# Most training examples that statistics are taken from, and how many of them are looked at together.
EXAMPLES = 10_000
CHUNK = 500


class Detector(nn.Module, ABC):
    """A base defense with K classes that may refuse: logits (n, K + 1), the last above all others where score > threshold.

    The refusal's logit is max_k z_k + (score - threshold) / spread, where spread is the deviation of clean scores. It has the
    gradient of the score, so that attacks which count a refusal as no success go against the detector as well.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("threshold", torch.ones(()))
        self.register_buffer("spread", torch.ones(()))

    @abstractmethod
    def answer(self, x: Tensor, base: Step, *, straight: bool) -> tuple[Tensor, Tensor]:
        """Logits (n, K) of the base, and scores (n,): the higher, the more suspicious.

        base: the base defense, or its surrogate. straight: whether what has no gradient is to be passed straight through.
        """

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Fill the buffers from training examples (N, C, H, W), (N,); nothing where there is only a threshold."""

    def forward(self, x: Tensor) -> Tensor:
        return self._refusing(*self.answer(x, self.base, straight=False))

    def surrogate(self, x: Tensor) -> Tensor:
        """The same logits, with a gradient to follow."""
        return self._refusing(*self.answer(x, through(self.base), straight=True))

    def scores(self, x: Tensor) -> Tensor:
        """(N,) scores of images, without a graph, in chunks."""
        with torch.no_grad():
            return torch.cat([self.answer(part, self.base, straight=False)[1] for part in torch.split(x, CHUNK)])

    def calibrate(self, scores: Tensor, rate: float) -> None:
        """Set the threshold so that at most a share ``rate`` of these clean scores (N,) is above it."""
        allowed = int(rate * len(scores))
        self.get_buffer("threshold").copy_(scores.sort(descending=True).values[allowed])
        self.get_buffer("spread").copy_(scores.std().clamp(min=1e-6))

    def _refusing(self, logits: Tensor, score: Tensor) -> Tensor:
        excess = (score - self.get_buffer("threshold")) / self.get_buffer("spread")
        return torch.cat([logits, (logits.amax(1) + excess)[:, None]], 1)


@dataclass(frozen=True, kw_only=True)
class FittedDetector(FittedDefense):
    """Base of detectors as defenses.

    base: the defense that classifies. false_positives: share of clean training examples that may be refused.
    """

    base: str = "standard"
    false_positives: Annotated[float, Field(gt=0, lt=1)] = 0.05

    @abstractmethod
    def detector(self, info: DatasetInfo, base: nn.Module) -> Detector:
        """The module around a base that does not refuse, with buffers of the right shapes."""

    def architecture(self, info: DatasetInfo, base: nn.Module) -> nn.Module:
        """Raises UsageError for a base that refuses itself."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            parameters = next(base.parameters(), torch.empty(0))
            columns = base(torch.full((1, *info.shape), 0.5, device=parameters.device)).shape[1]
        if columns != info.num_classes:
            raise UsageError(f"{type(self).__name__} in front of {self.base}, which refuses already", hint="name another base")
        return self.detector(info, base)

    def fit(self, module: nn.Module, context: Context) -> Mapping[str, float]:
        if not isinstance(module, Detector):
            raise TypeError(f"{type(module).__name__} is no Detector")
        module.learn(*context.examples(EXAMPLES))
        clean = module.scores(context.held_out[0])
        module.calibrate(clean, self.false_positives)
        return {"threshold": module.get_buffer("threshold").item(), "mean_score": clean.mean().item()}
