"""What a defense's own randomness does: how far single passes scatter, and how results change with a parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from rbl_metrics.checks import beaten, require_attacked
from robustbench_lite import CellResult, Curve, MeasuredModel, MetricValue, Threat, UsageError
from robustbench_lite.statistics import wilson_band


@dataclass(frozen=True, kw_only=True)
class PassSpread:
    """Standard deviation over passes of the clean accuracy of a single pass; 0 for a deterministic defense.

    passes: how many. What is stored also says how accuracy grows when passes are averaged: see ``averaging_curve``.
    """

    examples: Annotated[int, Field(ge=1)] = 1000
    passes: Annotated[int, Field(ge=2)] = 10

    def measure(self, model: MeasuredModel, threat: Threat | None) -> dict[str, np.ndarray]:
        """Per example (n, passes): whether each pass is right, and whether the mean probability of the first k passes is."""
        stacked = model.passes(model.x, self.passes).log_softmax(2)
        y = model.y[:, None]
        single = stacked.argmax(2) == y
        averaged = stacked.logcumsumexp(1).argmax(2) == y
        return {"right": single.cpu().numpy(), "averaged": averaged.cpu().numpy()}

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        return MetricValue(value=float(arrays["right"].mean(0).std(ddof=1)), n=len(arrays["right"]))


def averaging_curve(arrays: Mapping[str, np.ndarray]) -> Curve:
    """Clean accuracy over the number of passes that are averaged, from what ``PassSpread`` measured; Wilson intervals."""
    right = arrays["averaged"].sum(0)
    n = len(arrays["averaged"])
    low, high = wilson_band(right, n)
    return Curve(x=np.arange(1.0, len(right) + 1), y=right / n, low=low, high=high, n=n)


def parameter_trend(cells: Sequence[CellResult], parameter: str, threat: Threat) -> tuple[Curve, Curve]:
    """Clean accuracy, and success rate on what is classified correctly, over a numeric parameter of the defense.

    cells: one attack on variants of one defense that differ in the parameter (``sigma`` of its noise, say), over the same
    examples. Wilson intervals. Raises UsageError where a value is missing, no number or stands twice, or nothing is correct.
    """
    require_attacked(cells, threat)
    by_value: dict[float, CellResult] = {}
    for cell in cells:
        value = cell.spec["defense"].get("parameters", {}).get(parameter)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageError(f"{cell.label}: the defense has no numeric parameter {parameter}")
        if float(value) in by_value:
            raise UsageError(f"{cell.label} and {by_value[float(value)].label} both have {parameter} {value}")
        by_value[float(value)] = cell
    x = np.array(sorted(by_value))
    ordered = [by_value[value] for value in x]
    correct = np.array([int(cell.arrays["clean_correct"].sum()) for cell in ordered])
    if not correct.all():
        raise UsageError("a variant classifies no example correctly, and has no success rate")
    fallen = np.array([int(beaten(cell, threat).sum()) for cell in ordered])
    n = ordered[0].n
    bands = [wilson_band([k], int(of)) for k, of in zip(fallen, correct, strict=True)]
    low, high = wilson_band(correct, n)
    clean = Curve(x=x, y=correct / n, low=low, high=high, n=n)
    success = Curve(
        x=x,
        y=fallen / correct,
        low=np.concatenate([band[0] for band in bands]),
        high=np.concatenate([band[1] for band in bands]),
    )
    return clean, success
