"""Transfer: from the defense itself it is the white-box attack, from another one something between that and noise."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from golden_networks import EXAMPLE, fixture, network
from torch import Tensor, nn

from rbl_attacks.noise import UniformNoise
from rbl_attacks.transfer import Transfer
from robustbench_lite import InvalidParameter, Target, Threat
from robustbench_lite.registry import Registry, load
from robustbench_lite.resolve import resolve_attack
from robustbench_lite.testing import make_target

OTHER = {"std": "at", "at": "std"}


@cache
def registry() -> Registry:
    return load()


def transferred(name: str, threat: Threat, attack: str, *surrogates: nn.Module) -> Target:
    """The target after a run of what ``surrogates`` get wrong."""
    model, x, y = fixture(name)
    members = [resolve_attack(registry(), attack)]
    target, rng = make_target(model, x, y, threat, access="transfer", members=members, surrogates=surrogates)
    instance = Transfer(attack=attack, surrogates=("any",) * len(surrogates))
    x_adv = instance(target, x, y, threat, rng)
    assert threat.contains(x, x_adv).all()
    with torch.no_grad():
        assert torch.equal(model(x_adv).argmax(1) != y, target.broken)
    return target


def robust(target: Target) -> float:
    return int((~target.broken).sum()) * EXAMPLE


@pytest.mark.parametrize("attack", ["rbl/mifgsm", "rbl/pgd[steps=10]", "rbl/apgd-ce[steps=15]"])
@pytest.mark.parametrize("threat", ["linf:0.12", "l2:1.0"])
@pytest.mark.parametrize("name", ["std", "at"])
def test_from_the_defense_itself_it_is_the_white_box_attack(name: str, threat: str, attack: str) -> None:
    """At least as strong: it goes on where that one stops, and nothing that was passed on the way is lost."""
    limits = Threat.parse(threat)
    model, x, y = fixture(name)
    white, rng = make_target(model, x, y, limits, members=[resolve_attack(registry(), attack)])
    white.members[0](white, x, y, limits, rng)
    found = transferred(name, limits, attack, network(name)[0])
    assert white.broken.any()
    assert (found.broken | ~white.broken).all()


@pytest.mark.parametrize("name", ["std", "at"])
def test_from_another_defense_it_lies_between_noise_and_the_white_box_attack(name: str) -> None:
    threat = Threat.parse("linf:0.12")
    model, x, y = fixture(name)
    noise, rng = make_target(model, x, y, threat, access="none")
    with torch.no_grad():
        by_noise = int((model(UniformNoise()(noise, x, y, threat, rng)).argmax(1) == y).sum()) * EXAMPLE
    from_other = robust(transferred(name, threat, "rbl/mifgsm", network(OTHER[name])[0]))
    from_both = robust(transferred(name, threat, "rbl/mifgsm", network(OTHER[name])[0], network(name)[0]))
    from_itself = robust(transferred(name, threat, "rbl/mifgsm", network(name)[0]))
    assert by_noise - 0.04 > from_other > from_both >= from_itself


def test_the_defense_is_asked_for_one_label() -> None:
    target = transferred("at", Threat.parse("linf:0.12"), "rbl/pgd[steps=7]", network("std")[0])
    assert target.queries.unique().tolist() == [1]
    assert target.backwards.sum() == 0
    (surrogate,) = target.surrogates
    assert surrogate.forwards.unique().tolist() == [8], "to the last step, fooled or not"
    assert target._ledger.member.sum() == 0


def test_under_l1_with_an_attack_that_has_it() -> None:
    assert robust(transferred("std", Threat.parse("l1:4.0"), "rbl/pgd[steps=20]", network("at")[0])) < 0.6


def test_the_points_do_not_depend_on_the_defense() -> None:
    threat = Threat.parse("linf:0.1")
    points: list[Tensor] = []
    model, x, y = fixture("at")
    for defense in (model, nn.Sequential(nn.Flatten(), nn.Linear(64, 10))):
        members = [resolve_attack(registry(), "rbl/mifgsm")]
        target, rng = make_target(defense, x, y, threat, access="transfer", members=members, surrogates=[network("std")[0]])
        points.append(target.members[0](target.surrogates[0], x, y, threat, rng))
    assert torch.equal(*points)


def test_it_needs_a_surrogate() -> None:
    with pytest.raises(InvalidParameter, match="surrogates"):
        resolve_attack(registry(), "rbl/transfer[surrogates=[]]")
