"""AutoAttack: its sequences, its strength beside the published figures, and who beat what."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import pytest
import torch
from golden_networks import EXAMPLE, fixture
from linear_problem import distances, problem
from torch import Tensor, nn

from rbl_attacks.autoattack import AutoAttack
from robustbench_lite import BudgetExceeded, InvalidParameter, Randomness, Target, Threat
from robustbench_lite.composition import resolve_members
from robustbench_lite.registry import Registry, load
from robustbench_lite.resolve import ResolvedAttack, resolve_attack
from robustbench_lite.testing import Linear, make_target


@cache
def registry() -> Registry:
    return load()


def attack(**parameters: Any) -> AutoAttack:
    written = ",".join(f"{key}={value}" for key, value in parameters.items())
    found: AutoAttack = resolve_attack(registry(), f"rbl/autoattack[{written}]").instance
    return found


def target_for(
    instance: AutoAttack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, **options: Any
) -> tuple[Target, Randomness]:
    found = ResolvedAttack(registry().get("attack", "rbl/autoattack"), instance, "autoattack")
    return make_target(model, x, y, threat, members=resolve_members(registry(), found, threat), **options)


def run(instance: AutoAttack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Target:
    """The target after the run; what was returned is as good as what the target saw."""
    target, rng = target_for(instance, model, x, y, threat)
    x_adv = instance(target, x, y, threat, rng)
    assert threat.contains(x, x_adv).all()
    assert threat.in_box(x_adv).all()
    with torch.no_grad():
        assert torch.equal(model(x_adv).argmax(1) != y, target.broken)
    return target


# ------------------------------------------------------------------------------------------------------------ sequences


def test_the_published_sequences() -> None:
    linf, l1 = Threat.parse("linf:0.1"), Threat.parse("l1:1")
    assert attack().members(linf) == (
        "rbl/apgd-ce[steps=100,restarts=1]",
        "rbl/apgd-t[steps=100,targets=9]",
        "rbl/fab-t[steps=100,targets=9]",
        "rbl/square[queries=5000]",
    )
    assert attack().members(l1) == (
        "rbl/apgd-ce[steps=100,restarts=5]",
        "rbl/apgd-t[steps=100,targets=5]",
        "rbl/fab-t[steps=100,targets=9]",
        "rbl/square[queries=5000]",
    )
    assert attack(version="plus").members(linf) == (
        "rbl/apgd-ce[steps=100,restarts=5]",
        "rbl/apgd-dlr[steps=100,restarts=5]",
        "rbl/fab[steps=100,restarts=5]",
        "rbl/square[queries=5000]",
        "rbl/apgd-t[steps=100,targets=9]",
        "rbl/fab-t[steps=100,targets=9]",
    )
    assert attack(version="rand").members(linf) == (
        "rbl/apgd-ce[steps=100,restarts=1]",
        "rbl/apgd-dlr[steps=100,restarts=1]",
    )
    assert attack(version="custom", attacks="[square,fgsm]").members(l1) == ("square", "fgsm")


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_member_is_there_and_works_in_the_norm(version: str, norm: str) -> None:
    instance, threat = attack(version=version, steps=7, queries=8), Threat(norm, 1.0)
    found = ResolvedAttack(registry().get("attack", "rbl/autoattack"), instance, "autoattack")
    for member in resolve_members(registry(), found, threat):
        assert norm in member.declared.norms
        assert member.parameters.get("steps", 7) == 7
        assert member.parameters.get("queries", 8) == 8


@pytest.mark.parametrize("wrong", [{"version": "custom"}, {"attacks": "[fgsm]"}, {"version": "rand", "attacks": "[fgsm]"}])
def test_a_list_of_attacks_goes_with_the_custom_version(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidParameter, match=r"attacks=\[...\] goes with version=custom"):
        attack(**wrong)


@pytest.mark.parametrize(
    ("selector", "label"),
    [
        ("autoattack[steps=20,queries=500]", "autoattack[steps=20,queries=500]"),
        ("autoattack[version=plus,queries=500]", "autoattack[version=plus,queries=500]"),
        ("autoattack[version=rand,steps=20,queries=500]", "autoattack[version=rand,steps=20]"),
        ("autoattack[version=custom,attacks=[fgsm],steps=20,queries=500]", "autoattack[version=custom,attacks=[fgsm]]"),
    ],
)
def test_values_that_no_member_takes_are_no_part_of_its_name_or_key(selector: str, label: str) -> None:
    found, plain = resolve_attack(registry(), selector), resolve_attack(registry(), label)
    assert found.label == label
    assert found.spec() == plain.spec()


def test_a_protocol_sets_only_what_counts() -> None:
    overrides = {"rbl/autoattack": {"steps": 20, "queries": 500}}
    labels = {
        version: resolve_attack(registry(), f"autoattack[{version}]", overrides).label
        for version in ("version=standard", "version=rand", "version=custom,attacks=[fgsm]")
    }
    assert labels == {
        "version=standard": "autoattack[steps=20,queries=500]",
        "version=rand": "autoattack[version=rand,steps=20]",
        "version=custom,attacks=[fgsm]": "autoattack[version=custom,attacks=[fgsm]]",
    }


@pytest.mark.parametrize(
    ("attacks", "budget"),
    [
        ("[square[queries=150],'apgd-ce[steps=20]',a3]", 120),
        ("[square[queries=20],a3,'fab-t[steps=5]']", 100),
        ("[a3,bim]", 60),
    ],
)
def test_under_a_budget_nobody_is_ended_by_the_queries_of_others(attacks: str, budget: int) -> None:
    """Square asks some examples more often than others, and A3 takes some through more of its runs."""
    model, x, y = fixture("at")
    x, y, threat = x[:24], y[:24], Threat.parse("linf:0.15")

    def spent(rows: slice) -> tuple[list[int], list[bool]]:
        found, of = attack(version="custom", attacks=attacks), torch.arange(24)[rows]
        target, rng = target_for(found, model, x, y, threat, budget=budget)
        part = target.select(of)
        with suppress(BudgetExceeded):
            found(part, x[rows], y[rows], threat, rng.select(of))
        return part.queries.tolist(), part.broken.tolist()

    whole = spent(slice(None))
    alone = [spent(slice(i, i + 1)) for i in range(24)]
    assert whole == ([q for (q,), _ in alone], [b for _, (b,) in alone])
    assert max(whole[0]) == budget
    assert len(set(whole[0])) > 3


# ------------------------------------------------------------------------------------------------------------- strength

# What auto-attack's standard version leaves of 400 examples.
PUBLISHED = [
    ("std", "linf:0.12", 0.2875),
    ("at", "linf:0.12", 0.8000),
    ("std", "l2:1.0", 0.0000),
    ("at", "l2:1.0", 0.0325),
    ("std", "l1:4.0", 0.0000),
    ("at", "l1:4.0", 0.0000),
]


@pytest.mark.parametrize(("name", "threat", "published"), [row for row in PUBLISHED if "linf" not in row[1]])
def test_as_strong_as_the_reference_with_fewer_queries(name: str, threat: str, published: float) -> None:
    model, x, y = fixture(name)
    target = run(attack(queries=500), model, x, y, Threat.parse(threat))
    assert int((~target.broken).sum()) * EXAMPLE == pytest.approx(published, abs=0.0075)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "threat", "published"), PUBLISHED)
def test_as_strong_as_the_reference(name: str, threat: str, published: float) -> None:
    model, x, y = fixture(name)
    target = run(attack(), model, x, y, Threat.parse(threat))
    assert int((~target.broken).sum()) * EXAMPLE == pytest.approx(published, abs=0.0075)


# ------------------------------------------------------------------------------------------- members, one after the other

THREE = ("rbl/apgd-ce[steps=5]", "rbl/pgd[steps=10,loss=margin]", "rbl/square[queries=60]")
HARD = Threat.parse("linf:0.16")


def part(name: str, n: int = 120) -> tuple[nn.Module, Tensor, Tensor]:
    model, x, y = fixture(name)
    return model, x[:n], y[:n]


def alone(number: int) -> Tensor:
    """(N,) bool: what one of THREE beats of all examples, with the numbers that it draws as a member."""
    model, x, y = part("at")
    target, rng = target_for(AutoAttack(version="custom", attacks=THREE), model, x, y, HARD)
    target.members[number](target, x, y, HARD, rng)
    return target.broken


def test_it_beats_what_any_of_its_members_beats() -> None:
    each = [alone(number) for number in range(3)]
    target = run(AutoAttack(version="custom", attacks=THREE), *part("at"), HARD)
    assert torch.equal(target.broken, each[0] | each[1] | each[2])
    credit = target._ledger.member
    assert torch.equal(credit == 1, each[0])
    assert torch.equal(credit == 2, each[1] & ~each[0])
    assert torch.equal(credit == 3, each[2] & ~each[1] & ~each[0])
    assert 0 < int((credit == 1).sum()) < int(target.broken.sum()), "a case in which the order matters"


def test_the_order_of_the_members_changes_hardly_what_is_left() -> None:
    """Draws go by a member's place, so that another place is another start."""
    found = [run(AutoAttack(version="custom", attacks=order), *part("at"), HARD).broken for order in (THREE, THREE[::-1])]
    assert int((found[0] ^ found[1]).sum()) <= 4


