"""The baseline of all detectors (Hendrycks and Gimpel, 2017, arXiv:1610.02136): refuse where the defense is not confident."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from rbl_defenses.behind import Step
from rbl_defenses.detector import Detector, FittedDetector
from robustbench_lite import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class MaxSoftmax(FittedDetector):
    """Refuse where the largest probability is low."""

    def detector(self, info: DatasetInfo, base: nn.Module) -> Detector:
        return Unsure(base)


class Unsure(Detector):
    """Scores images by the logarithm of the odds against the predicted class: 1 - max_k p_k, without its rounding."""

    def answer(self, x: Tensor, base: Step, *, straight: bool) -> tuple[Tensor, Tensor]:
        logits = base(x)
        top = logits.topk(1, dim=1)
        others = logits.scatter(1, top.indices, -float("inf")).logsumexp(1)
        return logits, others - top.values[:, 0]
