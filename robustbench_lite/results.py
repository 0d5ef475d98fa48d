"""What is stored of one cell, and what is computed from it: numpy arrays and numbers, no torch, no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from robustbench_lite.threat import Threat

# Why the point that an attack proposed was not taken as adversarial: the values of the array ``rejected``.
REJECTED = (
    "accepted",
    "not misclassified",
    "not finite",
    "outside the box",
    "outside the threat model",
    "wrong shape or dtype",
    "nothing proposed",
    "not attacked: clean error",
    "the defense's logits are not finite",
)

# Where the stored point comes from: the values of the array ``source``.
SOURCES = ("none", "proposed by the attack", "best seen by the target")


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """The stored result of one cell: a defense under an attack.

    spec is what was asked (``spec.json``), arrays are the per-example facts, all of length n (see ``judge.py`` for each),
    and status says whether they are whole (``attempt.OUTCOMES``, or ``missing``). seconds is the sum over all attempts.
    """

    key: str
    spec: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    status: str = "done"
    reason: str = ""
    seconds: float = 0.0
    attempts: int = 0
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many examples are stored."""
        return len(self.arrays["index"]) if "index" in self.arrays else 0

    @property
    def label(self) -> str:
        """How messages call it: ``pgd-at under square``; a measurement ``pgd-at by flops``."""
        if "metric" in self.spec:
            return f"{self.spec['defense']['label']} by {self.spec['metric']['label']}"
        return f"{self.spec['defense']['label']} under {self.spec['attack']['label']}"

    @property
    def threat(self) -> Threat:
        """The threat model that was attacked; without a size for minimal-norm attacks."""
        return Threat.parse(self.spec["threat"])

    def robust(self, threat: Threat | None = None) -> np.ndarray:
        """(n,) bool: correct on the clean image and not beaten inside ``threat`` (the cell's own where none is given)."""
        limit = self.threat if threat is None else threat
        beaten = self.arrays["success"] & (self.arrays["size"] <= limit.limit)
        return self.arrays["clean_correct"] & ~beaten


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """A metric's value, its 95 % interval where there is one, and the number of examples behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """A quantity y over x with its 95 % band where there is one: arrays (k,), x strictly increasing, k >= 1.

    step: ``y[i]`` holds from ``x[i]`` up to ``x[i + 1]`` and the last one for good; otherwise y was measured at these x only,
    is joined by straight lines, and says nothing beyond the last. n: the number of examples behind every point.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64] | None = None
    high: npt.NDArray[np.float64] | None = None
    step: bool = False
    n: int | None = None

    def __post_init__(self) -> None:
        shapes = {np.shape(each) for each in (self.x, self.y, self.low, self.high) if each is not None}
        if len(shapes) != 1 or not len(self.x) or np.ndim(self.x) != 1 or (np.diff(self.x) <= 0).any():
            raise ValueError("a curve has x, y and its band as vectors of one length, and its x increase")

    def at(self, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The y at each x, of the same shape; nan outside of what the curve covers."""
        asked = np.asarray(x, dtype=np.float64)
        if not self.step:
            return np.asarray(np.interp(asked, self.x, self.y, left=np.nan, right=np.nan))
        found = self.y[np.maximum(np.searchsorted(self.x, asked, side="right") - 1, 0)]
        return np.where(asked < self.x[0], np.nan, found)