def test_more_restarts_and_members_leave_no_more() -> None:
    """The runs of ``standard`` are not among those of ``plus``: the place of a member is part of what it draws."""
    found = [run(attack(version=version, steps=4, queries=10), *part("at", 60), HARD) for version in ("standard", "plus")]
    assert int(found[1].broken.sum()) >= int(found[0].broken.sum()) - 1
    assert int(found[0].broken.sum()) > 0


def test_members_see_only_what_is_left() -> None:
    model, x, y = part("at")
    target = run(attack(version="custom", attacks="['rbl/apgd-ce[steps=5]','rbl/pgd[steps=59]']"), model, x, y, HARD)
    credit = target._ledger.member
    assert int((credit == 1).sum()) > 0
    assert target.queries[credit == 1].max() <= 6
    assert (target.queries[credit == 0] >= 6 + 60).all()


def test_nothing_is_left_for_those_who_come_late() -> None:
    """An attack on examples that are beaten already, or on none, ends without a query."""
    model, x, y = part("std", 20)
    wide = Threat.parse("linf:0.9")
    target, rng = target_for(attack(queries=10, steps=5), model, x, y, wide)
    instance = attack(queries=10, steps=5)
    instance(target, x, y, wide, rng)
    assert target.broken.all()
    before = target.queries.clone()
    again = instance(target, x, y, wide, rng)
    assert torch.equal(target.queries, before)
    assert torch.equal(again, target.best(x))


