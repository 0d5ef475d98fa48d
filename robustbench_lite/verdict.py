"""What a check of a result or of a model found: a red flag, or that there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "warn", "fail", "not-applicable"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One check's finding on one defense.

    check: its name, ``zero-gradients``. outcome: ``fail`` costs a row its rank, ``warn`` does not. evidence: what was seen,
    with figures. advice: what to try. value, threshold: the measured quantity and where the outcome turns, if it is a number.
    """

    check: str
    outcome: Outcome
    evidence: str
    advice: str = ""
    value: float | None = None
    threshold: float | None = None
