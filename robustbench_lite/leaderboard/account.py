"""All that is to be said of one stored result: numbers from its arrays, and what was asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from robustbench_lite.errors import UsageError
from robustbench_lite.provenance import Origin, status_of
from robustbench_lite.results import REJECTED, SOURCES, CellResult
from robustbench_lite.statistics import median, wilson
from robustbench_lite.threat import Threat


def account(result: CellResult, threat: Threat | None = None, origin: Origin | None = None) -> dict[str, Any]:
    """What is stored of a cell, as JSON: ``asked``, ``status`` and, where examples are stored, ``numbers``.

    threat: within which an example counts as beaten, the result's own where none is given: any size, of a minimal-norm result.
    origin: of an imported result.
    Raises UsageError where the result says nothing about it.
    """
    own = result.threat
    if threat is not None and threat != own and (own.norm != threat.norm or math.isfinite(own.eps)):
        raise UsageError(f"a result under {own} says nothing about {threat}", hint=f"rbl run --threat {threat}")
    limit = threat or own
    return {
        "key": result.key,
        "status": result.status,
        "reason": result.reason,
        "asked": dict(result.spec),
        "n": result.n,
        "attempts": result.attempts,
        "seconds": result.seconds,
        "environment": dict(result.environment),
        "provenance": status_of(origin),
        "origin": None if origin is None else origin.model_dump(mode="json") | {"said": origin.said},
        "at": str(limit) if math.isfinite(limit.eps) else None,
        "numbers": _numbers(result, limit) if result.n else None,
    }


def _numbers(result: CellResult, threat: Threat) -> dict[str, Any]:
    arrays = result.arrays
    correct, robust = arrays["clean_correct"], result.robust(threat)
    beaten = correct & ~robust
    return {
        "clean_accuracy": _share(correct),
        "robust_accuracy": _share(robust),
        "attacked": int(correct.sum()),
        "beaten": arrays["index"][beaten].tolist(),
        "unstable": int(arrays["unstable"].sum()),
        "size": _spread(arrays["size"][beaten]) | {"median_of_attacked": _finite(median(arrays["size"][correct]))},
        "cost": {name: _spread(arrays[name]) for name in ("forwards", "backwards", "queries") if name in arrays},
        "refused": _counts(arrays["rejected"], REJECTED) if "rejected" in arrays else {},
        "found": _counts(arrays["source"], SOURCES) if "source" in arrays else {},
        "members": _members(result, beaten),
        "classes": _classes(arrays, robust),
    }


def _share(right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    low, high = wilson(int(right.sum()), len(right))
    return {"value": float(right.mean()), "low": low, "high": high, "n": len(right)}


def _spread(values: npt.NDArray[Any]) -> dict[str, float | None]:
    """Mean, smallest, median and largest; None for no values."""
    if not len(values):
        return dict.fromkeys(("mean", "min", "median", "max"))
    return {
        "mean": float(values.mean()),
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
    }


def _finite(value: float) -> float | str | None:
    """As JSON has it: ``inf`` as text, nan as None."""
    return None if np.isnan(value) else value if np.isfinite(value) else "inf"


def _counts(codes: npt.NDArray[Any], names: tuple[str, ...]) -> dict[str, int]:
    """How many examples have each code, by name; those that some have."""
    counts: list[int] = np.bincount(codes, minlength=len(names)).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def _members(result: CellResult, beaten: npt.NDArray[np.bool_]) -> dict[str, int]:
    """Who beat how many, of an attack made of others."""
    if "member" not in result.arrays:
        return {}
    labels = ["itself", *(member["label"] for member in result.spec["attack"].get("members", ()))]
    counts = np.bincount(result.arrays["member"][beaten], minlength=len(labels)).tolist()
    return dict(zip(labels, counts, strict=True))


def _classes(arrays: Mapping[str, npt.NDArray[Any]], robust: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Per class: how many examples, how many right and robust, and what the beaten ones are most often taken for."""
    found = []
    for label in np.unique(arrays["y"]).tolist():
        rows = arrays["y"] == label
        taken = arrays["adv_pred"][rows & arrays["clean_correct"] & ~robust] if "adv_pred" in arrays else np.zeros(0, int)
        answers, times = np.unique(taken, return_counts=True)
        found.append(
            {
                "class": label,
                "n": int(rows.sum()),
                "right": int(arrays["clean_correct"][rows].sum()),
                "robust": int(robust[rows].sum()),
                "taken_for": {str(int(answers[i])): int(times[i]) for i in np.argsort(-times, kind="stable")[:3]},
            }
        )
    return found
