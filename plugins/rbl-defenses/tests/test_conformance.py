"""The conformance suite on every defense of this distribution, and on wrappers of wrappers."""

from __future__ import annotations

from robustbench_lite.parameters import parse_selector
from robustbench_lite.registry import load
from robustbench_lite.testing import DefenseConformance


class TestStandard(DefenseConformance):
    defense = "rbl/standard"


class TestStandardUntrained(DefenseConformance):
    defense = "rbl/standard[width=3]"


class TestPGDTraining(DefenseConformance):
    defense = "rbl/pgd-at"


class TestTrades(DefenseConformance):
    defense = "rbl/trades"


class TestMart(DefenseConformance):
    defense = "rbl/mart"


class TestAWP(DefenseConformance):
    defense = "rbl/awp[method=trades]"


class TestJPEG(DefenseConformance):
    defense = "rbl/jpeg"


class TestJPEGOfPGDTraining(DefenseConformance):
    defense = "rbl/jpeg[base=pgd-at,quality=90]"


class TestGaussianNoise(DefenseConformance):
    defense = "rbl/gaussian-noise"


class TestGaussianNoiseBeforeJPEG(DefenseConformance):
    defense = "rbl/gaussian-noise[base=rbl/jpeg]"


class TestJPEGBeforeGaussianNoise(DefenseConformance):
    defense = "rbl/jpeg[base=rbl/gaussian-noise]"


def test_every_defense_is_tested() -> None:
    brought = {entry.id for entry in load().entries("defense") if entry.distribution == "rbl-defenses"}
    classes = [value for value in globals().values() if isinstance(value, type) and issubclass(value, DefenseConformance)]
    assert brought <= {parse_selector(each.defense).name for each in classes if hasattr(each, "defense")}
