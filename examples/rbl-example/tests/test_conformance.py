"""The conformance suite makes a test of every promise that the core relies on."""

from __future__ import annotations

from robustbench_lite.testing import AttackConformance, DefenseConformance


class TestCornerWalk(AttackConformance):
    attack = "example/corner-walk[queries=300]"


class TestFeatureSqueezing(DefenseConformance):
    defense = "example/feature-squeezing"


class TestFeatureSqueezingWithMedianFilter(DefenseConformance):
    defense = "example/feature-squeezing[base=rbl/pgd-at,window=3]"
