"""The attacks that another attack is made of, as it meets them at run time. See ``composition.py`` for how they are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustbench_lite.errors import BudgetExceeded, PluginError
from robustbench_lite.randomness import seeded_globally

if TYPE_CHECKING:
    from robustbench_lite.randomness import Randomness
    from robustbench_lite.resolve import ResolvedAttack
    from robustbench_lite.target import Target
    from robustbench_lite.threat import Threat


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One attack of an attack that is made of several.

    number: its place among them, from 1, by which finds are credited. id, label, access, goal: as its plugin declared and the
    selector asked. Called as an attack is, on the attack's own target or a selection of it (or on a surrogate)::

        for member in target.members:
            rows = (~target.broken).nonzero()[:, 0]
            member(target.select(rows), x[rows], y[rows], threat, rng.select(rows))
    """

    number: int
    id: str
    label: str
    access: str
    goal: str
    attack: Any = field(repr=False)
    global_rng: bool = False
    shard: int = 0

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        """Run it; what it returns has been shown to the target, which credits it with what it found.

        rng: the composite's own, for the same rows: the member draws from a stream that depends on its id and its number, so
        that neither the other members nor who is left changes its draws. What it raises carries a note with its label.

        Under a query budget, examples that come with more queries left are attacked apart from those with fewer, and where it
        runs out, what was found so far is returned. Raises BudgetExceeded only where no example has a query left.
        """
        inner = target.enter(self)
        if not len(x):
            return x
        stream = rng.child("member", self.id, self.number)
        if inner.budget is not None and bool((inner.queries >= inner.budget).all()):
            raise BudgetExceeded(
                f"{self.label} starts with the query budget of {inner.budget} per example used up",
                rows=tuple(range(len(x))),
                hint="return the points that you have: what was found is kept",
            )
        groups = inner.evenly_spent(torch.arange(len(x), device=x.device))
        if len(groups) == 1:
            points = self._run(inner, x, y, threat, stream)
        else:
            points = x.clone()
            for rows in groups:
                points[rows] = self._run(inner.select(rows), x[rows], y[rows], threat, stream.select(rows))
        inner.show(points)
        return points

    def _run(self, inner: Target, x: Tensor, y: Tensor, threat: Threat, stream: Randomness) -> Tensor:
        try:
            with seeded_globally(self.global_rng, stream.seed_for("shard", self.shard), x.device):
                points = self.attack(inner, x.clone(), y.clone(), threat, stream)
            return one_point_per_row(points, x)
        except BudgetExceeded:
            inner.note("the query budget ended it")
            return inner.best(x)
        except Exception as error:
            error.add_note(f"member {self.label}")
            raise


def one_point_per_row(returned: object, x: Tensor) -> Tensor:
    """What an attack returned for x, without its graph. Raises PluginError where it is not of the shape and dtype of x."""
    if isinstance(returned, Tensor) and returned.shape == x.shape and returned.dtype == x.dtype:
        return returned.detach()
    got = f"{returned.dtype} {tuple(returned.shape)}" if isinstance(returned, Tensor) else type(returned).__name__
    raise PluginError(f"it returned {got} for {x.dtype} {tuple(x.shape)}", hint="an attack returns one point per row of x")


def members_of(attacks: Sequence[ResolvedAttack], shard: int = 0) -> tuple[Member, ...]:
    """Resolved attacks as the members of another, ready to run on a shard."""
    return tuple(
        Member(
            number=number,
            id=found.entry.id,
            label=found.label,
            access=found.declared.access,
            goal=found.declared.goal,
            attack=found.instance,
            global_rng=found.declared.global_rng,
            shard=shard,
        )
        for number, found in enumerate(attacks, 1)
    )
