"""An attack under test: run and judged as the core does, on toy problems, with a note of what went in and came out."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_lite.composition import is_composed, resolve_members, surrogate_selectors
from robustbench_lite.deployed import Deployed
from robustbench_lite.errors import AccessError, BudgetExceeded, RblError
from robustbench_lite.randomness import Randomness
from robustbench_lite.registry import Registry
from robustbench_lite.resolve import ResolvedAttack
from robustbench_lite.runner import run_shard
from robustbench_lite.specs import BALLS, AttackSpec
from robustbench_lite.target import Target
from robustbench_lite.testing.checks import Failed, Skipped, Subject, describe
from robustbench_lite.testing.elsewhere import Elsewhere, MixedDevices
from robustbench_lite.testing.problems import Problem
from robustbench_lite.threat import Threat

SAME = 1e-6  # largest difference between two runs that must agree
BUDGET = 10  # queries per example where the budget is tested
CUT = 500  # queries per example in all runs but the plain ones: enough to see what is wrong, and no more
CUT_STOCHASTIC = 50
LONGEST = 50_000  # forward passes after which a run is taken for endless
MOST = 0.5  # share of examples that must fall at a generous radius


@dataclass(eq=False)
class Run:
    """One run of an attack. proposal: what it returned; error: what it raised; arrays: what the judge made of it.

    given: x and y as the attack left them; state: torch's and Python's global state before and after. mixed: what a GPU would
    have refused, where images were elsewhere.
    """

    problem: Problem
    threat: Threat
    model: nn.Module
    rows: tuple[int, ...]
    proposal: object = None
    error: BaseException | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    unattributed: int = 0
    given: tuple[Tensor, Tensor] | None = None
    state: tuple[dict[str, object], dict[str, object]] = field(default_factory=lambda: ({}, {}))
    mixed: MixedDevices | None = None

    @property
    def attacked(self) -> list[int]:
        """The examples that the attack was given: those that the model classifies correctly."""
        correct = self.arrays.get("clean_correct", np.ones(len(self.rows), dtype=bool))
        return [row for row, right in zip(self.rows, correct, strict=True) if right]

    @property
    def x(self) -> Tensor:
        """The clean images that the attack was given."""
        return self.problem.x[self.attacked]

    @property
    def points(self) -> Tensor:
        """The proposal, where it has the shape of the images; otherwise Skipped: another check says so."""
        if not isinstance(self.proposal, Tensor) or self.proposal.shape != self.x.shape:
            raise Skipped("it does not return images: see the check `shape-and-type`")
        return self.proposal.detach().to("cpu", torch.float32)

    @property
    def success(self) -> np.ndarray:
        """(n,) bool: beaten, by the judge's word."""
        return np.asarray(self.arrays["success"], dtype=bool)

    @property
    def called(self) -> str:
        """``l2:0.5 on a linear model with 3 classes``."""
        return f"{self.threat} on {self.problem.name}"


class _Endless(BaseException):
    """Ends a run that does not end by itself; no Exception, so that no attack catches it by accident."""


class _Counter:
    """A forward hook that lets LONGEST passes through."""

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self, *_: object) -> None:
        self.passes += 1
        if self.passes > LONGEST:
            raise _Endless(f"it has not ended after {LONGEST:,} forward passes")


class _Watched:
    """An attack, with a note of what went in and what came out."""

    def __init__(self, attack: Any, run: Run) -> None:
        self._attack = attack
        self._run = run

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> object:
        run, before = self._run, _global_state()
        run.given = (x, y)
        try:
            run.proposal = self._attack(target, x, y, threat, rng)
        except BudgetExceeded:  # as the core does
            run.proposal = target.best(x)
        finally:
            run.state = (before, _global_state())
            torch.set_grad_enabled(True)
            run.unattributed = target.unattributed
        if isinstance(run.proposal, Tensor):
            run.proposal = run.proposal.clone()
        fits = isinstance(run.proposal, Tensor) and (run.proposal.shape, run.proposal.dtype) == (x.shape, x.dtype)
        return run.proposal if fits else x  # what the core would refuse, checks tell of by their own names


