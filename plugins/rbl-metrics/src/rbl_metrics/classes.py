"""Accuracy class by class, and which class is taken for which, with and without an attack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rbl_metrics.accuracy import predictions
from rbl_metrics.checks import require_attacked, share
from robustbench_lite import CellResult, MetricValue, Threat


@dataclass(frozen=True, kw_only=True)
class WorstClass:
    """The smallest robust accuracy of a class, over the classes that occur among the examples.

    The smallest of several estimates is low by chance, too; it has no interval.
    """

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """Raises UsageError where nothing is stored, or where the attack searched less than ``threat``."""
        found = class_accuracies(cell, threat)
        return MetricValue(value=min(value.value for value in found.values()), n=cell.n)


def class_accuracies(cell: CellResult, threat: Threat | None = None) -> dict[int, MetricValue]:
    """Robust accuracy of each class that occurs, by its number; clean accuracy without ``threat``. Raises as ``WorstClass``."""
    require_attacked([cell], threat or cell.threat)
    right = cell.arrays["clean_correct"] if threat is None else cell.robust(threat)
    y = cell.arrays["y"]
    return {int(label): share(right[y == label]) for label in np.unique(y)}


def confusion(cell: CellResult, threat: Threat | None = None) -> npt.NDArray[np.int64]:
    """(K, K) how many examples of the class of the row are predicted as the class of the column, under the attack.

    Without ``threat``: without an attack. Of a defense that can refuse, the last column counts the refused, and its row is
    empty. Raises as ``WorstClass``.
    """
    require_attacked([cell], threat or cell.threat)
    y = cell.arrays["y"]
    answered = cell.arrays["clean_pred"] if threat is None else predictions(cell, threat)
    logits = cell.arrays.get("logits_clean")
    classes = logits.shape[1] if logits is not None else int(max(y.max(), answered.max())) + 1
    return np.bincount(y * classes + answered, minlength=classes**2).reshape(classes, classes)
