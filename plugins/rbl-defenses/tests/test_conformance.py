"""The conformance suite on every defense of this distribution, and on wrappers of wrappers."""

from __future__ import annotations

import re

import pytest

from robustbench_lite.registry import load
from robustbench_lite.selectors import parse_selector
from robustbench_lite.testing import DefenseConformance

BATTERY = (
    "standard",
    "standard[width=3]",
    "pgd-at",
    "trades",
    "mart",
    "awp",
    "ar-at",
    "sinkhorn-at",
    "ascl",
    "gccs",
    "xat",
    "xvat",
    "vib",
    "omada",
    "pni",
    "cni",
    "ani",
    "fgsm-at",
    "fast-at",
    "n-fgsm",
    "gat",
    "free-at",
    "gradalign",
    "msd-at",
    "score",
    "extra-data[method=trades]",
    "generated-data",
    "kd",
    "ard",
    "rslad",
    "defensive-distillation",
    "jpeg",
    "jpeg[base=pgd-at,quality=90]",
    "jpeg[base=rbl/gaussian-noise]",
    "gaussian-noise",
    "gaussian-noise[base=rbl/jpeg]",
    "feature-squeezing",
    "feature-squeezing[base=jpeg,bits=3,median=1,non_local_means=[5,3,10]]",
    "halftone",
    "halftone[method=bayer,dots=2,hybrid=true]",
    "halftone[base=gaussian-noise,method=stucki,serpentine=true]",
    "random-resize-pad",
    "random-resize-pad[base=jpeg,flip=true]",
    "bart",
    "bart[base=pgd-at,transforms=[gamma,speckle,shot-noise,mean-blur,non-local-means,swirl,jpeg],count=2]",
    "randomized-smoothing",
    "randomized-smoothing[base=halftone,draws=3]",
    "ensemble",
    "ensemble[bases=[jpeg,gaussian-noise]]",
    "ensemble[bases=[max-softmax,standard]]",
    "bos",
    "max-softmax",
    "max-softmax[base=gaussian-noise]",
    "feature-squeezing-detector",
    "feature-squeezing-detector[base=jpeg,non_local_means=[5,3,10]]",
    "mahalanobis",
    "mahalanobis[base=halftone]",
    "lid[layers=2]",
    "lq-vae[steps=500,width=16]",
    "lq-vae[base=randomized-smoothing,latents=3]",
)

pytestmark = pytest.mark.usefixtures("with_fitted")

for _selector in BATTERY:
    _name = "Test_" + re.sub(r"\W+", "_", _selector).strip("_")
    globals()[_name] = type(_name, (DefenseConformance,), {"defense": f"rbl/{_selector}", "__module__": __name__})


def test_every_defense_is_tested() -> None:
    brought = {entry.id for entry in load().entries("defense") if entry.distribution == "rbl-defenses"}
    assert brought == {f"rbl/{parse_selector(selector).name}" for selector in BATTERY}
