"""What is left of a defense by attacks that do not know it, for comparison with the worst case.

*Naive* are, of a wrapper, the attacks that were made only on what it wraps, and of any other defense the plain gradient attacks
that the protocol names. (A gradient attack on a wrapper is not naive here: it sees through stochastic and non-differentiable
parts by itself.) The naive number is the worst case over them, and is shown only where McNemar's paired test finds that all
attacks together beat more: then a paper that had evaluated with the naive attacks would have overstated robustness.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robustbench_lite.errors import RblError
from robustbench_lite.leaderboard.collect import Kept, Meter, Spec
from robustbench_lite.leaderboard.ranking import ALPHA
from robustbench_lite.results import MetricValue
from robustbench_lite.statistics import mcnemar
from robustbench_lite.threat import Threat


def wrapped(defense: Spec) -> list[Spec]:
    """The defenses that a wrapper wraps, and those that these wrap in turn; none of any other defense."""
    bases = [base for base in (defense.get("base"), *defense.get("bases", ())) if base]
    return [spec for base in bases for spec in (base, *wrapped(base))]


def is_naive(attack: Spec, defense: Spec, named: Sequence[str]) -> bool:
    """Whether an attack does not know a defense; both as in a cell's spec. named: ids that the protocol calls naive."""
    inner = wrapped(defense)
    if inner:
        surrogates = attack.get("surrogates", ())
        return bool(surrogates) and all(surrogate in inner for surrogate in surrogates)
    return attack["id"] in named


def naive_accuracy(
    used: Sequence[Kept], defense: Spec, named: Sequence[str], threat: Threat, meter: Meter
) -> MetricValue | None:
    """The worst case over the naive ones of a row's results; None where there is none, or it is no different."""
    cells = [kept.cell for kept in used if is_naive(kept.cell.spec["attack"], defense, named)]
    if not cells:
        return None
    robust = np.logical_and.reduce([cell.robust(threat) for cell in cells])
    if mcnemar(robust, np.logical_and.reduce([kept.cell.robust(threat) for kept in used])) > ALPHA:
        return None
    try:
        return meter(meter.metrics.worst, cells, threat)
    except RblError:  # what keeps the worst case from being computed is said there
        return None
