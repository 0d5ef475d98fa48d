"""Robust accuracy over the size of the perturbation, from stored results: one curve instead of one number.

The smallest accepted point of each example over all cells decides, so that what one attack broke at a small size never
counts as robust at a larger one. Minimal-norm attacks answer for every size, and give the exact step function; attacks
with a fixed budget answer for the budgets at which they were run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from robustbench_lite.errors import UsageError
from robustbench_lite.results import CellResult, Curve
from robustbench_lite.statistics import wilson_band

Floats = npt.NDArray[np.float64]


def robust_curve(cells: Sequence[CellResult], norm: str, *, at: Sequence[float] = ()) -> Curve:
    """Robust accuracy over the radius, worst case per example over the cells of ``norm``, with pointwise Wilson intervals.

    cells: one defense under one or more attacks, over the same examples; those of other norms are passed over. ``y[i]`` is
    the share of examples that are classified correctly and have no accepted point within ``x[i]``; ``x[0]`` is 0, and y
    there is the clean accuracy. A step function where a minimal-norm attack is among the cells; otherwise known at the
    radii that were attacked, where points found with smaller budgets count too, and ``at`` further ones below the largest.

    Raises UsageError where no cell is of this norm, nothing is stored, or the examples differ.
    """
    chosen = [cell for cell in cells if cell.threat.norm == norm]
    if not chosen:
        raise UsageError(f"none of the {len(cells)} results is of norm {norm}", hint=f"rbl run --threat {norm}:EPS")
    radii = smallest_sizes(chosen)
    budgets = sorted({cell.threat.eps for cell in chosen})
    if math.inf in budgets:
        return survival(radii)
    x = np.unique([0.0, *budgets, *(radius for radius in at if 0 <= radius <= budgets[-1])])
    robust = (radii[None, :] > x[:, None]).sum(1)
    low, high = wilson_band(robust, len(radii))
    return Curve(x=x, y=robust / len(radii), low=low, high=high, n=len(radii))


def smallest_sizes(cells: Sequence[CellResult], distance: str = "size") -> Floats:
    """(n,) size of the smallest accepted point of each example over cells of one defense: 0 for a clean error, inf for none.

    distance: ``size``, in the norm that each cell was attacked in; or ``linf``, ``l2``, ``l1``, ``l0`` to measure all
    alike. A size that exceeds its cell's radius by rounding counts as that radius.

    Raises UsageError for no cells, cells without examples, or over different ones.
    """
    same_examples(cells)
    found = np.full(cells[0].n, np.inf)
    for cell in cells:
        measured = cell.arrays[distance].astype(np.float64)
        if distance in ("size", cell.threat.norm) and math.isfinite(cell.threat.eps):
            measured = np.where(measured <= cell.threat.limit, np.minimum(measured, cell.threat.eps), measured)
        found = np.minimum(found, np.where(cell.arrays["success"], measured, np.inf))
        found[~cell.arrays["clean_correct"]] = 0.0
    return found


def same_examples(cells: Sequence[CellResult]) -> None:
    """Raise UsageError unless there are cells, each with examples, over the same examples in the same order."""
    if not cells:
        raise UsageError("no results were given", hint="rbl run computes what is missing")
    for cell in cells:
        if cell.n == 0:
            raise UsageError(
                f"no examples are stored for {cell.label} ({cell.status})", hint="rbl run computes what is missing"
            )
        if not np.array_equal(cell.arrays["index"], cells[0].arrays["index"]):
            raise UsageError(
                f"{cell.label} and {cells[0].label} were judged on different examples",
                hint="run both with the same protocol and --n",
            )


def survival(sizes: npt.ArrayLike) -> Curve:
    """The share of ``sizes`` (n,) that exceed r, for every r >= 0: a step function with pointwise Wilson intervals.

    Sizes of 0 (clean errors) count nowhere, infinite ones (not beaten) everywhere. Raises ValueError for none, nan or below 0.
    """
    ordered = np.sort(np.asarray(sizes, dtype=np.float64))
    if ordered.ndim != 1 or not len(ordered) or not (ordered >= 0).all():
        raise ValueError("a survival curve needs a vector of sizes from 0 on; use inf for what was not beaten, never nan")
    x = np.union1d([0.0], ordered[np.isfinite(ordered)])
    above = len(ordered) - np.searchsorted(ordered, x, side="right")
    low, high = wilson_band(above, len(ordered))
    return Curve(x=x, y=above / len(ordered), low=low, high=high, step=True, n=len(ordered))


def mean_accuracy(curve: Curve, upto: float) -> float:
    """Area under an accuracy curve from 0 to ``upto``, divided by ``upto`` (AUAC of Bouniot et al.): 1 for never beaten.

    Exact for a step function, where it is the mean of min(size, upto) / upto; by the trapezoidal rule otherwise.
    Raises UsageError where the curve does not start at 0 or has no point at ``upto``.
    """
    if not 0 < upto < math.inf:
        raise UsageError(f"accuracy is averaged over radii from 0 to a finite one above 0, not to {upto}")
    if curve.x[0] != 0 or not (curve.step or (curve.x == upto).any()):
        raise UsageError(
            f"the area up to {upto:g} needs accuracies at 0 and at {upto:g}; the curve has {curve.x[0]:g} to {curve.x[-1]:g}",
            hint="run an attack at that radius, or a minimal-norm attack",
        )
    inside = curve.x <= upto
    x, y = curve.x[inside], curve.y[inside]
    area = np.diff(np.append(x, upto)) @ y if curve.step else np.trapezoid(y, x)
    return float(area) / upto


def radius_at(curve: Curve, accuracy: float) -> float:
    """The smallest x of the curve at which y is at most ``accuracy``.

    Exact for a step function; otherwise the smallest radius that was measured. Where y stays above it is inf for a step
    function, and nan otherwise, since nobody looked further.
    """
    reached = curve.y <= accuracy + 1e-12
    if reached.any():
        return float(curve.x[reached.argmax()])
    return math.inf if curve.step else math.nan
