"""In how many directions representations vary: on clean, noisy and adversarial images, and what an attack adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rbl_metrics.activations import Pooling, activations
from rbl_metrics.ascent import ascend
from robustbench_lite import MeasuredModel, MetricValue, Threat


@dataclass(frozen=True, kw_only=True)
class RepresentationDimension:
    """Number of principal components that hold ``share`` of the variance of a layer's activations.

    layer: counts the rectified layers, -1 is the last. noise: standard deviation of Gaussian noise that is added to the images,
    which are clipped to [0, 1]. The number depends on n: compare it for the same ``examples``.
    """

    examples: Annotated[int, Field(ge=2)] = 1000
    share: Annotated[float, Field(gt=0, le=1)] = 0.95
    layer: int = -1
    pooling: Pooling = "average"
    noise: Annotated[float, Field(ge=0)] = 0.0

    def measure(self, model: MeasuredModel, threat: Threat | None) -> dict[str, np.ndarray]:
        """One row per layer: components, participation ratio, width and n. Raises UsageError without rectifiers."""
        x = model.x
        if self.noise:
            x = (x + self.noise * model.rng.normal(None, x.shape[1:]).to(x.device)).clamp(0, 1)
        return _spectra(activations(model, x, self.pooling), self.share)

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        return _of_layer(arrays, self.layer)


@dataclass(frozen=True, kw_only=True)
class AdversarialDimension:
    """As the representation's dimension, on adversarial images; or of what the attack changes, h(x') - h(x).

    of: ``difference``, or the ``points`` themselves. steps: of sign ascent on the cross-entropy in the linf ball, from a
    uniform start; every image counts, beaten or not.
    """

    examples: Annotated[int, Field(ge=2)] = 1000
    share: Annotated[float, Field(gt=0, le=1)] = 0.95
    layer: int = -1
    pooling: Pooling = "average"
    of: Literal["difference", "points"] = "difference"
    steps: Annotated[int, Field(ge=1)] = 20

    def measure(self, model: MeasuredModel, threat: Threat) -> dict[str, np.ndarray]:
        """One row per layer: components, participation ratio, width and n. Raises UsageError without rectifiers."""
        found = activations(model, ascend(model, threat.eps, self.steps), self.pooling)
        if self.of == "difference":
            clean = activations(model, model.x, self.pooling)
            found = [after - before for after, before in zip(found, clean, strict=True)]
        return _spectra(found, self.share)

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        return _of_layer(arrays, self.layer)


def spectrum(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """(min(n, width),) variances of (n, width) vectors along their principal directions, largest first, in float64."""
    centred = np.asarray(values, dtype=np.float64)
    centred = centred - centred.mean(0)
    gram = centred @ centred.T if len(centred) <= centred.shape[1] else centred.T @ centred
    return np.asarray(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0) / len(centred))


def components(variances: npt.ArrayLike, share: float = 0.95) -> int:
    """How many of the largest variances make up ``share`` of their sum; 0 where that is 0."""
    found = np.asarray(variances, dtype=np.float64)
    total = found.sum()
    return int(np.searchsorted(np.cumsum(found), share * total * (1 - 1e-12)) + 1) if total > 0 else 0


def participation_ratio(variances: npt.ArrayLike) -> float:
    """(sum v)^2 / sum v^2: k where k variances are equal and the others 0; 0 where all are."""
    found = np.asarray(variances, dtype=np.float64)
    return float(found.sum() ** 2 / np.square(found).sum()) if found.any() else 0.0


def _spectra(layers: list[np.ndarray], share: float) -> dict[str, np.ndarray]:
    spectra = [spectrum(values) for values in layers]
    return {
        "components": np.array([components(each, share) for each in spectra]),
        "participation": np.array([participation_ratio(each) for each in spectra]),
        "width": np.array([values.shape[1] for values in layers]),
        "n": np.array([len(values) for values in layers]),
    }


def _of_layer(arrays: Mapping[str, np.ndarray], layer: int) -> MetricValue:
    found = arrays["components"]
    chosen = layer if -len(found) <= layer < len(found) else -1
    return MetricValue(value=float(found[chosen]), n=int(arrays["n"][chosen]))
