"""Detection by feature squeezing (Xu, Evans and Qi, 2018, arXiv:1704.01155): how far squeezing moves the prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rbl_defenses.behind import Step
from rbl_defenses.detector import Detector, FittedDetector
from rbl_defenses.feature_squeezing import Bits, NonLocalMeans, Size, bits_for, squeezers
from robustbench_lite import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class FeatureSqueezingDetector(FittedDetector):
    """Refuse what one of several squeezers changes the prediction of: the largest l1 distance between the probabilities.

    bits, median, non_local_means: the squeezers, as of ``feature-squeezing``, each by itself.
    """

    bits: Bits | None = None
    median: Size = 2
    non_local_means: NonLocalMeans | None = None

    def detector(self, info: DatasetInfo, base: nn.Module) -> Detector:
        exact, smooth = (
            squeezers(bits_for(info, self.bits), self.median, self.non_local_means, straight=straight)
            for straight in (False, True)
        )
        return Squeezed(base, exact, smooth)


class Squeezed(Detector):
    """Scores images by max_j ||p(x) - p(squeezer_j(x))||_1, in [0, 2]. smooth: the squeezers with a gradient to follow."""

    def __init__(self, base: nn.Module, exact: list[Step], smooth: list[Step]) -> None:
        super().__init__(base)
        self._exact, self._smooth = exact, smooth

    def answer(self, x: Tensor, base: Step, *, straight: bool) -> tuple[Tensor, Tensor]:
        logits = base(x)
        p = logits.softmax(1)
        moved = [(base(step(x)).softmax(1) - p).abs().sum(1) for step in (self._smooth if straight else self._exact)]
        return logits, torch.stack(moved).amax(0)
