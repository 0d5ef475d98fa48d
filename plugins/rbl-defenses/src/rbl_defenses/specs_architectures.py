"""Specs of trained defenses that change the network: its layers, what normalises them, how they are computed."""

from __future__ import annotations

from robustbench_lite import DefenseSpec

ARCHITECTURES = [
    DefenseSpec(
        name="band-limited",
        factory="rbl_defenses.band_limited:BandLimitedTraining",
        kind="trained",
        summary="Band-limited convolutions, around another method: the high frequencies of every map are left out",
        reference="arXiv:1911.09287",
    ),
    DefenseSpec(
        name="deep-pursuit",
        factory="rbl_defenses.deep_pursuit:DeepPursuit",
        kind="trained",
        fidelity="reconstruction",
        summary="Deep pursuit: the activations of all layers are one sparse code, found by unrolled proximal steps",
        reference="arXiv:2011.14427",
    ),
    DefenseSpec(
        name="maxdropout",
        factory="rbl_defenses.maxdropout:MaxDropoutTraining",
        kind="trained",
        summary="MaxDropout, around another method: the most active units of each layer are left out in training",
        reference="arXiv:2007.13723",
    ),
    DefenseSpec(
        name="weight-align",
        factory="rbl_defenses.weight_align:WeightAlign",
        kind="trained",
        summary="WeightAlign, around another method: normalised filters in the place of batch norm",
        reference="arXiv:2010.07160",
    ),
    DefenseSpec(
        name="bnsr",
        factory="rbl_defenses.bnsr:BNSR",
        kind="trained",
        fidelity="reconstruction",
        summary="Batch norm with skewness reduction, around another method: a power of what is normalised",
        reference="https://doi.org/10.1109/ICPR48806.2021.9412949",
    ),
]
