"""How close a minimal-norm attack comes to the best of all attacks (AttackBench, arXiv:2404.19460)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from robustbench_lite import CellResult, UsageError
from robustbench_lite.curves import same_examples, smallest_sizes


@dataclass(frozen=True, kw_only=True)
class Optimality:
    """local: (k,) of each attack, 1 for as good as the best of all everywhere, 0 for one that never succeeds; nan where clean
    errors leave nothing to find. radius: the largest of the smallest distances, up to which areas go. unbeaten: examples that
    no attack beat; they count with ``radius``.
    """

    local: npt.NDArray[np.float64]
    radius: float
    unbeaten: int


def local_optimality(distances: npt.ArrayLike, *, compat: bool = False) -> Optimality:
    """Optimality of k attacks on one defense by the smallest distances found, (k, n): 0 for a clean error, inf for none.

    1 - (A(d) - A(d*)) / (clean accuracy * D - A(d*)), where d* is the best distance of each example over the attacks, D the
    largest of them and A(d) the area below the robust accuracy up to D, which is the mean of min(d, D). compat: that area as
    the published evaluation computes it, by the trapezoidal rule through the distinct distances, which is off for few.

    Raises ValueError unless it is a (k, n) table without nan, k, n >= 1.
    """
    table = np.asarray(distances, dtype=np.float64)
    if table.ndim != 2 or not table.size or not (table >= 0).all():
        raise ValueError("optimality needs a (k, n) table of distances from 0 on; use inf for what was not beaten, never nan")
    best = table.min(0)
    radius = float(best[np.isfinite(best)].max(initial=0.0))
    area = _trapezoid if compat else lambda d: float(d.mean())
    least = area(np.minimum(best, radius))
    most = float((best > 0).mean()) * radius
    areas = np.array([area(np.minimum(row, radius)) for row in table])
    with np.errstate(invalid="ignore", divide="ignore"):
        local = np.where(most > least, 1 - (areas - least) / (most - least), np.nan)
    return Optimality(local=local, radius=radius, unbeaten=int(np.isinf(best).sum()))


def attack_optimality(cells: Sequence[CellResult]) -> Optimality:
    """``local_optimality`` of the attacks of ``cells``, in their order: minimal-norm attacks on one defense in one norm.

    Raises UsageError where one has a budget, norms or examples differ, or nothing is stored.
    """
    same_examples(cells)
    for cell in cells:
        if np.isfinite(cell.threat.eps) or cell.threat.norm != cells[0].threat.norm:
            raise UsageError(
                f"{cell.label} was run under {cell.threat}: optimality compares minimal-norm attacks in one norm",
                hint="leave attacks with a budget out",
            )
    distances = np.stack([smallest_sizes([cell]) for cell in cells])
    return local_optimality(np.where(distances.min(0) == 0, 0.0, distances))


def global_optimality(by_defense: Mapping[str, npt.ArrayLike]) -> npt.NDArray[np.float64]:
    """(k,) mean of the local optimality (k,) over defenses."""
    return np.asarray(np.mean([np.asarray(local) for local in by_defense.values()], axis=0))


def _trapezoid(distances: npt.NDArray[np.float64]) -> float:
    x = np.unique(np.append(distances, 0.0))
    robust = [(distances > r).mean() for r in x]
    return float(np.trapezoid(robust, x))
