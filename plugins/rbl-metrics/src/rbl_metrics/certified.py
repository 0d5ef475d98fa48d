"""Certified robustness by randomised smoothing (Cohen et al., ICML 2019, arXiv:1902.02918)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from rbl_metrics.activations import batches
from rbl_metrics.checks import average, share
from robustbench_lite import Curve, MeasuredModel, MetricValue, PluginError, Threat
from robustbench_lite.curves import survival

ABSTAIN = -1


@dataclass(frozen=True, kw_only=True)
class _Certified:
    """examples: the first so many. n0: draws by which a class is chosen; n: fresh draws by which its radius is bounded, the
    paper has 100,000. alpha: how often a certificate may be wrong, for each example by itself. batch: images at a time.
    """

    examples: Annotated[int, Field(ge=1)] = 500
    n0: Annotated[int, Field(ge=1)] = 100
    n: Annotated[int, Field(ge=1)] = 1000
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001
    batch: Annotated[int, Field(ge=1)] = 32

    def measure(self, model: MeasuredModel, threat: Threat | None) -> dict[str, np.ndarray]:
        """Per example: the class, -1 where it abstains, whether it is right, and the l2 radius, 0 where it abstains.

        Raises PluginError where ``certify`` of the defense answers something else.
        """
        certify: Any = getattr(model.module, "certify", None)
        if not callable(certify):
            raise PluginError(
                f"{model.name} is declared to certify its answers and its module has no method certify",
                hint="add certify(x, n0, n, alpha) -> (classes, radii)",
            )
        classes, radii = [], []
        for rows in batches(len(model.x), model.device, self.batch):
            with torch.no_grad(), model.keyed(rows):
                found, radius = _checked(certify, model, rows, (self.n0, self.n, self.alpha))
            classes.append(found)
            radii.append(radius)
        answered, radius = np.concatenate(classes), np.concatenate(radii)
        right = answered == model.y.cpu().numpy()
        return {"class": answered, "right": right, "radius": np.where(answered == ABSTAIN, 0.0, radius)}


@dataclass(frozen=True, kw_only=True)
class CertifiedRadius(_Certified):
    """Average certified radius: mean over all examples of the l2 radius, 0 where the answer is wrong or there is none.

    ACR of Zhai et al., arXiv:2001.02378.
    """

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        return average(np.where(arrays["right"], arrays["radius"], 0.0))


@dataclass(frozen=True, kw_only=True)
class CertifiedAccuracy(_Certified):
    """Share of examples that are answered rightly with a certified l2 radius of at least ``radius``."""

    radius: Annotated[float, Field(ge=0)] = 0.25

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        return share(arrays["right"] & (arrays["radius"] >= self.radius))


def certified_curve(arrays: Mapping[str, np.ndarray]) -> Curve:
    """Certified accuracy over the l2 radius, from what either metric measured.

    ``y[i]`` is the share that is right with a radius larger than ``x[i]``: certified accuracy just beyond that radius.
    """
    return survival(np.where(arrays["right"], arrays["radius"], 0.0))


def certified_radius(hits: npt.ArrayLike, n: int, sigma: float, alpha: float = 0.001) -> npt.NDArray[np.float64]:
    """Radius from how many of n noisy draws gave the class that was chosen on others: sigma * Phi^-1(pA); 0 to abstain.

    hits: any shape, 0 to n. pA: the one-sided Clopper-Pearson lower bound of level 1 - alpha, abstaining where it is not above
    one half. sigma: of the noise, in units of the pixel range, not clipped.
    """
    from scipy.stats import norm

    lower = lower_bound(hits, n, alpha)
    return np.where(lower > 0.5, sigma * norm.ppf(np.maximum(lower, 0.5)), 0.0)


def lower_bound(hits: npt.ArrayLike, n: int, alpha: float) -> npt.NDArray[np.float64]:
    """One-sided Clopper-Pearson lower bound of level 1 - alpha for a proportion of which ``hits`` of n were observed."""
    from scipy.stats import beta

    k = np.asarray(hits)
    if ((k < 0) | (k > n)).any():
        raise ValueError(f"hits lie between 0 and {n}")
    return np.where(k > 0, beta.ppf(alpha, np.maximum(k, 1), n - k + 1), 0.0)


def certify(
    counts0: npt.ArrayLike, counts: npt.ArrayLike, sigma: float, alpha: float = 0.001
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """CERTIFY of the paper from votes: classes (m,), -1 to abstain, and radii (m,).

    counts0, counts: (m, K) how many noisy draws of each image the base classifier gave each class, from separate draws.
    """
    first, second = np.asarray(counts0), np.asarray(counts)
    chosen = first.argmax(1)
    hits, total = np.take_along_axis(second, chosen[:, None], 1)[:, 0], second.sum(1)
    if len(set(total.tolist())) > 1:
        raise ValueError("every image has the same number of draws")
    radius = certified_radius(hits, int(total[0]), sigma, alpha) if len(total) else np.zeros(0)
    return np.where(radius > 0, chosen, ABSTAIN), radius


def predict(counts: npt.ArrayLike, alpha: float = 0.001) -> npt.NDArray[np.int64]:
    """PREDICT of the paper: the class with most of the votes (m, K), -1 where a two-sided test cannot tell it from the next."""
    from scipy.stats import binomtest

    votes = np.asarray(counts)
    order = np.argsort(-votes, axis=1, kind="stable")[:, :2]
    foremost = np.take_along_axis(votes, order, 1)
    p = np.array([binomtest(int(a), int(a + b), 0.5).pvalue if a + b else 1.0 for a, b in foremost])
    return np.where(p > alpha, ABSTAIN, order[:, 0])


def _checked(
    call: Callable[..., Any], model: MeasuredModel, rows: torch.Tensor, given: tuple[int, int, float]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    try:
        classes, radii = call(model.x[rows], *given)
        found = np.asarray(torch.as_tensor(classes).cpu().numpy(), dtype=np.int64)
        radius = np.asarray(torch.as_tensor(radii).cpu().numpy(), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PluginError(f"certify of {model.name} failed: {error}", hint="it gives (classes, radii)") from error
    if found.shape != (len(rows),) or radius.shape != (len(rows),) or not (radius >= 0).all():
        raise PluginError(
            f"certify of {model.name} gave classes {found.shape} and radii {radius.shape} for {len(rows)} images",
            hint="give a class and a radius from 0 on for each image",
        )
    return found, radius
