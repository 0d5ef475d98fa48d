"""Whether a defense knows how sure it may be: calibration errors, likelihood and Brier score, with and without an attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rbl_metrics.checks import Floats, average, beaten, require_attacked, stored
from robustbench_lite import CellResult, MetricValue, Threat
from robustbench_lite.curves import same_examples
from robustbench_lite.statistics import bootstrap_interval

On = Literal["clean", "adversarial"]
Kind = Literal["expected", "maximum", "signed", "adaptive", "classwise"]

TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: (M,) how many examples are in each bin of confidence, how many of them are right, how sure it is.

    accuracy and confidence are means; 0 in an empty bin.
    """

    counts: npt.NDArray[np.int64]
    accuracy: Floats
    confidence: Floats

    @property
    def expected(self) -> float:
        """Expected calibration error: the mean over examples of the gap of their bin (Naeini et al., AAAI 2015)."""
        return float(self.counts @ np.abs(self.accuracy - self.confidence) / self.counts.sum())

    @property
    def maximum(self) -> float:
        """Maximum calibration error: the largest gap of a bin that is not empty."""
        return float(np.abs(self.accuracy - self.confidence).max())

    @property
    def signed(self) -> float:
        """Mean confidence minus accuracy: above 0 for one that is too sure."""
        return float(self.counts @ (self.confidence - self.accuracy) / self.counts.sum())


@dataclass(frozen=True, kw_only=True)
class CalibrationError:
    """How far confidence and accuracy lie apart (Guo et al., arXiv:1706.04599); confidence is the largest probability.

    kind: ``expected`` and ``maximum`` over bins of equal width, ``signed`` without a modulus, ``adaptive`` over bins of equal
    mass (Nixon et al., arXiv:1904.01685), ``classwise`` the mean over classes of the error of their own probability (Kull et
    al., arXiv:1910.12656), without an interval. on: the clean images; or ``adversarial``, the points accepted inside the
    threat, where the others keep their clean image. scaled: after temperature scaling, with the temperature fitted to every
    second example and the error of the others.
    """

    kind: Kind = "expected"
    bins: Annotated[int, Field(ge=1)] = 15
    on: On = "clean"
    scaled: bool = False

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """Raises UsageError where nothing is stored, or no logits: ``classwise`` and ``scaled`` need those of all classes."""
        same_examples([cell])
        y = cell.arrays["y"]
        if self.kind == "classwise" or self.scaled:
            logits = logits_of(cell, threat, self.on)
            if self.scaled:
                fitted, rest = slice(0, None, 2), slice(1, None, 2)
                logits, y = logits[rest] / temperature(logits[fitted], y[fitted]), y[rest]
            if not len(y):
                return MetricValue(value=math.nan, n=0)
            table = probabilities(logits)
            if self.kind == "classwise":
                return MetricValue(value=classwise_error(table, y, self.bins), n=len(y))
            confidence, right = table.max(1), table.argmax(1) == y
        else:
            confidence, right = _confidence(cell, threat, self.on)
        value = self._error(confidence, right)
        if len(y) < 2:
            return MetricValue(value=value, n=len(y))
        low, high = bootstrap_interval(self._error, confidence, right)
        return MetricValue(value=value, low=low, high=high, n=len(y))

    def _error(self, confidence: Floats, right: npt.NDArray[np.bool_]) -> float:
        found = reliability(confidence, right, self.bins, equal_mass=self.kind == "adaptive")
        if self.kind == "maximum":
            return found.maximum
        return found.signed if self.kind == "signed" else found.expected


@dataclass(frozen=True, kw_only=True)
class NegativeLogLikelihood:
    """Mean of -log of the label's probability, in nats. on: as of ``CalibrationError``. A uniform answer has ln K."""

    on: On = "clean"

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """Raises UsageError where nothing is stored, or no logits."""
        return average(surprises(logits_of(cell, threat, self.on), cell.arrays["y"]))


@dataclass(frozen=True, kw_only=True)
class BrierScore:
    """Mean squared distance of the probabilities from the label's unit vector (Brier, 1950), in [0, 2].

    on: as of ``CalibrationError``. A uniform answer has 1 - 1/K. scikit-learn's score for two classes is half of it.
    """

    on: On = "clean"

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """Raises UsageError where nothing is stored, or no logits."""
        return average(squared_errors(probabilities(logits_of(cell, threat, self.on)), cell.arrays["y"]))


