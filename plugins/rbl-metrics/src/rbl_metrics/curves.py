"""Numbers that stand for a whole curve of robust accuracy over the perturbation's size, and curves of other magnitudes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rbl_metrics.checks import require_attacked, stored
from robustbench_lite import CellResult, Curve, MetricValue, Threat, UsageError
from robustbench_lite.curves import mean_accuracy, radius_at, robust_curve, same_examples, smallest_sizes, survival
from robustbench_lite.statistics import bootstrap_interval, bootstrap_median_interval, dkw_half_width, median

Magnitude = Literal["linf", "l2", "l1", "l0", "rms"]


@dataclass(frozen=True, kw_only=True)
class AreaUnderCurve:
    """Mean robust accuracy over radii from 0 to ``upto``: area under the curve divided by ``upto`` (AUAC, Bouniot et al.).

    upto: the radius of the threat model where None. Exact where a minimal-norm attack was run: mean of min(size, upto) / upto,
    with 0 for clean errors; by the trapezoidal rule over the radii that were attacked otherwise, and then an upper bound,
    which more radii make smaller. Bootstrap interval over examples, each of which has an area of its own.
    """

    upto: Annotated[float, Field(gt=0)] | None = None

    def __call__(self, cells: Sequence[CellResult], threat: Threat) -> MetricValue:
        """Over the cells in the norm of ``threat``. Raises UsageError where none searched up to the radius."""
        upto = threat.eps if self.upto is None else self.upto
        chosen = _of_norm(cells, threat)
        curve = robust_curve(chosen, threat.norm, at=[upto])
        value, sizes = mean_accuracy(curve, upto), smallest_sizes(chosen)
        if len(sizes) < 2:
            return MetricValue(value=value, n=len(sizes))
        areas = np.minimum(sizes, upto) / upto
        if not curve.step:
            x = curve.x[curve.x <= upto]
            areas = np.asarray(np.trapezoid((sizes[:, None] > x).astype(float), x, axis=1)) / upto
        low, high = bootstrap_interval(np.mean, areas)
        return MetricValue(value=value, low=low, high=high, n=len(sizes))


@dataclass(frozen=True, kw_only=True)
class HalfAccuracyRadius:
    """The smallest radius at which robust accuracy is at most half of what it could be, in the worst case over attacks.

    of: half of all n examples, or half of the ``clean`` accuracy. Infinite where minimal-norm attacks beat fewer; nan where
    only attacks with a budget were run and none got so far. Exact for minimal-norm attacks, and for half of ``all`` then with
    the bootstrap interval of a median; otherwise a radius that was run.
    """

    of: Literal["all", "clean"] = "all"

    def __call__(self, cells: Sequence[CellResult], threat: Threat) -> MetricValue:
        """Over the cells in the norm of ``threat``. Raises UsageError where there is none, or the examples differ."""
        chosen = _of_norm(cells, threat)
        curve = robust_curve(chosen, threat.norm)
        if curve.step and self.of == "all":
            sizes = smallest_sizes(chosen)
            low, high = bootstrap_median_interval(sizes)
            return MetricValue(value=median(sizes), low=low, high=high, n=len(sizes))
        whole = 1.0 if self.of == "all" else float(curve.y[0])
        return MetricValue(value=radius_at(curve, whole / 2), n=curve.n)


def accuracy_perturbation_curve(
    cells: Sequence[CellResult], magnitude: Magnitude, *, band: Literal["wilson", "dkw"] = "wilson"
) -> Curve:
    """The share of examples with no accepted point whose realised magnitude is at most r (Šircelj and Skočaj).

    Attacks of any norm, budget and goal count by what they did, not by what they were allowed, so that they are comparable.
    magnitude: a norm, or ``rms``, the root mean square of the change. band: Wilson's interval at each point, or that of
    Dvoretzky, Kiefer and Wolfowitz around the curve as a whole.

    Beyond the largest magnitude that an attack aimed at, the curve says what was found, not what there is. Raises UsageError
    for no cells, cells without examples or over different ones.
    """
    if magnitude == "rms":
        same_examples(cells)
        found = np.min([_root_mean_square(cell) for cell in cells], axis=0)
    else:
        found = smallest_sizes(cells, magnitude)
    curve = survival(found)
    if band == "dkw":
        half = dkw_half_width(len(found))
        low, high = np.clip(curve.y - half, 0, 1), np.clip(curve.y + half, 0, 1)
        return Curve(x=curve.x, y=curve.y, low=low, high=high, step=True, n=curve.n)
    return curve


def _of_norm(cells: Sequence[CellResult], threat: Threat) -> list[CellResult]:
    """The cells in the norm of ``threat``; of a union those of the same parts. Raises UsageError where there is none."""
    chosen = [cell for cell in cells if cell.threat.norm == threat.norm]
    if not chosen:
        raise UsageError(f"none of {len(cells)} results is of norm {threat.norm}", hint=f"rbl run --threat {threat}")
    if math.isfinite(threat.eps):
        reaching = [cell for cell in chosen if cell.threat.eps >= threat.eps] or chosen
        require_attacked(reaching, threat)
    return chosen


def _root_mean_square(cell: CellResult) -> np.ndarray:
    l2, values = stored(cell, "l2", "values")
    found = np.where(cell.arrays["success"], l2 / np.sqrt(values), np.inf)
    return np.where(cell.arrays["clean_correct"], found, 0.0)
