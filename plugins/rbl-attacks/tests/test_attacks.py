"""What all attacks keep, and what is special to PGD and the noises."""

from __future__ import annotations

import math

import pytest
import torch
from never_beaten import never_beaten
from scipy import stats
from torch import Tensor, nn

from rbl_attacks.apgd import APGDCE, APGDT
from rbl_attacks.fgsm import FGSM
from rbl_attacks.geometry import in_ball, length
from rbl_attacks.noise import GaussianNoise, UniformNoise
from rbl_attacks.pgd import PGD
from rbl_attacks.square import Square
from robustbench_lite import InvalidParameter, Randomness, Threat, losses
from robustbench_lite.testing import Linear, Masked, make_target

ATTACKS = {
    "fgsm": (FGSM(), "gradient"),
    "pgd": (PGD(steps=6, restarts=2), "gradient"),
    "apgd-ce": (APGDCE(steps=12, restarts=2), "gradient"),
    "apgd-t": (APGDT(steps=8, restarts=2, targets=2), "gradient"),
    "square": (Square(queries=40, restarts=2), "scores"),
    "uniform-noise": (UniformNoise(), "none"),
    "gaussian-noise": (GaussianNoise(), "none"),
}
EPS = {"linf": 0.04, "l2": 0.25, "l1": 1.0}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A random network with batch norm, so that a model in training mode would tie the batch together."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(24, 2, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_example_gets_the_same_point_whoever_else_is_there(name: str, norm: str, network: nn.Module, images: Tensor) -> None:
    attack, access = ATTACKS[name]
    y, threat = network(images).argmax(1), Threat(norm, EPS[norm])
    target, rng = make_target(network, images, y, threat, access=access)
    whole = attack(target, images, y, threat, rng)
    chosen = torch.tensor([17, 3, 8, 22, 5])
    part, few = make_target(network, images[chosen], y[chosen], threat, access=access, ids=chosen, micro_batch=2)
    assert torch.allclose(attack(part, images[chosen], y[chosen], threat, few), whole[chosen], atol=1e-6)
    assert part.forwards.tolist() == target.forwards[chosen].tolist()


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd-ce", "apgd-t", "square"])
def test_the_expected_cost_is_the_cost_of_an_example_that_is_never_beaten(name: str, images: Tensor) -> None:
    attack, access = ATTACKS[name]
    y, threat = torch.zeros(len(images), dtype=torch.int64), Threat("l2", 0.5)
    target, rng = make_target(never_beaten(72, 3), images, y, threat, access=access)
    attack(target, images, y, threat, rng)
    spent = (target.forwards + target.backwards).unique().tolist()
    assert spent == [attack.passes(3)]  # type: ignore[attr-defined]


def test_more_restarts_beat_all_that_fewer_beat(network: nn.Module, images: Tensor) -> None:
    y, threat = network(images).argmax(1), Threat("linf", 0.02)
    beaten = []
    for restarts in (1, 2, 5):
        target, rng = make_target(network, images, y, threat)
        PGD(steps=3, restarts=restarts)(target, images, y, threat, rng)
        beaten.append(target.broken)
    assert (beaten[1] >= beaten[0]).all()
    assert (beaten[2] >= beaten[1]).all()


def test_pgd_leaves_a_plateau_by_random_directions() -> None:
    """With zero gradients everywhere it is a random walk: it terminates, moves, and stays inside."""
    base = Linear.binary((1, 6, 6))
    x = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    model = Masked(base)
    y = model(x).argmax(1)
    for norm in EPS:
        threat = Threat(norm, EPS[norm])
        target, rng = make_target(model, x, y, threat)
        x_adv = PGD(steps=5, start="zero")(target, x, y, threat, rng)
        assert threat.contains(x, x_adv).all()
        assert (target.forwards >= 1).all()


def test_without_success_pgd_returns_the_highest_loss_that_it_saw(network: nn.Module, images: Tensor) -> None:
    y, threat = network(images).argmax(1), Threat("linf", 0.002)
    target, rng = make_target(network, images, y, threat)
    short = PGD(steps=5, step=0.05)  # steps far too long: the last point is not the best
    x_adv = short(target, images, y, threat, rng)
    left = ~target.broken
    found, clean = losses.cross_entropy(network(x_adv), y), losses.cross_entropy(network(images), y)
    assert left.sum() > 20
    assert (found >= clean)[left].all()


def test_dlr_with_two_classes_is_refused_with_the_way_out() -> None:
    model = Linear.binary((1, 6, 6))
    x = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    target, rng = make_target(model, x, y, "linf:0.1")
    with pytest.raises(InvalidParameter, match="at least 3 classes") as caught:
        PGD(loss="dlr")(target, x, y, Threat("linf", 0.1), rng)
    assert "margin" in caught.value.hint


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_uniform_in_the_ball_means_uniform_volume(norm: str) -> None:
    """The length to the power d is uniform in [0, 1], in units of the radius."""
    x = torch.zeros(4000, 1, 2, 2)
    delta = in_ball(x, Threat(norm, 2.0), Randomness("0", torch.arange(4000)))
    volume = (length(delta, norm).flatten().double() / 2.0) ** 4
    assert stats.kstest(volume.numpy(), "uniform").pvalue > 1e-3
    assert abs(delta.mean().item()) < 0.05


def test_uniform_under_linf_fills_the_cube() -> None:
    delta = in_ball(torch.zeros(4000, 1, 2, 2), Threat("linf", 0.5), Randomness("0", torch.arange(4000)))
    assert stats.kstest(delta.flatten().numpy() + 0.5, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_gaussian_noise_is_as_long_as_the_radius(norm: str) -> None:
    """Before projection the expected length is eps, so about half of the draws end on the sphere (all, per value, in linf)."""
    x = torch.full((500, 1, 16, 16), 0.5)
    eps = 0.01 if norm == "linf" else 0.1
    target, rng = make_target(
        Linear.binary((1, 16, 16)), x, torch.zeros(500, dtype=torch.int64), Threat(norm, eps), access="none"
    )
    x_adv = GaussianNoise()(target, x, torch.zeros(500, dtype=torch.int64), Threat(norm, eps), rng)
    share = (length(x_adv - x, norm) > 0.999 * eps).float().mean().item()
    at_face = ((x_adv - x).abs() > 0.999 * eps).float().mean().item()
    if norm == "linf":
        assert at_face == pytest.approx(1 - math.erf(1 / math.sqrt(2)), abs=0.02)
    else:
        assert share == pytest.approx(0.5, abs=0.08)