# ----------------------------------------------------------------------------------------------------------- few classes


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_on_a_linear_model_with_two_classes_it_beats_exactly_what_can_be_beaten(norm: str) -> None:
    model, x, y = problem()
    least = torch.from_numpy(distances(norm))
    threat = Threat(norm, float(least.median()))
    target = run(attack(steps=25, queries=20), model, x, y, threat)
    beyond, within = least > threat.eps * 1.001, least < threat.eps * 0.999
    assert not (target.broken & beyond).any()
    assert target.broken[within].all()
    assert any("at least 4 classes" in note for note in target._ledger.notes), "the other loss is in the record"


def test_with_three_classes_it_is_as_strong_as_its_first_member_at_least() -> None:
    generator = torch.Generator().manual_seed(0)
    model = Linear(torch.randn(3, 64, generator=generator), torch.zeros(3))
    x = torch.rand(40, 1, 8, 8, generator=generator)
    y = model(x).argmax(1)
    threat = Threat.parse("linf:0.05")
    for version in ("standard", "rand"):
        target = run(attack(version=version, steps=10, queries=20), model, x, y, threat)
        first, rng = target_for(attack(version=version, steps=10), model, x, y, threat)
        first.members[0](first, x, y, threat, rng)
        assert (target.broken | ~first.broken).all()
        assert first.broken.any()
