"""The average case: how defenses do on images that nobody chose to be hard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rbl_metrics.checks import average, require_attacked
from robustbench_lite import CellResult, MetricValue, Threat, UsageError


@dataclass(frozen=True, kw_only=True)
class AverageCase:
    """Mean over attacks of robust accuracy: for common corruptions the plain mean over kinds and severities.

    Attacks with a parameter ``name``, as corruptions have, are averaged by name first, so that every kind has the same weight;
    any other attack is a kind of its own. A clean error counts as an error under every corruption, as everywhere in this
    benchmark: published accuracies, which count what a corruption happens to set right, are higher by that. Bootstrap interval
    over examples.
    """

    def __call__(self, cells: Sequence[CellResult], threat: Threat) -> MetricValue:
        """cells: one defense, the same examples. Raises UsageError where they are not, or an attack searched less."""
        kinds: dict[str, list[npt.NDArray[np.bool_]]] = {}
        require_attacked(cells, threat)
        for cell in cells:
            kinds.setdefault(kind_of(cell), []).append(cell.robust(threat))
        return average(np.mean([np.mean(robust, axis=0) for robust in kinds.values()], axis=0))


def corruption_errors(cells: Sequence[CellResult], threat: Threat) -> dict[str, npt.NDArray[np.float64]]:
    """Error under each kind of corruption by increasing severity. Raises UsageError for attacks without name and severity."""
    require_attacked(cells, threat)
    found: dict[str, dict[int, float]] = {}
    for cell in cells:
        chosen = cell.spec["attack"].get("parameters", {})
        if not {"name", "severity"} <= chosen.keys():
            raise UsageError(
                f"{cell.label}: the attack has no name and severity", hint="rbl run --attack 'corruption[name=fog,severity=3]'"
            )
        found.setdefault(kind_of(cell), {})[int(chosen["severity"])] = 1 - float(cell.robust(threat).mean())
    return {name: np.array([errors[s] for s in sorted(errors)]) for name, errors in found.items()}


def corruption_error(errors: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """CE of one corruption: the sum of errors over severities, over that of a reference model (arXiv:1903.12261)."""
    return float(np.sum(errors) / np.sum(reference))


def relative_corruption_error(
    errors: npt.ArrayLike, reference: npt.ArrayLike, *, clean: float, reference_clean: float
) -> float:
    """Relative CE: the same of how much each error exceeds the clean error of its model."""
    return float(np.sum(np.asarray(errors) - clean) / np.sum(np.asarray(reference) - reference_clean))


def mean_corruption_error(errors: Mapping[str, npt.ArrayLike], reference: Mapping[str, npt.ArrayLike] | None = None) -> float:
    """mCE: the mean of ``corruption_error`` over corruptions. Without a reference the mean error, not normalised.

    reference: errors of the reference model on the same corruptions and severities: of AlexNet for ImageNet-C, where they are
    published; there is no standard one for CIFAR-10-C. Raises UsageError where a corruption or a severity is missing.
    """
    if reference is None:
        return float(np.mean([np.asarray(values, dtype=np.float64).mean() for values in errors.values()]))
    for name, values in errors.items():
        if np.size(reference.get(name, ())) != np.size(values):
            raise UsageError(f"the reference has no errors of {name} at the same {np.size(values)} severities")
    return float(np.mean([corruption_error(values, reference[name]) for name, values in errors.items()]))


def kind_of(cell: CellResult) -> str:
    """The name of the corruption, or the label of any other attack."""
    return str(cell.spec["attack"].get("parameters", {}).get("name", cell.spec["attack"]["label"]))
