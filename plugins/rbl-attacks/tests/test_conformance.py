"""The conformance suite on every attack of this distribution."""

from __future__ import annotations

from robustbench_lite.parameters import parse_selector
from robustbench_lite.registry import load
from robustbench_lite.testing import AttackConformance


class TestFGSM(AttackConformance):
    attack = "rbl/fgsm"


class TestPGD(AttackConformance):
    attack = "rbl/pgd[steps=10]"


class TestPGDFromTheImage(AttackConformance):
    attack = "rbl/pgd[steps=10,start=zero,loss=margin,restarts=2]"


class TestAPGD(AttackConformance):
    attack = "rbl/apgd-ce[steps=10]"


class TestSquare(AttackConformance):
    attack = "rbl/square[queries=100]"


class TestUniformNoise(AttackConformance):
    attack = "rbl/uniform-noise"


class TestGaussianNoise(AttackConformance):
    attack = "rbl/gaussian-noise"


def test_every_attack_is_tested() -> None:
    brought = {entry.id for entry in load().entries("attack") if entry.distribution == "rbl-attacks"}
    classes = [value for value in globals().values() if isinstance(value, type) and issubclass(value, AttackConformance)]
    assert brought <= {parse_selector(each.attack).name for each in classes if hasattr(each, "attack")}
