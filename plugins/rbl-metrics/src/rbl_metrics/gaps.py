"""What training leaves behind: the gap between training and test, and between the best and the last epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from rbl_metrics.activations import batches
from rbl_metrics.ascent import STEP, sign_ascent
from robustbench_lite import MeasuredModel, MetricValue, Threat
from robustbench_lite.statistics import bootstrap_interval


@dataclass(frozen=True, kw_only=True)
class OverfitGap:
    """Accuracy of the best epoch minus that of the last one, on the examples that training held out (arXiv:2002.11569).

    of: ``robust`` accuracy, by the attack that training watches, or ``clean``. From the model card. Small held-out sets make
    the best of many epochs look good by chance.
    """

    of: Literal["robust", "clean"] = "robust"

    def measure(self, model: MeasuredModel, threat: Threat | None) -> dict[str, np.ndarray]:
        """One row per epoch; nan where training did not watch that accuracy."""
        history = model.card["history"]
        return {name: np.array([float(epoch.get(name, math.nan)) for epoch in history]) for name in ("clean", "robust")}

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        found = arrays[self.of]
        return MetricValue(value=float(found.max() - found[-1]), n=len(found))


@dataclass(frozen=True, kw_only=True)
class GeneralisationGap:
    """Robust accuracy on training examples minus that on test examples, under the same attack.

    examples: of the test examples, and as many of the training split. steps, step (in units of eps), restarts: of sign ascent
    on the cross-entropy in the linf ball, the worst over restarts; without gradients' help it overstates both accuracies.
    """

    examples: Annotated[int, Field(ge=1)] = 500
    steps: Annotated[int, Field(ge=1)] = 20
    step: Annotated[float, Field(gt=0)] = STEP
    restarts: Annotated[int, Field(ge=1)] = 1
    batch: Annotated[int, Field(ge=1)] = 128

    def measure(self, model: MeasuredModel, threat: Threat) -> dict[str, np.ndarray]:
        """One row per image: whether it is a training image, and whether it is robust."""
        x, y = model.training_examples(len(model.x))
        robust = [self._robust(model, *images, threat.eps) for images in ((x, y), (model.x, model.y))]
        return {"training": np.repeat([True, False], [len(x), len(model.x)]), "robust": np.concatenate(robust)}

    def _robust(self, model: MeasuredModel, x: torch.Tensor, y: torch.Tensor, eps: float) -> np.ndarray:
        found = []
        for rows in batches(len(x), x.device, self.batch):
            images, labels = x[rows], y[rows]
            with torch.no_grad():
                right = model.module(images).argmax(1) == labels
            for restart in range(self.restarts):
                start = model.rng.uniform(rows, x.shape[1:], low=-eps, high=eps, draw=restart).to(x.device)
                points, _ = sign_ascent(model.module, images, labels, start, eps=eps, steps=self.steps, step=self.step)
                with torch.no_grad():
                    right &= model.module(points).argmax(1) == labels
            found.append(right.cpu().numpy())
        return np.concatenate(found)

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        """With a bootstrap interval over both samples."""
        seen, unseen = arrays["robust"][arrays["training"]], arrays["robust"][~arrays["training"]]
        value, n = _gap(seen, unseen), len(unseen)
        if min(len(seen), n) < 2:
            return MetricValue(value=value, n=n)
        low, high = bootstrap_interval(_gap, seen, unseen, paired=False)
        return MetricValue(value=value, low=low, high=high, n=n)


def _gap(seen: np.ndarray, unseen: np.ndarray) -> float:
    return float(seen.mean() - unseen.mean())
