"""What several attacks do together: who adds what to the worst case, and accuracy over a union of threat models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rbl_metrics.accuracy import worst_case
from rbl_metrics.checks import Floats, require_attacked, share
from robustbench_lite import CellResult, MetricValue, Threat, UsageError
from robustbench_lite.curves import same_examples


@dataclass(frozen=True, kw_only=True)
class Union:
    """Accuracy over a union of threat models.

    parts: the worst case inside each, by its text. union: the share that is robust inside all of them. imbalance: the largest
    of the parts minus the smallest.
    """

    parts: Mapping[str, MetricValue]
    union: MetricValue

    @property
    def imbalance(self) -> float:
        """How far the parts lie apart."""
        values = [part.value for part in self.parts.values()]
        return max(values) - min(values)


@dataclass(frozen=True, kw_only=True)
class UnionAccuracy:
    """Share of all n examples that are classified correctly and that no attack beats inside any part of a union.

    For training against several norms at once (Tramèr and Boneh, arXiv:1904.13000; Maini et al., arXiv:1909.04068).
    """

    def __call__(self, cells: Sequence[CellResult], threat: Threat) -> MetricValue:
        """As ``union_accuracy``; under a single ball it is the worst case."""
        if threat.norm != "union":
            return share(worst_case(cells, threat))
        return union_accuracy(cells, threat).union


def union_accuracy(cells: Sequence[CellResult], threat: Threat) -> Union:
    """Accuracy over the union ``threat``, and inside each of its parts.

    cells: one defense, the same examples; attacks on the union itself, and attacks on single norms, which count for their part
    and must have searched all of it. An accepted point of an attack on the union counts inside every part that it lies in.

    Raises UsageError where ``threat`` is no union, a part was attacked by none, or as ``WorstCase``.
    """
    if threat.norm != "union":
        raise UsageError(f"{threat} is no union of threat models", hint="write union:linf:0.03+l2:0.5")
    same_examples(cells)
    whole = [cell for cell in cells if cell.threat.norm == "union"]
    if whole:
        require_attacked(whole, threat)
    robust = np.logical_and.reduce([np.ones(cells[0].n, dtype=bool), *(cell.robust(threat) for cell in whole)])
    parts = {}
    for part in threat.parts:
        own = [cell for cell in cells if cell.threat.norm == part.norm]
        if not own and not whole:
            raise UsageError(f"no attack searched {part}, a part of {threat}", hint=f"rbl run --threat {part}")
        if own:
            require_attacked(own, part)
        inside = [cell.robust(part) for cell in own]
        for cell in whole:
            beaten = cell.arrays["success"] & (cell.arrays[part.norm] <= part.limit)
            inside.append(cell.arrays["clean_correct"] & ~beaten)
        kept = np.logical_and.reduce(inside)
        parts[str(part)] = share(kept)
        robust &= kept
    return Union(parts=parts, union=share(robust))


def marginal_contributions(cells: Sequence[CellResult], threat: Threat) -> Floats:
    """(k,) by how much the worst case would rise without each of the k cells: the share that it alone beats."""
    require_attacked(cells, threat)
    beaten = np.stack([~cell.robust(threat) for cell in cells])
    alone = beaten & (beaten.sum(0) == 1) & cells[0].arrays["clean_correct"]
    return np.asarray(alone.mean(1))


def first_successes(cells: Sequence[CellResult], threat: Threat) -> Floats:
    """(k,) share of all n examples that each cell beats and none before it does, in the order given.

    Clean accuracy minus their sum is the worst case.
    """
    require_attacked(cells, threat)
    left, found = cells[0].arrays["clean_correct"].copy(), []
    for cell in cells:
        beaten = left & ~cell.robust(threat)
        found.append(beaten.mean())
        left &= ~beaten
    return np.array(found)


def pair_gains(cells: Sequence[CellResult], threat: Threat) -> Floats:
    """(k, k) share of all n examples that are robust to the cell of the row and beaten by the cell of the column."""
    require_attacked(cells, threat)
    robust = np.stack([cell.robust(threat) for cell in cells]).astype(np.float64)
    correct = np.stack([cell.arrays["clean_correct"] for cell in cells])
    return np.asarray(robust @ (correct - robust).T / cells[0].n)
