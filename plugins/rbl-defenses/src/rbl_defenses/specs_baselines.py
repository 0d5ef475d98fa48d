"""Specs of trained defenses that are the literature's baselines: single-step methods, unions of norms, distillation, SCORE."""

from __future__ import annotations

from robustbench_lite import DefenseSpec

BASELINES = [
    DefenseSpec(
        name="fgsm-at",
        factory="rbl_defenses.fgsm_at:FGSMTraining",
        kind="trained",
        summary="FGSM adversarial training: one step from the image; a control that may overfit catastrophically",
        reference="arXiv:1412.6572",
    ),
    DefenseSpec(
        name="fast-at",
        factory="rbl_defenses.fast_at:FastTraining",
        kind="trained",
        summary="Fast adversarial training (RS-FGSM): one step from a random start in the ball",
        reference="arXiv:2001.03994",
    ),
    DefenseSpec(
        name="n-fgsm",
        factory="rbl_defenses.n_fgsm:NFGSM",
        kind="trained",
        summary="N-FGSM: one step from noise larger than the ball, without clipping",
        reference="arXiv:2202.01181",
    ),
    DefenseSpec(
        name="gat",
        factory="rbl_defenses.gat:GuidedTraining",
        kind="trained",
        summary="Guided adversarial training: one step, and the distance between predictions as the regulariser",
        reference="arXiv:2011.14969",
    ),
    DefenseSpec(
        name="free-at",
        factory="rbl_defenses.free_at:FreeTraining",
        kind="trained",
        summary="Free adversarial training: one backward pass for both the weights and the perturbation, batches replayed",
        reference="arXiv:1904.12843",
    ),
    DefenseSpec(
        name="gradalign",
        factory="rbl_defenses.gradalign:GradAlign",
        kind="trained",
        summary="GradAlign: FGSM training with gradients that agree inside the ball",
        reference="arXiv:2007.02617",
    ),
    DefenseSpec(
        name="msd-at",
        factory="rbl_defenses.msd:MSD",
        kind="trained",
        summary="Multi steepest descent: adversarial training against the union of linf, l2 and l1 balls",
        reference="arXiv:1909.04068",
    ),
    DefenseSpec(
        name="score",
        factory="rbl_defenses.score:Score",
        kind="trained",
        summary="SCORE: TRADES with squared distances between probabilities",
        reference="arXiv:2202.10103",
    ),
    DefenseSpec(
        name="extra-data",
        factory="rbl_defenses.extra_data:ExtraData",
        kind="trained",
        extra_data="the data set named by `extra`",
        summary="More data: a share of each batch from another data set, around another method",
        reference="arXiv:1905.13736",
    ),
    DefenseSpec(
        name="generated-data",
        factory="rbl_defenses.generated_data:GeneratedData",
        kind="trained",
        fidelity="reconstruction",
        extra_data="generated from the training images",
        summary="Generated data: a share of each batch from gaussians in principal components, around another method",
        reference="arXiv:2110.09468",
    ),
    DefenseSpec(
        name="kd",
        factory="rbl_defenses.distillation:Distilled",
        kind="trained",
        summary="Knowledge distillation on clean images: a control without robustness of its own",
        reference="arXiv:1503.02531",
    ),
    DefenseSpec(
        name="ard",
        factory="rbl_defenses.ard:RobustDistillation",
        kind="trained",
        summary="Adversarially robust distillation: the student at x' answers as a robust teacher at x",
        reference="arXiv:1905.09747",
    ),
    DefenseSpec(
        name="rslad",
        factory="rbl_defenses.rslad:RSLAD",
        kind="trained",
        summary="Robust soft label distillation: a robust teacher's answers instead of labels, in crafting too",
        reference="arXiv:2108.07969",
    ),
    DefenseSpec(
        name="defensive-distillation",
        factory="rbl_defenses.defensive_distillation:DefensiveDistillation",
        kind="trained",
        summary="Defensive distillation: a control that masks gradients by the size of its logits",
        reference="arXiv:1511.04508",
    ),
]
