"""Invariants that hold for every attack of the table, beyond those of the conformance suite.

The suite has: box, ball, finite values, same seed and batch independence, inputs and global state left alone, constant and NaN
models. Here: more radius, more restarts and more queries never help the defense; shifting all logits changes nothing.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from battery import BATTERY
from golden_networks import Affine, fixture
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robustbench_lite import BudgetExceeded, Threat
from robustbench_lite.composition import resolve_members
from robustbench_lite.registry import Registry, load
from robustbench_lite.resolve import ResolvedAttack, resolve_attack
from robustbench_lite.testing import make_target

RADII = {"linf": (0.06, 0.12, 0.2), "l2": (0.4, 0.8, 1.2), "l1": (1.0, 2.0, 4.0), "l0": (2.0, 4.0, 8.0)}
MORE = ("restarts", "queries", "draws")  # each goes on where a smaller number ends


@cache
def registry() -> Registry:
    return load()


@cache
def attack(selector: str) -> ResolvedAttack:
    return resolve_attack(registry(), f"rbl/{selector}")


def norms(selector: str) -> list[str]:
    found = [norm for norm in attack(selector).declared.norms if norm in RADII]
    made_of = {norm: resolve_members(registry(), attack(selector), Threat(norm, 1.0)) for norm in found}
    return [norm for norm in found if all(norm in member.declared.norms for member in made_of[norm])]


@cache
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """The adversarially trained network, and 500 digits that it classifies correctly."""
    model, _, _ = fixture("at")
    bundled = load_digits()
    x, y = torch.from_numpy(bundled.images / 16).float()[:, None], torch.from_numpy(bundled.target).long()
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero()[:500, 0]
    return model, x[right], y[right]


def sizes(instance: Any, selector: str, threat: Threat, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(N,) of the points that it returns, judged afresh; inf where they are not adversarial in the threat model."""
    declared, found = attack(selector).declared, replace(attack(selector), instance=instance)
    made_of = {"members": resolve_members(registry(), found, threat), "surrogates": [fixture("std")[0]]}
    target, rng = make_target(model, x, y, threat, access=declared.access, goal=declared.goal, **made_of)
    x_adv = instance(target, x, y, threat, rng)
    with torch.no_grad():
        beaten = (model(x_adv).argmax(1) != y) & threat.contains(x, x_adv)
    return torch.where(beaten, threat.size(x, x_adv), torch.inf)


def beaten(instance: Any, selector: str, threat: Threat, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(N,) bool, judged afresh; under a minimal-norm attack, beaten at all."""
    return sizes(instance, selector, threat, model, x, y).isfinite()


FIXED = [(s, n) for s in BATTERY for n in norms(s) if attack(s).declared.goal == "fixed-budget"]


# They take seconds for each norm: one does in the usual run.
COSTLY = [(s, n) for s, n in FIXED if s.startswith(("nes", "spsa", "autoattack")) and n != "linf"]


@pytest.mark.parametrize(
    ("selector", "norm"), [pytest.param(*pair, marks=[pytest.mark.slow] * (pair in COSTLY)) for pair in FIXED]
)
def test_a_larger_radius_beats_no_fewer(selector: str, norm: str) -> None:
    """Within a point of 500 examples: a search may take another way at another radius."""
    model, x, y = digits()
    found = [int(beaten(attack(selector).instance, selector, Threat(norm, eps), model, x, y).sum()) for eps in RADII[norm]]
    assert all(larger >= smaller - len(x) // 100 for smaller, larger in pairwise(found)), found


LONGER = [(s, n, f.name) for s, n in FIXED for f in fields(attack(s).instance) if f.name in MORE]


@pytest.mark.parametrize(("selector", "norm", "parameter"), LONGER)
def test_a_longer_run_keeps_what_a_shorter_one_beats(selector: str, norm: str, parameter: str) -> None:
    model, x, y = (part[:100] if isinstance(part, Tensor) else part for part in digits())
    short = attack(selector).instance
    value = getattr(short, parameter)
    if not isinstance(value, int):
        pytest.skip(f"{parameter} is not a number here")
    threat = Threat(norm, RADII[norm][1])
    before = beaten(short, selector, threat, model, x, y)
    after = beaten(replace(short, **{parameter: value + max(1, value // 2)}), selector, threat, model, x, y)
    assert (after | ~before).all()


@pytest.mark.parametrize(("selector", "norm"), [(s, norms(s)[0]) for s in BATTERY if norms(s)])
def test_shifting_all_logits_changes_nothing(selector: str, norm: str) -> None:
    """But for rounding, which may turn single examples of an iterated search."""
    model, x, y = (part[:100] if isinstance(part, Tensor) else part for part in digits())
    minimal = attack(selector).declared.goal == "minimal-norm"
    threat = Threat(norm, float("inf") if minimal else RADII[norm][1])
    plain, shifted = (
        sizes(attack(selector).instance, selector, threat, each, x, y) for each in (model, Affine(model, shift=2.0))
    )
    assert int((plain.isfinite() ^ shifted.isfinite()).sum()) <= 2
    if minimal:
        assert int((~torch.isclose(plain, shifted, rtol=1e-3, atol=0)).sum()) <= 2


@pytest.mark.parametrize("budget", [17, 120])
@pytest.mark.parametrize("selector", [s for s in BATTERY if norms(s)])
def test_under_a_budget_nobody_is_ended_by_the_queries_of_others(selector: str, budget: int) -> None:
    """Examples leave early, or come back for one more run: the budget meets each of them where it would meet it alone."""
    model, x, y = (part[:6] if isinstance(part, Tensor) else part for part in digits())
    found, norm = attack(selector), norms(selector)[0]
    threat = Threat(norm, float("inf") if found.declared.goal == "minimal-norm" else RADII[norm][1])
    made_of = {"members": resolve_members(registry(), found, threat), "surrogates": [fixture("std")[0]]}

    def spent(rows: list[int]) -> tuple[list[int], list[bool]]:
        facts = {"access": found.declared.access, "goal": found.declared.goal, "budget": budget}
        target, rng = make_target(model, x, y, threat, **facts, **made_of)
        part, of = target.select(torch.tensor(rows)), torch.tensor(rows)
        with suppress(BudgetExceeded):
            found.instance(part, x[of], y[of], threat, rng.select(of))
        return part.queries.tolist(), part.broken.tolist()

    alone = [spent([row]) for row in range(len(x))]
    assert spent(list(range(len(x)))) == ([q for (q,), _ in alone], [b for _, (b,) in alone])
