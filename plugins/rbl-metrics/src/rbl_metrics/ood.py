"""Whether a model's scores tell images of its own kind from images of another kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rbl_metrics.detection import Detection, Score, auroc, detection, scores
from robustbench_lite import MeasuredModel, MetricValue, Threat
from robustbench_lite.statistics import bootstrap_interval

TEMPERATURE, EPS = 1000.0, 0.0014  # of ODIN


@dataclass(frozen=True, kw_only=True)
class OutOfDistribution:
    """Area under the ROC curve with which a score tells test images (the positive class) from others.

    datasets: where the others come from, images of the same shape, as many of each; none for ``uniform`` noise, each value
    drawn by itself. score: the largest probability (``msp``), negative ``entropy``, ``energy``, ``max-logit``, the ``margin``
    of the two largest logits, or ``odin`` (Liang et al., arXiv:1706.02690: probability at temperature 1000 after a step of
    0.0014 towards it; needs gradients).
    """

    examples: Annotated[int, Field(ge=2)] = 1000
    datasets: tuple[str, ...] = ()
    score: Score | Literal["odin"] = "msp"

    def measure(self, model: MeasuredModel, threat: Threat | None) -> dict[str, np.ndarray]:
        """One row per image: its score, and which kind it is of: 0 for the test images, then in the order of ``datasets``."""
        kinds = [model.x, *(x for x, _ in model.other_examples(len(model.x)).values())]
        if not self.datasets:
            kinds.append(model.rng.uniform(None, model.x.shape[1:]).to(model.device))
        found = [self._scores(model, x) for x in kinds]
        return {
            "score": np.concatenate(found),
            "kind": np.repeat(np.arange(len(found)), [len(values) for values in found]),
        }

    def _scores(self, model: MeasuredModel, x: Tensor) -> np.ndarray:
        if self.score != "odin":
            return scores(model.logits(x).cpu().numpy(), self.score)
        _, _, grad = model.loss_and_grad(x, _surprise)
        closer = (x - EPS * grad.sign()).clamp(0, 1)
        return scores(model.logits(closer).cpu().numpy() / TEMPERATURE, "msp")

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        """Against all others together."""
        normal, other = arrays["score"][arrays["kind"] == 0], arrays["score"][arrays["kind"] > 0]
        value, n = auroc(normal, other), len(normal) + len(other)
        if min(len(normal), len(other)) < 2:
            return MetricValue(value=value, n=n)
        low, high = bootstrap_interval(auroc, normal, other, paired=False)
        return MetricValue(value=value, low=low, high=high, n=n)


def detections(arrays: Mapping[str, np.ndarray]) -> list[Detection]:
    """All detection figures of each other kind, in the order of ``datasets``, from what the metric measured."""
    normal = arrays["score"][arrays["kind"] == 0]
    others = range(1, int(arrays["kind"].max()) + 1)
    return [detection(normal, arrays["score"][arrays["kind"] == kind]) for kind in others]


def _surprise(logits: Tensor) -> Tensor:
    """-log of the largest probability at ODIN's temperature."""
    return -torch.log_softmax(logits / TEMPERATURE, 1).amax(1)
