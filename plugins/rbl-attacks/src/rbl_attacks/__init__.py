"""Attacks: gradient, random-search and no-knowledge. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from robustbench_lite import AttackSpec, hookimpl

_BALLS = ("linf", "l2", "l1")


@hookimpl
def rbl_attacks() -> Iterable[AttackSpec]:
    """From the least knowledge to the most."""
    yield AttackSpec(
        name="uniform-noise",
        factory="rbl_attacks.noise:UniformNoise",
        norms=_BALLS,
        access="none",
        summary="One random point of the ball: what no knowledge at all achieves",
    )
    yield AttackSpec(
        name="gaussian-noise",
        factory="rbl_attacks.noise:GaussianNoise",
        norms=_BALLS,
        access="none",
        summary="One draw of gaussian noise as long as the radius, brought into the ball",
    )
    yield AttackSpec(
        name="square",
        factory="rbl_attacks.square:Square",
        norms=_BALLS,
        access="scores",
        summary="Square Attack: random search with square-shaped updates on scores alone",
        reference="arXiv:1912.00049",
    )
    yield AttackSpec(
        name="fgsm",
        factory="rbl_attacks.fgsm:FGSM",
        norms=_BALLS,
        access="gradient",
        summary="One step to the point of the ball where the linearised loss is highest",
        reference="arXiv:1412.6572",
    )
    yield AttackSpec(
        name="pgd",
        factory="rbl_attacks.pgd:PGD",
        norms=_BALLS,
        access="gradient",
        summary="Projected gradient ascent from random starts; SLIDE's sparse steps under l1",
        reference="arXiv:1706.06083",
    )
    yield AttackSpec(
        name="apgd-ce",
        factory="rbl_attacks.apgd:APGDCE",
        norms=_BALLS,
        access="gradient",
        summary="Auto-PGD on the cross-entropy: step sizes halved where the loss stops rising",
        reference="arXiv:2003.01690",
    )
