"""How much single units answer to single classes (Leavitt and Morcos, arXiv:2003.01262)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rbl_metrics.activations import activations
from robustbench_lite import MeasuredModel, MetricValue, Threat

SMALL = 1e-7  # keeps the index of a unit that never answers at 0


@dataclass(frozen=True, kw_only=True)
class ClassSelectivity:
    """Mean over layers of the mean over units of (mu_max - mu_rest) / (mu_max + mu_rest): 0 for none, 1 for one class each.

    mu_max: the largest mean activation of a class, after the rectifier and averaged over the positions of a feature map;
    mu_rest: the mean over the other classes. Negative parts of smooth rectifiers count as 0. A unit that never answers has 0.
    """

    examples: Annotated[int, Field(ge=2)] = 1000

    def measure(self, model: MeasuredModel, threat: Threat | None) -> dict[str, np.ndarray]:
        """One row per unit: its layer, its index, and whether it never answers. Raises UsageError without rectifiers."""
        y = model.y.cpu().numpy()
        layers, indices, dead = [], [], []
        for number, values in enumerate(activations(model, model.x)):
            means = np.stack([np.maximum(values[y == label], 0).mean(0, dtype=np.float64) for label in np.unique(y)])
            layers.append(np.full(means.shape[1], number))
            indices.append(selectivity(means))
            dead.append(means.max(0) == 0)
        return {"layer": np.concatenate(layers), "selectivity": np.concatenate(indices), "dead": np.concatenate(dead)}

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        """n: the number of units."""
        layer = arrays["layer"]
        means = [arrays["selectivity"][layer == number].mean() for number in np.unique(layer)]
        return MetricValue(value=float(np.mean(means)), n=len(layer))


def selectivity(means: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """(units,) index of each unit from its mean activation per class, (classes, units), at least two classes, from 0 on."""
    found = np.asarray(means, dtype=np.float64)
    largest = found.max(0)
    rest = (found.sum(0) - largest) / (len(found) - 1)
    return np.asarray((largest - rest) / (largest + rest + SMALL))
