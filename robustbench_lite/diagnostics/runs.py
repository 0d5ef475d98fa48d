"""What checks of results look at: the attacks on one defense, over the same examples. numpy only, no model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from robustbench_lite.diagnostics.catalogue import CHECKS, NotApplicable
from robustbench_lite.results import REJECTED, SOURCES, CellResult
from robustbench_lite.specs import UNRESTRICTED
from robustbench_lite.threat import Threat
from robustbench_lite.verdict import Verdict

Mask = npt.NDArray[np.bool_]

# Gradients that an attack followed on some example, from which on it counts as iterative.
ITERATIVE = 10
# It asks for decisions, and is a search by random points all the same.
RANDOM_POINTS = "rbl/repeated-noise"

_SEEN = SOURCES.index("best seen by the target")
_UNDEFINED = REJECTED.index("the defense's logits are not finite")
# Of every other reason for a refusal it is the attack that is at fault.
_NO_FAULT = tuple(REJECTED.index(why) for why in ("accepted", "not misclassified", "not attacked: clean error")) + (_UNDEFINED,)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One attack on one defense.

    cell: its result, of which the arrays ``index``, ``clean_correct``, ``success``, ``size`` and, of an attack made of others,
    ``member`` are used. steps: how many gradients it followed on an example, or would have, had it not been beaten. unstable:
    examples seen beaten that were not so on the judge's passes. lost: examples that it beat on the way and did not return.
    refused, undefined: (n,) examples that it left, and what it proposed for them broke a rule, or was none of its faults, but
    the defense's logits are not finite there.
    """

    cell: CellResult
    steps: int = 0
    unstable: int = 0
    lost: int = 0
    refused: Mask = field(default_factory=lambda: np.zeros(0, dtype=bool))
    undefined: Mask = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @classmethod
    def of(cls, cell: CellResult, kept: CellResult | None = None) -> Run:
        """The run of a done cell. kept: the same cell with fewer arrays, where the others are to be let go."""
        arrays, spec = cell.arrays, cell.spec
        draws = spec["protocol"].get("eot", 1) if spec["defense"]["stochastic"] else 1
        steps = arrays["backwards"].max(initial=0) / draws if "backwards" in arrays else 0
        planned = spec["attack"].get("parameters", {}).get("steps", 0)  # more than was needed where all were beaten at once
        lost = (arrays["source"] == _SEEN) & (arrays["rejected"] != 0) if "source" in arrays else np.zeros(0)
        why = np.where(arrays["success"], 0, arrays["rejected"]) if "rejected" in arrays else np.zeros(cell.n, dtype=np.uint8)
        return cls(
            cell=kept or cell,
            steps=max(math.ceil(steps), planned if isinstance(planned, int) and steps else 0),
            unstable=int(arrays["unstable"].sum()) if "unstable" in arrays else 0,
            lost=int(lost.sum()),
            refused=~np.isin(why, _NO_FAULT),
            undefined=why == _UNDEFINED,
        )

    @property
    def attack(self) -> Mapping[str, Any]:
        """The attack, as in the cell's spec."""
        spec: Mapping[str, Any] = self.cell.spec["attack"]
        return spec

    @property
    def label(self) -> str:
        """How tables call the attack."""
        return str(self.attack["label"])

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The attack's parameters."""
        found: Mapping[str, Any] = self.attack.get("parameters", {})
        return found

    @property
    def alone(self) -> bool:
        """Whether the attack is neither made of others nor crafted on other defenses."""
        return not self.attack.get("members") and not self.attack.get("surrogates")

    @property
    def white(self) -> bool:
        """Whether it follows gradients of the defense."""
        return self.attack["access"] == "gradient" and not self.attack.get("surrogates")

    @property
    def minimal(self) -> bool:
        """Whether it has no radius, so that it counts at every one."""
        return math.isinf(self.cell.threat.eps)


@dataclass(frozen=True)
class Case:
    """All runs against one defense in one norm, over the same examples. threat: the radius in question."""

    threat: Threat
    runs: tuple[Run, ...]

    @cached_property
    def here(self) -> tuple[Run, ...]:
        """The runs that say something about the threat model."""
        return tuple(run for run in self.runs if run.minimal or run.cell.threat == self.threat)

    @property
    def n(self) -> int:
        """How many examples there are."""
        return self.runs[0].cell.n

    @property
    def stochastic(self) -> bool:
        """Whether the defense is declared stochastic."""
        return bool(self.runs[0].cell.spec["defense"]["stochastic"])

    def robust(self, run: Run) -> Mask:
        """(n,) examples that are right and that the run leaves so, at the threat model (or its own, at another radius)."""
        found: Mask = run.cell.robust(self.threat if run.minimal else run.cell.threat)
        return found

    def beaten(self, run: Run) -> Mask:
        """(n,) examples that are right and that the run beats."""
        found: Mask = run.cell.arrays["clean_correct"] & ~self.robust(run)
        return found

    @cached_property
    def beaten_by(self) -> dict[str, Mask]:
        """(n,) for each access that some attack has: the examples that it beats. Members count by their own access."""
        found: dict[str, Mask] = {}
        for run in self.here:
            for access, beaten in self._by_access(run):
                found[access] = found.get(access, np.zeros(self.n, dtype=bool)) | beaten
        return found

    def _by_access(self, run: Run) -> Iterator[tuple[str, Mask]]:
        beaten, spec = self.beaten(run), run.attack
        members = [] if spec.get("surrogates") else spec.get("members", [])
        if not members or "member" not in run.cell.arrays:
            yield str(spec["access"]), beaten
            return
        found_by = run.cell.arrays["member"]
        yield str(spec["access"]), beaten & (found_by == 0)
        for number, member in enumerate(members, 1):
            yield str(member["access"]), beaten & (found_by == number)

    def require_comparable(self) -> None:
        """Raise NotApplicable where attacks of this threat model have nothing in common: each has limits of its own."""
        if self.threat.norm == UNRESTRICTED:
            raise NotApplicable("unrestricted attacks have limits of their own and are not compared")

    def white_box(self) -> Mask:
        """(n,) what attacks by gradients beat together. Raises NotApplicable where there is no iterative one."""
        self.require_comparable()
        if not any(run.white and run.steps >= ITERATIVE for run in self.here):
            raise NotApplicable(f"no attack followed {ITERATIVE} gradients or more: nothing to compare with")
        return self.beaten_by["gradient"]


def check_results(case: Case) -> tuple[Verdict, ...]:
    """The verdicts on stored results, of every check that has one; ``case`` has at least one run."""
    return tuple(verdict for check in CHECKS if (verdict := check.of_results(case)) is not None)
