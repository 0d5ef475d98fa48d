"""Specs of trained defenses that draw noise inside the network, at test time, too."""

from __future__ import annotations

from robustbench_lite import DefenseSpec

NOISE = [
    DefenseSpec(
        name="pni",
        version=2,
        factory="rbl_defenses.pni:PNI",
        kind="trained",
        stochastic=True,
        summary="Parametric noise injection: white noise on weights, its magnitude learned in adversarial training",
        reference="arXiv:1811.09310",
    ),
    DefenseSpec(
        name="cni",
        version=2,
        factory="rbl_defenses.cni:CNI",
        kind="trained",
        stochastic=True,
        fidelity="reconstruction",
        summary="Coloured noise injection: correlated noise on weights, its covariance learned in adversarial training",
        reference="arXiv:2003.02188",
    ),
    DefenseSpec(
        name="ani",
        factory="rbl_defenses.ani:ANI",
        kind="trained",
        stochastic=True,
        fidelity="reconstruction",
        summary="Adaptive noise injection: a student of a deterministic teacher, with noise on its activations",
    ),
]
