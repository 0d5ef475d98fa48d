"""Every check finds the attack that is broken in its way, and nothing else is wrong with that attack."""

from __future__ import annotations

from functools import cache

import pytest

from robustbench_lite.errors import InvalidParameter
from robustbench_lite.registry import Registry, load
from robustbench_lite.testing import ATTACK_SUITE, AttackSubject, attack_subject, check_attack
from tests.support import BROKEN_PLUGINS, failures

BROKEN = {
    "toomuchaccess": {"access"},
    "raises": {"runs"},
    "exits": {"runs"},
    "linfonly": {"runs"},
    "wrongshape": {"shape-and-type"},
    "float64": {"shape-and-type"},
    "notatensor": {"shape-and-type"},
    "squareimagesonly": {"other-shapes"},
    "severalonly": {"one-example"},
    "threeclasses": {"few-classes"},
    "returnsnan": {"finite"},
    "leavesbox": {"inside-the-box"},
    "leavesball": {"inside-the-ball"},
    "irreproducible": {"same-seed-same-points"},
    "drawsglobally": {"batch-does-not-matter", "global-state-unchanged"},
    "batchmean": {"batch-does-not-matter"},
    "countsonthecpu": {"device-of-the-images"},
    "asksnumpy": {"device-of-the-images"},
    "drawsonthecpu": {"device-of-the-images"},
    "queriesfromthecpu": {"device-of-the-images"},
    "inplace": {"inputs-unchanged"},
    "relabelsinplace": {"inputs-unchanged"},
    "trains": {"model-unchanged"},
    "tampers": {"model-unchanged", "closed-form"},
    "leavesgradoff": {"global-state-unchanged"},
    "weak": {"beats-a-linear-model"},
    "farminimal": {"beats-a-linear-model"},
    "dividesbyzero": {"constant-model", "masked-gradient"},
    "chokesonnan": {"nan-model"},
    "wantsdeterminism": {"stochastic-model"},
    "swallowsbudget": {"budget"},
    "unattributed": {"queries-attributed"},
    "notfrozen": {"parameters-are-valid"},
    "baddefault": {"parameters-are-valid"},
    "nosummary": {"spec-is-complete"},
}


@cache
def registry() -> Registry:
    return load([BROKEN_PLUGINS / "broken_attacks.py", BROKEN_PLUGINS / "slow_attack.py"], entry_points=False)


@pytest.mark.parametrize("name", BROKEN)
def test_finds_exactly_what_is_broken(name: str) -> None:
    outcomes = check_attack(registry(), f"broken-attacks/{name}")
    found = failures(outcomes)
    assert found.keys() == BROKEN[name], found
    assert all(o.fix for o in outcomes if o.status == "failed"), found


@pytest.mark.parametrize("name", ["sound", "minimal", "globallyrandom", "minclasses"])
def test_sound_attacks_pass(name: str) -> None:
    outcomes = check_attack(registry(), f"broken-attacks/{name}")
    assert not failures(outcomes)
    assert sum(o.status == "passed" for o in outcomes) >= 20


def test_every_check_is_shown_to_find_something() -> None:
    found = set().union(*BROKEN.values()) | {"light-import", "plugin-problems"}
    assert found == {check.name for check in ATTACK_SUITE.checks}


def test_a_plugin_that_imports_torch_and_breaks_half_way() -> None:
    found = failures(check_attack(registry(), "slow-attack/noise"))
    assert found.keys() == {"light-import", "plugin-problems"}
    assert "slow: importing slow_attack imports torch (" in found["light-import"]
    assert "and nothing more" in found["plugin-problems"]


def test_reasons_name_the_norm_and_the_numbers() -> None:
    found = failures(check_attack(registry(), "broken-attacks/leavesball"))
    assert found["inside-the-ball"].startswith("linf:")
    assert "of 24 points are outside the threat model, the farthest at" in found["inside-the-ball"]
    assert failures(check_attack(registry(), "broken-attacks/linfonly"))["runs"].startswith("l2:")


def test_a_raising_attack_is_reported_once_and_the_rest_is_skipped() -> None:
    outcomes = check_attack(registry(), "broken-attacks/raises")
    assert "ValueError: no luck (" in failures(outcomes)["runs"]
    reasons = {o.reason for o in outcomes if o.status == "skipped"}
    assert reasons == {"it raises: see the check `runs`"}


def test_an_attack_without_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attack_subject, "LONGEST", 700)
    found = failures(check_attack(registry(), "broken-attacks/endless"))
    assert found.keys() == {"runs"}
    assert found["runs"].endswith("it has not ended after 700 forward passes")


def test_an_attack_that_uses_up_its_queries_passes() -> None:
    found = failures(check_attack(registry(), "broken-attacks/persistent"))
    assert found.keys() <= {"beats-a-linear-model", "masked-gradient"}  # it is not a good attack


def test_a_wrong_parameter_is_the_users_mistake() -> None:
    with pytest.raises(InvalidParameter):
        AttackSubject(registry(), "sound[steps=3]")
