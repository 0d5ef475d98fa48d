"""The conformance suite on every defense of this distribution, and on wrappers of wrappers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from robustbench_lite.registry import Registry, load
from robustbench_lite.selectors import parse_selector
from robustbench_lite.testing import DefenseConformance, check_defense

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
    "f-mixup",
    "class-selectivity",
    "norm-loss",
    "band-limited",
    "deep-pursuit",
    "maxdropout",
    "weight-align",
    "bnsr",
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
    "halftone-training",
    "random-resize-pad",
    "random-resize-pad[base=jpeg,flip=true]",
    "bart",
    "bart[base=pgd-at,transforms=[gamma,speckle,shot-noise,mean-blur,non-local-means,swirl,jpeg],count=2]",
    "bart-training",
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
    "lid",
    "lid[base=gaussian-noise]",
    "lq-vae",
    "lq-vae[base=randomized-smoothing,latents=3]",
)

# Nothing is shipped for these: other parameters, other bases. They are checked untrained.
UNTRAINED = {
    "standard[width=3]",
    "extra-data[method=trades]",
    "max-softmax[base=gaussian-noise]",
    "feature-squeezing-detector[base=jpeg,non_local_means=[5,3,10]]",
    "mahalanobis[base=halftone]",
    "lid[base=gaussian-noise]",
    "lq-vae[base=randomized-smoothing,latents=3]",
}


@pytest.fixture(scope="module", autouse=True)
def _shipped_weights_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RBL_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load()


class TestStandard(DefenseConformance):
    """One test per check, as plugins do it. Below, one per defense: tests by the thousand take longer than their checks."""

    defense = "rbl/standard"


@pytest.mark.parametrize("selector", BATTERY)
def test_it_conforms(selector: str, registry: Registry) -> None:
    outcomes = {outcome.check: outcome for outcome in check_defense(registry, f"rbl/{selector}")}
    failed = [f"{o.check}: {o.reason}\n  fix: {o.fix}" for o in outcomes.values() if o.status == "failed"]
    assert not failed, "\n".join(failed)
    assert (outcomes["weights-found"].status == "skipped") == (selector in UNTRAINED)
    assert outcomes["gradient"].status == outcomes["batch-does-not-matter"].status == "passed"


def test_every_defense_is_tested(registry: Registry) -> None:
    brought = {entry.id for entry in registry.entries("defense") if entry.distribution == "rbl-defenses"}
    assert brought == {f"rbl/{parse_selector(selector).name}" for selector in BATTERY}
