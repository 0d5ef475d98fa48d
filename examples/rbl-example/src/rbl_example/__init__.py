"""An example plugin: one attack and one defense. This module only says what there is; importing it imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from robustbench_lite import AttackSpec, DefenseSpec, hookimpl


@hookimpl
def rbl_attacks() -> Iterable[AttackSpec]:
    """The attacks of this distribution."""
    yield AttackSpec(
        name="corner-walk",
        factory="rbl_example.corner_walk:CornerWalk",
        norms=("linf",),
        access="scores",
        summary="Random walk over the corners of the linf ball, uphill in the margin",
    )


@hookimpl
def rbl_defenses() -> Iterable[DefenseSpec]:
    """The defenses of this distribution."""
    yield DefenseSpec(
        name="feature-squeezing",
        factory="rbl_example.feature_squeezing:FeatureSqueezing",
        kind="wrapper",
        differentiable=False,
        summary="Fewer grey levels and a median filter before the base defense",
        reference="arXiv:1704.01155",
    )
