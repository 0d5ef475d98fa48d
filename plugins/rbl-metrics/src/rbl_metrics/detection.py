"""Telling two kinds of inputs apart by a score: in- from out-of-distribution, clean from adversarial. Higher is more normal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rbl_metrics.calibration import logits_of, probabilities
from rbl_metrics.checks import Bools, Floats, beaten, require_attacked, share, stored
from robustbench_lite import CellResult, MetricValue, Threat
from robustbench_lite.statistics import bootstrap_interval

Score = Literal["msp", "entropy", "energy", "max-logit", "margin"]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well a score tells normal inputs, the positive class, from others.

    auroc: probability that a normal input scores higher, ties half. aupr_normal, aupr_other: average precision with either as
    the positive class. fpr95: share of others that pass at ``threshold``, the largest at which 95 % of the normal ones do.
    error: the least mean of the two error rates over thresholds.
    """

    auroc: float
    aupr_normal: float
    aupr_other: float
    threshold: float
    fpr95: float
    error: float


@dataclass(frozen=True, kw_only=True)
class AdversarialDetection:
    """Area under the ROC curve with which a score of the logits tells clean images from the points that beat the defense.

    Clean images of examples that are classified correctly against the points accepted inside the threat. score: the largest
    probability (``msp``), negative ``entropy``, ``energy`` (logsumexp), ``max-logit``, or the ``margin`` of the two largest
    logits. The attack does not know the detector: only one that does says how robust it is (Carlini and Wagner,
    arXiv:1705.07263).
    """

    score: Score = "msp"

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """It is nan where none was beaten. Raises UsageError where nothing is stored, or no logits."""
        normal, other = clean_and_adversarial(cell, threat, self.score)
        if not len(normal) or not len(other):
            return MetricValue(value=math.nan, n=0)
        value = auroc(normal, other)
        if min(len(normal), len(other)) < 2:
            return MetricValue(value=value, n=len(normal) + len(other))
        low, high = bootstrap_interval(auroc, normal, other, paired=False)
        return MetricValue(value=value, low=low, high=high, n=len(normal) + len(other))


@dataclass(frozen=True, kw_only=True)
class UndetectedError:
    """Share of examples that end up misclassified and not rejected by a detector, which rejects low scores.

    false_alarms: the share of the correctly classified clean images that the detector may reject; it sets the threshold. Such
    a rejection costs nothing here. score: as of ``AdversarialDetection``, and as there the
    attack does not know the detector.
    """

    score: Score = "msp"
    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.05

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """Raises UsageError where nothing is stored, or no logits."""
        require_attacked([cell], threat)
        clean, adversarial = (scores(logits_of(cell, threat, on), self.score) for on in ("clean", "adversarial"))
        correct = cell.arrays["clean_correct"]
        if not correct.any():
            return MetricValue(value=math.nan, n=0)
        threshold = np.quantile(clean[correct], self.false_alarms)
        return share(~cell.robust(threat) & (adversarial >= threshold))


def scores(logits: npt.ArrayLike, kind: Score) -> Floats:
    """(n,) how normal each input looks, by its logits (n, K); higher is more normal.

    ``msp``: largest probability (Hendrycks and Gimpel, arXiv:1610.02136). ``energy``: logsumexp (Liu et al., arXiv:2010.03759).
    """
    from scipy.special import logsumexp, xlogy

    found = np.asarray(logits, dtype=np.float64)
    if kind == "energy":
        return np.asarray(logsumexp(found, axis=1))
    if kind == "max-logit":
        return np.asarray(found.max(1))
    if kind == "margin":
        best = np.sort(found, axis=1)
        return np.asarray(best[:, -1] - best[:, -2])
    table = probabilities(found)
    return np.asarray(table.max(1) if kind == "msp" else xlogy(table, table).sum(1))


def detection(normal: npt.ArrayLike, other: npt.ArrayLike) -> Detection:
    """How well scores tell ``normal`` (n,) from ``other`` (m,) inputs; n, m >= 1. scikit-learn computes the areas."""
    from sklearn.metrics import average_precision_score

    inside, outside = np.asarray(normal, dtype=np.float64), np.asarray(other, dtype=np.float64)
    labels, both = np.repeat([1, 0], [len(inside), len(outside)]), np.concatenate([inside, outside])
    threshold = passing_threshold(inside, 0.95)
    thresholds = np.append(np.unique(both), math.inf)
    missed = np.searchsorted(np.sort(inside), thresholds, side="left") / len(inside)
    passed = 1 - np.searchsorted(np.sort(outside), thresholds, side="left") / len(outside)
    return Detection(
        auroc=auroc(inside, outside),
        aupr_normal=float(average_precision_score(labels, both)),
        aupr_other=float(average_precision_score(1 - labels, -both)),
        threshold=threshold,
        fpr95=float((outside >= threshold).mean()),
        error=float(((missed + passed) / 2).min()),
    )


def auroc(normal: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Probability that a score of ``normal`` (n,) exceeds one of ``other`` (m,), ties half; by ranks."""
    from scipy.stats import rankdata

    inside, outside = np.asarray(normal), np.asarray(other)
    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)].sum()
    return float((ranks - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside)))


def passing_threshold(normal: npt.ArrayLike, share: float) -> float:
    """The largest score t of ``normal`` (n,) at which at least ``share`` of them have a score of t or more."""
    ordered = np.sort(np.asarray(normal, dtype=np.float64))
    return float(ordered[len(ordered) - math.ceil(share * len(ordered) - 1e-9)])


def accuracy_at_fitted_threshold(normal: npt.ArrayLike, other: npt.ArrayLike, fitting: npt.ArrayLike) -> float:
    """Accuracy of "normal where the score reaches t", with t fitted on a part of the pairs and used on the rest.

    normal, other: (n,) scores of an example without and with an attack. fitting: (n,) bool, the part on which t is chosen,
    half-way between two scores, for the most right answers; of several, the smallest.
    """
    inside, outside = np.asarray(normal, dtype=np.float64), np.asarray(other, dtype=np.float64)
    chosen: Bools = np.asarray(fitting, dtype=bool)
    known = np.unique([inside[chosen], outside[chosen]])
    candidates = [-math.inf, *((known[:-1] + known[1:]) / 2), math.inf]
    right = [(inside[chosen] >= t).sum() + (outside[chosen] < t).sum() for t in candidates]
    best = candidates[int(np.argmax(right))]
    return float(((inside[~chosen] >= best).mean() + (outside[~chosen] < best).mean()) / 2)


def clean_and_adversarial(cell: CellResult, threat: Threat, kind: Score) -> tuple[Floats, Floats]:
    """Scores of the clean images that are classified correctly, and of the points accepted inside the threat.

    Raises UsageError where logits are not stored, or the attack searched less than ``threat``.
    """
    require_attacked([cell], threat)
    clean, adversarial = stored(cell, "logits_clean", "logits_adv")
    return scores(clean[cell.arrays["clean_correct"]], kind), scores(adversarial[beaten(cell, threat)], kind)
