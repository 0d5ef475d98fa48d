"""How fast a network's answers can change near an image: estimates from gradients, not bounds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from rbl_metrics.checks import average
from robustbench_lite import MeasuredModel, MetricValue, Threat, UsageError

DUAL = {"linf": 1, "l2": 2}  # the norm of the gradient that belongs to a distance
SHAPES = (0.1, 1.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # starts of the fit
LEAST_P = 0.001  # below, the fit is not trusted


@dataclass(frozen=True, kw_only=True)
class LocalLipschitz:
    """Largest gradient norm of the margin, z_y minus the best other logit, at points in the ball of the threat model.

    A lower bound of the local Lipschitz constant; the mean over examples. samples: points per example, the image and uniform
    ones; gradients in the dual norm.
    """

    examples: Annotated[int, Field(ge=1)] = 256
    samples: Annotated[int, Field(ge=1)] = 32

    def measure(self, model: MeasuredModel, threat: Threat) -> dict[str, np.ndarray]:
        """Per example: the largest norm."""
        rows = torch.arange(len(model.x), device=model.device)
        largest = torch.zeros(len(rows), device=model.device)
        for draw in range(self.samples):
            points = model.x if draw == 0 else in_ball(model, rows, threat.norm, threat.eps, draw)
            _, _, grad = model.loss_and_grad(points, _margin, model.y)
            largest = torch.maximum(largest, grad.flatten(1).norm(p=DUAL[threat.norm], dim=1))
        return {"norm": largest.cpu().numpy()}

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        return average(arrays["norm"].astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class Clever:
    """CLEVER (Weng et al., ICLR 2018, arXiv:1801.10578): an estimate of the smallest perturbation, the mean over examples.

    Of each other class the margin, divided by an extreme-value estimate of its local Lipschitz constant from the largest
    gradient norms of ``batches`` batches of ``samples`` uniform points within ``radius``; the smallest over classes, at most
    ``radius``. Over the examples classified correctly. Not a bound: networks without useful gradients have large ones
    (Goodfellow, arXiv:1804.07870). The paper has 500 batches of 1024. norm: of the distance.
    """

    examples: Annotated[int, Field(ge=1)] = 16
    batches: Annotated[int, Field(ge=2)] = 50
    samples: Annotated[int, Field(ge=1)] = 128
    radius: Annotated[float, Field(gt=0)] = 5.0
    norm: str = "l2"

    def measure(self, model: MeasuredModel, threat: Threat | None) -> dict[str, np.ndarray]:
        """Per example: the score, 0 for a clean error. Raises UsageError for a norm other than linf and l2."""
        if self.norm not in DUAL:
            raise UsageError(f"CLEVER measures in {' or '.join(DUAL)}, not in {self.norm!r}", hint="clever[norm=linf]")
        logits = model.logits(model.x).double()
        classes = model.info.num_classes
        right = logits[:, :classes].argmax(1) == model.y
        scores = np.zeros(len(model.x))
        for row in right.nonzero()[:, 0].tolist():
            label = int(model.y[row])
            others = [k for k in range(classes) if k != label]
            maxima = self._maxima(model, row, others)
            margins = (logits[row, label] - logits[row, others]).cpu().numpy()
            estimates = [clever_score(float(m), maxima[:, i], self.radius) for i, m in enumerate(margins)]
            scores[row] = min(estimates)
        return {"score": scores, "right": right.cpu().numpy()}

    def _maxima(self, model: MeasuredModel, row: int, others: list[int]) -> npt.NDArray[np.float64]:
        """(batches, K - 1) the largest gradient norm of each batch, for the margin to each other class."""
        index = torch.full((self.samples,), row, device=model.device)
        labels = model.y[index]
        found = np.zeros((self.batches, len(others)))
        for number in range(self.batches):
            draws = torch.arange(self.samples, device=model.device) + 1 + number * self.samples
            points = in_ball(model, index, self.norm, self.radius, draws)
            for i, other in enumerate(others):
                wanted = torch.full_like(labels, other)
                _, _, grad = model.loss_and_grad(points, _lead, labels, wanted, index=index)
                found[number, i] = float(grad.flatten(1).norm(p=DUAL[self.norm], dim=1).max())
        return found

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        """Mean over the examples classified correctly; nan for none."""
        return average(arrays["score"][arrays["right"]])


def clever_score(margin: float, maxima: npt.ArrayLike, radius: float) -> float:
    """The margin over L, at most ``radius``, at least 0; L by ``extreme_value`` of the largest gradient norms of batches."""
    constant = extreme_value(maxima)
    if margin <= 0:
        return 0.0
    return min(margin / constant, radius) if constant > 0 else radius


def extreme_value(maxima: npt.ArrayLike) -> float:
    """The upper end of the reverse Weibull distribution that fits batch maxima (m,) best, by maximum likelihood.

    Of fits from several shapes that with the largest p-value of a Kolmogorov-Smirnov test. The largest of the maxima where they
    are all the same, or no fit passes the test.
    """
    from scipy.stats import kstest, weibull_max

    found = np.asarray(maxima, dtype=np.float64)
    largest = float(found.max())
    if np.ptp(found) <= 1e-6 * max(abs(largest), 1e-300):
        return largest
    scaled = found / largest
    best, location = LEAST_P, 1.0
    for shape in SHAPES:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                fitted = weibull_max.fit(scaled, shape, loc=1.0, scale=max(float(np.std(scaled)), 1e-6))
                p = float(kstest(scaled, "weibull_max", args=fitted).pvalue)
            except (RuntimeError, ValueError, FloatingPointError):  # this start leads nowhere
                continue
        if p > best and np.isfinite(fitted[1]) and fitted[1] >= 1.0 - 1e-9:
            best, location = p, float(fitted[1])
    return location * largest


def in_ball(model: MeasuredModel, rows: Tensor, norm: str, radius: float, draw: int | Tensor) -> Tensor:
    """Uniform points in the linf or l2 ball around the images of ``rows`` (m,), which may repeat, clipped to the box."""
    shape = model.x.shape[1:]
    size = int(np.prod(shape))
    noise = model.rng.select(rows)
    if norm == "linf":
        return (model.x[rows] + noise.uniform(None, shape, low=-radius, high=radius, draw=draw).to(model.device)).clamp(0, 1)
    direction = noise.normal(None, shape, draw=draw).to(model.device)
    length = noise.child("length").uniform(None, (1, 1, 1), draw=draw).to(model.device).pow(1 / size)
    unit = direction / direction.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
    points: Tensor = model.x[rows] + radius * length * unit
    return points.clamp(0, 1)


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    others = logits.scatter(1, y[:, None], -torch.inf)
    return torch.sub(logits.gather(1, y[:, None])[:, 0], others.amax(1))


def _lead(logits: Tensor, y: Tensor, other: Tensor) -> Tensor:
    return torch.sub(logits.gather(1, y[:, None])[:, 0], logits.gather(1, other[:, None])[:, 0])
