"""Clean and robust accuracy, success rates of attacks, and the worst case over attacks: shares of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rbl_metrics.checks import Bools, beaten, require_attacked, share, stored
from robustbench_lite import CellResult, MetricValue, Threat
from robustbench_lite.curves import same_examples


@dataclass(frozen=True, kw_only=True)
class CleanAccuracy:
    """Share of all n examples that are classified correctly; for a stochastic defense by the mean over the judge's draws.

    top: the label is among so many classes with the largest logits; of equal logits the earlier class comes first.
    """

    top: Annotated[int, Field(ge=1)] = 1

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """The same for every ``threat``. Raises UsageError where nothing is stored, or not enough for ``top``."""
        same_examples([cell])
        return share(cell.arrays["clean_correct"] if self.top == 1 else _among_best(cell, self.top))


@dataclass(frozen=True, kw_only=True)
class RobustAccuracy:
    """Share of all n examples that are classified correctly and that the cell's attack does not beat inside the threat.

    Clean errors count as not robust (Carlini et al., arXiv:1902.06705).
    """

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """Raises UsageError where nothing is stored, or where the attack searched less than ``threat``."""
        require_attacked([cell], threat)
        return share(cell.robust(threat))


@dataclass(frozen=True, kw_only=True)
class SuccessRate:
    """Share of examples on which the attack succeeds inside the threat.

    of: ``correct``, the examples that are classified correctly without an attack, which are the only ones that are attacked;
    or ``all`` n examples, where clean errors count as successes: 1 minus robust accuracy.
    """

    of: Literal["correct", "all"] = "correct"

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """It is nan where no example was correct. Raises UsageError as ``RobustAccuracy``."""
        require_attacked([cell], threat)
        failed = ~cell.robust(threat)
        return share(failed[cell.arrays["clean_correct"]] if self.of == "correct" else failed)


@dataclass(frozen=True, kw_only=True)
class FoolingRate:
    """Share of all n examples whose predicted class the attack changes (Moosavi-Dezfooli et al., arXiv:1610.08401).

    The prediction of a clean error is not attacked, and counts as unchanged.
    """

    def __call__(self, cell: CellResult, threat: Threat) -> MetricValue:
        """Raises UsageError as ``RobustAccuracy``."""
        require_attacked([cell], threat)
        return share(predictions(cell, threat) != cell.arrays["clean_pred"])


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """Share of all n examples that are classified correctly and that no attack beats inside the threat.

    Per example over all attacks, as AutoAttack does (Croce and Hein, arXiv:2003.01690): not the smallest of the attacks'
    robust accuracies, which is never less.
    """

    def __call__(self, cells: Sequence[CellResult], threat: Threat) -> MetricValue:
        """cells: one defense under each attack, the same examples in the same order. Raises UsageError where they are not."""
        return share(worst_case(cells, threat))


def worst_case(cells: Sequence[CellResult], threat: Threat) -> Bools:
    """(n,) whether an example is classified correctly and beaten by no cell inside the threat. Raises as ``WorstCase``."""
    require_attacked(cells, threat)
    return np.asarray(np.logical_and.reduce([cell.robust(threat) for cell in cells]))


def predictions(cell: CellResult, threat: Threat) -> np.ndarray:
    """(n,) predicted class under the attack: that of the accepted point inside the threat, else of the clean image."""
    return np.where(beaten(cell, threat), cell.arrays["adv_pred"], cell.arrays["clean_pred"])


def _among_best(cell: CellResult, top: int) -> Bools:
    y = cell.arrays["y"][:, None]
    if "top5_clean" in cell.arrays and top <= cell.arrays["top5_clean"].shape[1]:
        return np.asarray((cell.arrays["top5_clean"][:, :top] == y).any(1))
    (logits,) = stored(cell, "logits_clean")
    of_label = np.take_along_axis(logits, y, 1)
    before = (logits > of_label) | ((logits == of_label) & (np.arange(logits.shape[1]) < y))
    return np.asarray(before.sum(1) < top)
