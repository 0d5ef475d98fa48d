"""Specs of defenses that are fitted to a base: detectors, which refuse to answer, and a purifier; and what helps them."""

from __future__ import annotations

from robustbench_lite import DefenseSpec

DETECTORS = [
    DefenseSpec(
        name="bos",
        factory="rbl_defenses.bos:BoS",
        kind="trained",
        fidelity="reconstruction",
        summary="Boundary optimised samples: low confidence just outside of the data, for detectors to stand in front of",
        reference="https://ailb-web.ing.unimore.it/icpr/author/1679",
    ),
    DefenseSpec(
        name="max-softmax",
        factory="rbl_defenses.max_softmax:MaxSoftmax",
        kind="fitted",
        rejects=True,
        summary="Refuses where the base is not confident: the baseline of detectors",
        reference="arXiv:1610.02136",
    ),
    DefenseSpec(
        name="feature-squeezing-detector",
        factory="rbl_defenses.feature_squeezing_detector:FeatureSqueezingDetector",
        kind="fitted",
        rejects=True,
        differentiable=False,
        summary="Refuses where fewer bits or medians change the prediction; attacked through BPDA",
        reference="arXiv:1704.01155",
    ),
    DefenseSpec(
        name="mahalanobis",
        factory="rbl_defenses.mahalanobis:Mahalanobis",
        kind="fitted",
        rejects=True,
        summary="Refuses what lies far from all classes in the base's feature spaces; needs no adversarial examples",
        reference="arXiv:1807.03888",
    ),
    DefenseSpec(
        name="lid",
        factory="rbl_defenses.lid:LID",
        kind="fitted",
        version=2,
        rejects=True,
        summary="Refuses what has many dimensions around it in the base's feature spaces",
        reference="arXiv:1801.02613",
    ),
    DefenseSpec(
        name="lq-vae",
        factory="rbl_defenses.lq_vae:LQVAE",
        kind="fitted",
        differentiable=False,
        fidelity="reconstruction",
        summary="Images are encoded, quantised and decoded before the base defense; attacked through BPDA",
        reference="arXiv:1903.09940",
    ),
]
