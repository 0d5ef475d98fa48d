"""Specs of wrappers that do something to the input, or to the answers, of defenses as they are."""

from __future__ import annotations

from robustbench_lite import DefenseSpec

TRANSFORMS = [
    DefenseSpec(
        name="jpeg",
        factory="rbl_defenses.jpeg:JPEG",
        kind="wrapper",
        differentiable=False,
        summary="JPEG compression before the base defense; attacked through a straight-through surrogate (BPDA)",
        reference="arXiv:1711.00117",
    ),
    DefenseSpec(
        name="feature-squeezing",
        factory="rbl_defenses.feature_squeezing:FeatureSqueezing",
        kind="wrapper",
        differentiable=False,
        summary="Fewer bits, medians, non-local means before the base defense; attacked through BPDA",
        reference="arXiv:1704.01155",
    ),
    DefenseSpec(
        name="halftone",
        factory="rbl_defenses.halftone:Halftone",
        kind="wrapper",
        differentiable=False,
        fidelity="reconstruction",
        summary="Black and white dots instead of grey values before the base defense; attacked through BPDA",
        reference="doi:10.1109/ICPR48806.2021.9412472",
    ),
    DefenseSpec(
        name="halftone-training",
        factory="rbl_defenses.halftone:HalftoneTraining",
        kind="trained",
        differentiable=False,
        fidelity="reconstruction",
        summary="Black and white dots instead of grey values, in training and in use; attacked through BPDA",
        reference="doi:10.1109/ICPR48806.2021.9412472",
    ),
    DefenseSpec(
        name="gaussian-noise",
        factory="rbl_defenses.gaussian_noise:GaussianNoise",
        kind="wrapper",
        stochastic=True,
        summary="Fresh gaussian noise before the base defense; attacked and judged over several draws (EOT)",
        reference="arXiv:1902.02918",
    ),
    DefenseSpec(
        name="random-resize-pad",
        factory="rbl_defenses.random_resize_pad:RandomResizePad",
        kind="wrapper",
        stochastic=True,
        summary="Images enlarged and placed by chance before the base defense; attacked and judged over several draws (EOT)",
        reference="arXiv:1711.01991",
    ),
    DefenseSpec(
        name="bart",
        factory="rbl_defenses.bart:BaRT",
        kind="wrapper",
        stochastic=True,
        differentiable=False,
        fidelity="reconstruction",
        summary="A random choice of weak transforms before the base defense; attacked through BPDA over several draws (EOT)",
        reference="https://openaccess.thecvf.com/content_CVPR_2019/html/"
        "Raff_Barrage_of_Random_Transforms_for_Adversarially_Robust_Defense_CVPR_2019_paper.html",
    ),
    DefenseSpec(
        name="bart-training",
        factory="rbl_defenses.bart:BaRTTraining",
        kind="trained",
        stochastic=True,
        differentiable=False,
        fidelity="reconstruction",
        summary="The same, and the network is trained on transformed images; attacked through BPDA over several draws (EOT)",
        reference="https://openaccess.thecvf.com/content_CVPR_2019/html/"
        "Raff_Barrage_of_Random_Transforms_for_Adversarially_Robust_Defense_CVPR_2019_paper.html",
    ),
    DefenseSpec(
        name="randomized-smoothing",
        factory="rbl_defenses.randomized_smoothing:RandomizedSmoothing",
        kind="wrapper",
        stochastic=True,
        differentiable=False,
        summary="Majority vote of the base defense under gaussian noise, with a certified l2 radius; attacked through the mean",
        reference="arXiv:1902.02918",
    ),
    DefenseSpec(
        name="ensemble",
        factory="rbl_defenses.ensemble:Ensemble",
        kind="wrapper",
        summary="The mean of the probabilities of several defenses, attacked as one",
        reference="arXiv:1709.03423",
    ),
]