def reliability(confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int = 15, *, equal_mass: bool = False) -> Reliability:
    """Sort (n,) confidences in [0, 1] into bins: (k/M, (k+1)/M] with 0 in the first, or M bins of equally many examples."""
    sure, correct = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if equal_mass:
        place = np.empty(len(sure), dtype=np.int64)
        place[np.argsort(sure, kind="stable")] = np.arange(len(sure)) * bins // max(1, len(sure))
    else:
        place = np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), sure, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    per_bin = np.maximum(counts, 1)
    return Reliability(
        counts, np.bincount(place, correct, minlength=bins) / per_bin, np.bincount(place, sure, minlength=bins) / per_bin
    )


def classwise_error(table: Floats, y: npt.ArrayLike, bins: int = 15) -> float:
    """Mean over classes of the expected calibration error of "it is this class". table: (n, K) probabilities, y: (n,)."""
    labels = np.asarray(y)
    return float(np.mean([reliability(table[:, k], labels == k, bins).expected for k in range(table.shape[1])]))


def temperature(logits: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """The T in [0.05, 20] by which logits (n, K) are divided for the least negative log-likelihood of the labels (n,).

    Guo et al., arXiv:1706.04599. The loss has one minimum in log T. Fit it on other examples than those it is used on.
    """
    from scipy.optimize import minimize_scalar

    scores = np.asarray(logits, dtype=np.float64)
    found = minimize_scalar(
        lambda log_t: surprises(scores / math.exp(log_t), y).mean(),
        bounds=tuple(math.log(t) for t in TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(float(found.x))


def surprises(logits: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
    """(n,) -log of the label's probability, logsumexp(z) - z_y in float64; logits: (n, K), y: (n,)."""
    from scipy.special import logsumexp

    scores = np.asarray(logits, dtype=np.float64)
    return np.asarray(logsumexp(scores, axis=1) - np.take_along_axis(scores, np.asarray(y)[:, None], 1)[:, 0])


def squared_errors(table: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
    """(n,) sum over classes of (p_k - [k = y])^2; table: (n, K) probabilities, y: (n,)."""
    found = np.array(table, dtype=np.float64)
    found[np.arange(len(found)), np.asarray(y)] -= 1
    return np.asarray(np.square(found).sum(1))


def brier_parts(table: npt.ArrayLike, y: npt.ArrayLike, bins: int = 10) -> tuple[float, float, float]:
    """Reliability, resolution and uncertainty of the Brier score (Murphy, 1973), summed over classes.

    reliability - resolution + uncertainty is the Brier score of probabilities that are replaced by the mean of their bin.
    table: (n, K) probabilities, y: (n,).
    """
    found, labels = np.asarray(table, dtype=np.float64), np.asarray(y)
    parts = np.zeros(3)
    for k in range(found.shape[1]):
        is_class = labels == k
        diagram, base = reliability(found[:, k], is_class, bins), float(is_class.mean())
        share = diagram.counts / len(labels)
        parts[0] += share @ np.square(diagram.confidence - diagram.accuracy)
        parts[1] += share @ np.square(diagram.accuracy - base)
        parts[2] += base * (1 - base)
    return float(parts[0]), float(parts[1]), float(parts[2])


def probabilities(logits: npt.ArrayLike) -> Floats:
    """Softmax of logits (n, K) in float64."""
    from scipy.special import softmax

    return np.asarray(softmax(np.asarray(logits, dtype=np.float64), axis=1))


def logits_of(cell: CellResult, threat: Threat, on: On) -> Floats:
    """(n, C) logits on the clean images, or under the attack: of the points accepted inside the threat, else clean.

    Raises UsageError where they are not stored, or the attack searched less than ``threat``.
    """
    (clean,) = stored(cell, "logits_clean")
    if on == "clean":
        return clean
    require_attacked([cell], threat)
    (adversarial,) = stored(cell, "logits_adv")
    return np.where(beaten(cell, threat)[:, None], adversarial, clean)


def _confidence(cell: CellResult, threat: Threat, on: On) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """(n,) the largest probability and whether that answer is right, from logits or what is kept of very many classes."""
    if "confidence_clean" not in cell.arrays:
        table = probabilities(logits_of(cell, threat, on))
        return table.max(1), np.asarray(cell.arrays["clean_correct"] if on == "clean" else cell.robust(threat))
    clean, adversarial = stored(cell, "confidence_clean", "confidence_adv")
    if on == "clean":
        return clean, cell.arrays["clean_correct"]
    require_attacked([cell], threat)
    return np.where(beaten(cell, threat), adversarial, clean), cell.robust(threat)