class AttackSubject(Subject):
    """An attack under test. device: where models and images are when it runs."""

    kind: ClassVar[str] = "attack"

    def __init__(self, registry: Registry, selector: str, device: str = "cpu") -> None:
        super().__init__(registry, selector)
        self.device = device
        self._runs: dict[object, Run] = {}

    @property
    def declared(self) -> AttackSpec:
        """The spec of the attack."""
        spec = self.entry.spec
        if not isinstance(spec, AttackSpec):
            raise TypeError(f"{self.entry.id} is not an attack")
        return spec

    @property
    def minimal(self) -> bool:
        """Whether it looks for the smallest perturbation, and is given no radius."""
        return self.declared.goal == "minimal-norm"

    @cached_property
    def base(self) -> Problem:
        """The problem on which most checks are made: linear, with three classes or as many as the attack needs."""
        return Problem.make(max(3, self.declared.min_classes))

    def threats(self, problem: Problem) -> list[Threat]:
        """One threat model for every norm that it declares, generous; without a radius for minimal-norm attacks.

        Of an attack made of others only the norms that all its members have: in the others the planner skips it, and says why.
        """
        norms = [norm for norm in self.declared.norms if self._members_have(norm)]
        if self.minimal:
            return [Threat(norm, float("inf")) for norm in norms if norm in BALLS]
        return [problem.threat(norm) for norm in norms]

    def run(
        self,
        problem: Problem,
        threat: Threat,
        *,
        rows: Sequence[int] | None = None,
        micro_batch: int | None = None,
        budget: int | None = None,
        eot: int = 1,
        stochastic: bool = False,
        elsewhere: bool = False,
        again: int = 0,
    ) -> Run:
        """Run and judge the attack as the core does, on a copy of the problem's model; what it raises is kept in the run.

        rows: the examples to take, in this order. elsewhere: with images that say they are not on the CPU (``Elsewhere``).
        again: another number makes another run of the same.
        """
        chosen = tuple(range(len(problem.x)) if rows is None else rows)
        key = (id(problem), str(threat), chosen, micro_batch, budget, eot, stochastic, elsewhere, again)
        if key not in self._runs:
            self._runs[key] = self._run(problem, threat, chosen, micro_batch, budget, eot, stochastic, elsewhere)
        return self._runs[key]

    def completed(self, problem: Problem, threat: Threat, *, budget: int | None = CUT, **options: Any) -> Run:
        """A run that raised nothing, cut off after ``budget`` queries per example.

        Raises Failed for one that raised, Skipped where even the plainest run does.
        """
        plain = self.run(self.base, self.threats(self.base)[self._norms.index(threat.norm)])
        if plain.error is not None:
            raise Skipped(f"it raises: see the check `{'access' if isinstance(plain.error, AccessError) else 'runs'}`")
        # Queries that belong to nobody are refused under a budget; that is what `queries-attributed` says.
        run = self.run(problem, threat, budget=None if plain.unattributed else budget, **options)
        if run.error is not None:
            raise Failed(f"{run.called}: {error_in_words(run.error)}", fix=hint_for(run.error))
        return run

    def _members_have(self, norm: str) -> bool:
        """Whether the members work in a norm; a member that cannot be had is for the check `runs` to tell."""
        if not is_composed(self.found.instance):
            return True
        try:
            members = resolve_members(self.registry, self._alone, self.base.threat(norm))
        except RblError:
            return True
        return all(norm in member.declared.norms for member in members)

    @property
    def _alone(self) -> ResolvedAttack:
        """The attack without its members."""
        return ResolvedAttack(self.found.entry, self.found.instance, self.found.label)

    @property
    def _norms(self) -> list[str]:
        return [threat.norm for threat in self.threats(self.base)]

    def plain(self) -> list[Run]:
        """The plainest runs, one for every norm."""
        return [self.completed(self.base, threat, budget=None) for threat in self.threats(self.base)]

    def _run(
        self,
        problem: Problem,
        threat: Threat,
        rows: tuple[int, ...],
        micro_batch: int | None,
        budget: int | None,
        eot: int,
        stochastic: bool,
        elsewhere: bool,
    ) -> Run:
        found, device = self.found, "cpu" if elsewhere else self.device
        model = copy.deepcopy(problem.model).to(device)
        run = Run(problem, threat, model, rows)
        model.register_forward_pre_hook(_Counter())
        classes = len(problem.linear.bias)

        there = Elsewhere() if elsewhere else None

        def deploy(module: nn.Module) -> Deployed:
            if there is not None:
                there.move(module)
            return Deployed(module, num_classes=classes, stochastic=stochastic, micro_batch=micro_batch, name=problem.name)

        spec = {
            "protocol": {"eot": eot, "eval_draws": 8, "budget": budget},
            "dataset": {"label": problem.name},
            "attack": {"id": self.entry.id},
            "threat": str(threat),
            "seed": 0,
        }
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # so small a problem is ten times slower on several
        try:
            members = resolve_members(self.registry, self._alone, threat)
            watched = ResolvedAttack(found.entry, _Watched(found.instance, run), found.label, members)
            x, y = (part[list(rows)].to(device) for part in (problem.x, problem.y))
            # Surrogates stand for defenses that may not be there; here the problem's own model takes their place.
            surrogates = [deploy(copy.deepcopy(model)) for _ in surrogate_selectors(found.instance)]
            if there is not None:
                x, y = there.moved(x), there.moved(y)
            with there or nullcontext():
                result = run_shard(spec, deploy(model), watched, x, y, rows, 0, surrogates)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            run.error = error
        else:
            run.error, run.arrays = result.failure, result.arrays
        finally:
            torch.set_num_threads(threads)
        run.mixed = there.refused if there else None
        return run


def error_in_words(error: BaseException) -> str:
    """What a run raised, in a line."""
    return str(error) if isinstance(error, _Endless) else describe(error)


def hint_for(error: BaseException) -> str:
    """What to do about what a run raised."""
    if isinstance(error, _Endless):
        return "end after a number of steps that is a parameter, whatever has been found"
    if isinstance(error, RblError) and error.hint:
        return error.hint
    return "mend the attack, or declare less in its AttackSpec (norms, min_classes)"


def _global_state() -> dict[str, object]:
    legacy: Any = np.random.get_state(legacy=False)
    return {
        "torch's random generator": torch.get_rng_state().numpy().tobytes(),
        "numpy's random generator": (legacy["state"]["key"].tobytes(), legacy["state"]["pos"]),
        "Python's random generator": hash(random.getstate()),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's default type": str(torch.get_default_dtype()),
    }
