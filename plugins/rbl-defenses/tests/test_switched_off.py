"""Methods that change one thing of another: with that switched off they are that other, to the last bit; switched on, not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rbl_defenses.band_limited import BandLimited, BandLimitedTraining
from rbl_defenses.bnsr import BNSR, SkewReduced
from rbl_defenses.class_selectivity import ClassSelectivity
from rbl_defenses.f_mixup import FMixup
from rbl_defenses.maxdropout import MaxDropout, MaxDropoutTraining
from rbl_defenses.norm_loss import NormLoss
from rbl_defenses.pgd_at import PGDTraining
from rbl_defenses.pni import PNI
from rbl_defenses.standard import Standard
from rbl_defenses.weight_align import Aligned, WeightAlign
from robustbench_lite import DatasetBundle, DatasetInfo, TrainedDefense, UsageError
from robustbench_lite.training import Around, train

SMALL = {"width": 2, "epochs": 1}


@pytest.fixture(scope="module")
def plain(digits: DatasetBundle) -> dict[str, Tensor]:
    return dict(train(Standard(width=2, epochs=1), digits, seed=3).module.state_dict())


@pytest.mark.parametrize(
    ("off", "on"),
    [
        (FMixup(**SMALL, weight=0), FMixup(**SMALL)),  # type: ignore[arg-type]
        (ClassSelectivity(**SMALL, alpha=0), ClassSelectivity(**SMALL)),  # type: ignore[arg-type]
        (NormLoss(weight=0), NormLoss()),
        (MaxDropoutTraining(drop=0), MaxDropoutTraining()),
        (BNSR(power=1), BNSR()),
        (BandLimitedTraining(keep=1), BandLimitedTraining()),
    ],
    ids=lambda defense: type(defense).__name__,
)
def test_switched_off_it_trains_what_standard_training_does(
    off: TrainedDefense, on: TrainedDefense, digits: DatasetBundle, plain: dict[str, Tensor]
) -> None:
    def trained(defense: TrainedDefense) -> dict[str, Tensor]:
        bound = defense.around(Standard(width=2, epochs=1)) if isinstance(defense, Around) else defense
        found = train(bound, digits, seed=3).module.state_dict()
        return {name.replace("wrapped.", ""): value for name, value in found.items()}

    found = trained(off)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    other = trained(on)
    first, last = "0.1.weight", "3.weight"
    assert not torch.equal(other[first], plain[first])
    assert not torch.equal(other[last], plain[last])


NETWORKS: list[tuple[Around, type[nn.Module], int]] = [
    (MaxDropoutTraining(), MaxDropout, 9),  # the stem's ReLU, and that of each of the eight blocks, which it runs twice
    (BNSR(), SkewReduced, 20),
    (BandLimitedTraining(), BandLimited, 20),
    (WeightAlign(), Aligned, 20),
]


@pytest.mark.parametrize(("method", "kind", "count"), NETWORKS, ids=lambda value: type(value).__name__)
def test_every_layer_of_any_network_is_changed(
    method: Around, kind: type[nn.Module], count: int, digits: DatasetBundle
) -> None:
    info = replace(digits.info, shape=(3, 8, 8), mean=None, std=None)
    model = method.around(Standard(network="resnet-18")).architecture(info)
    assert sum(isinstance(module, kind) for module in model.modules()) == count
    with torch.no_grad():
        assert model.eval()(torch.rand(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("method", [NormLoss(), MaxDropoutTraining(), BNSR(), BandLimitedTraining(), WeightAlign()])
def test_it_is_around_adversarial_training_as_well(
    method: Around, batch: tuple[Tensor, Tensor], context_of: Callable[..., object]
) -> None:
    bound = method.around(PGDTraining(width=2, steps=1))
    assert bound.recipe(context_of(Standard(), nn.Identity()).info).eps == 0.15  # type: ignore[attr-defined]
    torch.manual_seed(0)
    model = bound.architecture(context_of(Standard(), nn.Identity()).info)  # type: ignore[attr-defined]
    context = context_of(bound, model)
    loss = bound.loss(model, *batch, context)  # type: ignore[arg-type]
    x_adv = context.once("x_adv", lambda: batch[0])  # type: ignore[attr-defined]
    assert 0.1 < (x_adv - batch[0]).abs().max() <= 0.15 + 1e-6
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("method", [BandLimitedTraining(method="pni"), WeightAlign(method="pni")])
def test_convolutions_that_are_changed_already_are_refused(method: Around, digits: DatasetBundle) -> None:
    with pytest.raises(UsageError, match="pni has changed its convolutions already"):
        method.around(PNI()).architecture(digits.info)


def test_band_limited_refuses_what_it_has_no_spectrum_for(digits: DatasetBundle) -> None:
    class Circular(Standard):
        def architecture(self, info: DatasetInfo) -> nn.Module:
            return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(128, 10))

    with pytest.raises(UsageError, match="do not pad with a number of zeros"):
        BandLimitedTraining().around(Circular()).architecture(digits.info)
