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
        name="repeated-noise",
        factory="rbl_attacks.noise:RepeatedNoise",
        norms=_BALLS,
        access="decision",
        summary="The worst of several draws of noise: uniform, gaussian, or on the sphere",
    )
    yield AttackSpec(
        name="salt-and-pepper",
        factory="rbl_attacks.noise:SaltAndPepper",
        norms=("l0",),
        access="decision",
        summary="The worst of several choices of pixels that become black or white",
    )
    yield AttackSpec(
        name="transfer",
        factory="rbl_attacks.transfer:Transfer",
        norms=_BALLS,
        access="transfer",
        summary="Points crafted on other defenses, the surrogates, and shown to this one",
        reference="arXiv:1605.07277",
    )
    yield AttackSpec(
        name="boundary",
        factory="rbl_attacks.boundary:Boundary",
        norms=("l2",),
        access="decision",
        goal="minimal-norm",
        summary="Boundary attack: a random walk along the boundary, towards the clean image",
        reference="arXiv:1712.04248",
    )
    yield AttackSpec(
        name="hop-skip-jump",
        factory="rbl_attacks.hop_skip_jump:HopSkipJump",
        norms=("linf", "l2"),
        access="decision",
        goal="minimal-norm",
        summary="HopSkipJump: steps along the boundary's normal, estimated from decisions alone",
        reference="arXiv:1904.02144",
    )
    yield AttackSpec(
        name="corruption",
        factory="rbl_attacks.corruption:Corruption",
        norms=("unrestricted",),
        access="none",
        summary="One of the common corruptions: noise, blur, fog, brightness, contrast, pixels, JPEG, in five severities",
        reference="arXiv:1903.12261",
    )
    yield AttackSpec(
        name="rotation-translation",
        factory="rbl_attacks.rotation_translation:RotationTranslation",
        norms=("unrestricted",),
        access="scores",
        summary="The worst of several rotations and translations: random ones, or a grid",
        reference="arXiv:1712.02779",
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
        name="sparse-rs",
        factory="rbl_attacks.sparse_rs:SparseRS",
        norms=("l0",),
        access="scores",
        summary="Sparse-RS: random search over a few pixels at corners of the colour cube",
        reference="arXiv:2006.12834",
    )
    yield AttackSpec(
        name="nes",
        factory="rbl_attacks.nes:NES",
        norms=("linf", "l2"),
        access="scores",
        summary="Signed steps along gradients estimated from scores at gaussian points (natural evolution strategies)",
        reference="arXiv:1804.08598",
    )
    yield AttackSpec(
        name="spsa",
        factory="rbl_attacks.spsa:SPSA",
        norms=("linf", "l2"),
        access="scores",
        summary="Adam on gradients estimated from scores at pairs of points with random signs",
        reference="arXiv:1802.05666",
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
        name="bim",
        factory="rbl_attacks.bim:BIM",
        norms=("linf", "l2"),
        access="gradient",
        summary="Basic iterative method (I-FGSM): projected gradient ascent from the clean image",
        reference="arXiv:1607.02533",
    )
    yield AttackSpec(
        name="mifgsm",
        factory="rbl_attacks.mifgsm:MIFGSM",
        norms=("linf", "l2"),
        access="gradient",
        summary="Momentum iterative method (MI-FGSM): bim along accumulated gradients, which transfer better",
        reference="arXiv:1710.06081",
    )
    yield AttackSpec(
        name="pgd",
        factory="rbl_attacks.pgd:PGD",
        version=2,
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
    yield AttackSpec(
        name="apgd-dlr",
        factory="rbl_attacks.apgd:APGDDLR",
        norms=_BALLS,
        access="gradient",
        summary="Auto-PGD on the difference of logits ratio, which knows no scale of the logits",
        reference="arXiv:2003.01690",
    )
    yield AttackSpec(
        name="apgd-t",
        factory="rbl_attacks.apgd:APGDT",
        norms=_BALLS,
        access="gradient",
        summary="Auto-PGD towards one likely wrong class after the other, on the targeted difference of logits ratio",
        reference="arXiv:2003.01690",
    )
    yield AttackSpec(
        name="msd",
        factory="rbl_attacks.msd:MSD",
        norms=("union",),
        access="gradient",
        summary="Multi steepest descent: at each step, that ball of a union whose step raises the loss most",
        reference="arXiv:1909.04068",
    )
    yield AttackSpec(
        name="deepfool",
        factory="rbl_attacks.deepfool:DeepFool",
        norms=("linf", "l2"),
        access="gradient",
        goal="minimal-norm",
        summary="DeepFool: step by step to the nearest linearised boundary, until it is crossed",
        reference="arXiv:1511.04599",
    )
    yield AttackSpec(
        name="fab",
        factory="rbl_attacks.fab:FAB",
        norms=_BALLS,
        access="gradient",
        goal="minimal-norm",
        summary="Fast adaptive boundary: to the nearest linearised boundary and back, biased to the clean image",
        reference="arXiv:1907.02044",
    )
    yield AttackSpec(
        name="fab-t",
        factory="rbl_attacks.fab:FABT",
        norms=_BALLS,
        access="gradient",
        goal="minimal-norm",
        summary="Fast adaptive boundary, towards one likely wrong class after the other",
        reference="arXiv:1907.02044",
    )
    yield AttackSpec(
        name="cw-l2",
        factory="rbl_attacks.cw:CarliniWagner",
        version=2,
        norms=("l2",),
        access="gradient",
        goal="minimal-norm",
        summary="Carlini and Wagner: descent on distance and margin in tanh space, with a search for their weight",
        reference="arXiv:1608.04644",
    )
    yield AttackSpec(
        name="ead",
        factory="rbl_attacks.ead:ElasticNet",
        version=2,
        norms=("l1",),
        access="gradient",
        goal="minimal-norm",
        summary="Elastic net: descent on distance, margin and an l1 term by FISTA, with a search for the margin's weight",
        reference="arXiv:1709.04114",
    )
    yield AttackSpec(
        name="delayed-elastic-net",
        factory="rbl_attacks.delayed_elastic_net:DelayedElasticNet",
        version=2,
        norms=("linf", "l2", "l1", "l0"),
        access="gradient",
        goal="minimal-norm",
        summary="First an adversarial point, then a pull back to the image; also to a class with confidence (phishing)",
        reference="Cancela, Bolon-Canedo & Alonso-Betanzos, ICPR 2020",
    )
    yield AttackSpec(
        name="ddn",
        factory="rbl_attacks.ddn:DDN",
        norms=("l2",),
        access="gradient",
        goal="minimal-norm",
        summary="Decoupled direction and norm: gradient steps on a sphere that shrinks and grows",
        reference="arXiv:1811.09600",
    )
    yield AttackSpec(
        name="fmn",
        factory="rbl_attacks.fmn:FMN",
        norms=(*_BALLS, "l0"),
        access="gradient",
        goal="minimal-norm",
        summary="Fast minimum norm: gradient steps projected into a ball that shrinks and grows",
        reference="arXiv:2102.12827",
    )
    yield AttackSpec(
        name="alma",
        factory="rbl_attacks.alma:ALMA",
        norms=("l2", "l1"),
        access="gradient",
        goal="minimal-norm",
        summary="Augmented Lagrangian: descent on the distance, with an adapted weight of being adversarial",
        reference="arXiv:2011.11857",
    )
    yield AttackSpec(
        name="sigma-zero",
        factory="rbl_attacks.sigma_zero:SigmaZero",
        norms=("l0",),
        access="gradient",
        goal="minimal-norm",
        summary="Sigma-zero: descent on the margin and a smooth count of changed values",
        reference="arXiv:2402.01879",
    )
    yield AttackSpec(
        name="a3",
        factory="rbl_attacks.a3:A3",
        norms=("linf", "l2"),
        access="gradient",
        summary="Adaptive auto attack: many short margin ascents from chosen directions, where they still promise something",
        reference="arXiv:2203.05154",
    )
    yield AttackSpec(
        name="autoattack",
        factory="rbl_attacks.autoattack:AutoAttack",
        norms=_BALLS,
        access="gradient",
        summary="Attacks in sequence, each on what the others left: apgd-ce, apgd-t, fab-t, square",
        reference="arXiv:2003.01690",
    )
