"""Specs of trained defenses with another loss, a further term, or other images than adversarial training."""

from __future__ import annotations

from robustbench_lite import DefenseSpec

REGULARISED = [
    DefenseSpec(
        name="ar-at",
        factory="rbl_defenses.ar_at:ARAT",
        kind="trained",
        summary="Adversarial training with representations aligned in one direction, and batch norm in two branches",
        reference="arXiv:2402.14648",
    ),
    DefenseSpec(
        name="sinkhorn-at",
        factory="rbl_defenses.sinkhorn_at:SinkhornTraining",
        kind="trained",
        summary="Sinkhorn adversarial training: the clouds of clean and adversarial logits brought together",
        reference="arXiv:2102.03156",
    ),
    DefenseSpec(
        name="ascl",
        factory="rbl_defenses.ascl:ASCL",
        kind="trained",
        summary="Adversarial training with a supervised contrastive loss over clean and adversarial images",
        reference="arXiv:2101.10027",
    ),
    DefenseSpec(
        name="gccs",
        factory="rbl_defenses.gccs:GCCS",
        kind="trained",
        fidelity="reconstruction",
        summary="Outputs of each class brought to a Gaussian around a vertex of a simplex, without cross-entropy",
        reference="arXiv:2010.15487",
    ),
    DefenseSpec(
        name="xat",
        factory="rbl_defenses.xat:XAT",
        kind="trained",
        summary="Training against learned masks that images are multiplied by",
        reference="arXiv:1912.01810",
    ),
    DefenseSpec(
        name="xvat",
        factory="rbl_defenses.xat:XVAT",
        kind="trained",
        summary="The same, against masks that change the prediction, whatever the label",
        reference="arXiv:1912.01810",
    ),
    DefenseSpec(
        name="vib",
        factory="rbl_defenses.vib:VIB",
        kind="trained",
        fidelity="reconstruction",
        summary="The same answer inside the visual imperceptible bound: random points at a radius taken from the data",
        reference="arXiv:2010.13247",
    ),
    DefenseSpec(
        name="omada",
        factory="rbl_defenses.omada:OMADA",
        kind="trained",
        fidelity="reconstruction",
        summary="On-manifold adversarial augmentation: decoded images from the way between classes, with soft labels",
        reference="arXiv:1912.07458",
    ),
    DefenseSpec(
        name="f-mixup",
        factory="rbl_defenses.f_mixup:FMixup",
        kind="trained",
        fidelity="reconstruction",
        summary="f-mixup as augmentation: images with high frequencies of others mixed in",
    ),
    DefenseSpec(
        name="class-selectivity",
        factory="rbl_defenses.class_selectivity:ClassSelectivity",
        kind="trained",
        summary="Class-selectivity regularisation: units that answer to one class more, or less",
        reference="arXiv:2007.04440",
    ),
    DefenseSpec(
        name="norm-loss",
        factory="rbl_defenses.norm_loss:NormLoss",
        kind="trained",
        summary="Norm loss, around another method: filters drawn to length 1 in the place of weight decay",
        reference="arXiv:2103.06583",
    ),
]
