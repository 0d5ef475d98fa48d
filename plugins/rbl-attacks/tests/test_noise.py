"""Noise: the closed form on a linear model, what each kind looks like, and what it costs to take the worst of several."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rbl_attacks.geometry import length
from rbl_attacks.noise import GaussianNoise, RepeatedNoise, SaltAndPepper
from robustbench_lite import Randomness, Target, Threat
from robustbench_lite.testing import Linear, make_target

COPIES = 4000


def copies(distance_in_sigmas: float, sigma: float) -> tuple[Linear, Tensor, Tensor]:
    """A linear model, and one image many times, so many standard deviations of gaussian noise from the boundary."""
    model = Linear.binary((1, 6, 6))
    w = (model.weight[1] - model.weight[0]).detach()
    x = 0.5 + (distance_in_sigmas * sigma / w.norm() * w).view(1, 1, 6, 6)
    return model, x.expand(COPIES, -1, -1, -1).clone(), torch.ones(COPIES, dtype=torch.int64)


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0])
def test_accuracy_under_gaussian_noise_is_the_normal_distribution_of_the_margin(distance: float) -> None:
    sigma = 0.02
    model, x, y = copies(distance, sigma)
    threat = Threat("l2", 2 * 6 * sigma)  # twice the expected length: nothing is projected
    target, rng = make_target(model, x, y, threat, access="none")
    x_adv = GaussianNoise(scale=0.5)(target, x, y, threat, rng)
    expected = 0.5 * (1 + math.erf(distance / math.sqrt(2)))
    found = (model(x_adv).argmax(1) == y).double().mean().item()
    assert abs(found - expected) < 3 * math.sqrt(expected * (1 - expected) / COPIES)


@pytest.mark.parametrize("draws", [1, 2, 5])
def test_the_worst_of_n_independent_draws_leaves_the_nth_power(draws: int) -> None:
    sigma = 0.02
    model, x, y = copies(1.0, sigma)
    threat = Threat("l2", 2 * 6 * sigma)
    target, rng = make_target(model, x, y, threat, access="decision")
    x_adv = RepeatedNoise(kind="gaussian", scale=0.5, draws=draws)(target, x, y, threat, rng)
    once = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    found = (model(x_adv).argmax(1) == y).double().mean().item()
    assert abs(found - once**draws) < 3 * math.sqrt(once**draws * (1 - once**draws) / COPIES)
    assert target.queries[~target.broken].unique().tolist() == [draws]
    # The k-th draw is made where the first k - 1 did nothing.
    assert target.queries.double().mean().item() == pytest.approx(sum(once**k for k in range(draws)), rel=0.05)


def test_more_draws_beat_all_that_fewer_beat() -> None:
    model, x, y = copies(1.0, 0.02)
    threat = Threat("linf", 0.02)
    points, beaten = [], []
    for draws in (1, 3, 8):
        target, rng = make_target(model, x[:200], y[:200], threat, access="decision")
        points.append(RepeatedNoise(draws=draws)(target, x[:200], y[:200], threat, rng))
        beaten.append(target.broken)
    for k in (0, 1):
        assert (beaten[k + 1] >= beaten[k]).all()
        assert torch.equal(points[k + 1][beaten[k]], points[k][beaten[k]])
    assert beaten[2].sum() > beaten[0].sum()


class Recorder(Target):
    """A target that keeps what it is shown."""

    def labels(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        self.__dict__.setdefault("shown", []).append(x.clone())
        return super().labels(x, index)


def shown(attack: RepeatedNoise | SaltAndPepper, x: Tensor, threat: Threat) -> Tensor:
    """All points (draws * N, ...) of an attack on a model that nothing beats."""
    model = Linear(torch.zeros(2, x[0].numel()), torch.tensor([1.0, 0.0]))
    y = torch.zeros(len(x), dtype=torch.int64)
    target, rng = make_target(model, x, y, threat, access="decision")
    target.__class__ = Recorder
    assert torch.equal(attack(target, x, y, threat, rng), x)
    return torch.cat(target.__dict__["shown"])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_kinds_differ_in_how_far_they_go(norm: str) -> None:
    x, threat = torch.full((300, 1, 6, 6), 0.5), Threat(norm, 0.1)
    sizes = {
        kind: threat.size(x.repeat(2, 1, 1, 1), shown(RepeatedNoise(kind=kind, draws=2), x, threat))
        for kind in ("uniform", "gaussian", "sphere")
    }
    assert sizes["sphere"].tolist() == pytest.approx([0.1] * 600, rel=1e-4)
    assert (sizes["uniform"] < 0.0999).float().mean() > 0.1
    assert all((size <= threat.limit).all() for size in sizes.values())
    assert torch.unique(sizes["uniform"]).numel() > 500, "every example and draw has noise of its own"


def test_points_of_the_l2_sphere_have_no_preferred_direction() -> None:
    x, threat = torch.full((COPIES, 1, 2, 2), 0.5), Threat("l2", 0.3)
    delta = (shown(RepeatedNoise(kind="sphere", draws=1), x, threat) - x).flatten(1).double() / 0.3
    assert (delta.mean(0).abs() < 4 / math.sqrt(4 * COPIES)).all()  # the variance of a coordinate is 1/4
    assert torch.allclose(delta.T @ delta / COPIES, torch.eye(4, dtype=torch.float64) / 4, atol=0.02)


def test_salt_and_pepper_makes_so_many_pixels_black_or_white() -> None:
    x, threat = torch.full((200, 3, 5, 7), 0.4), Threat("l0", 6.0)
    points = shown(SaltAndPepper(draws=3), x, threat)
    changed = (points != 0.4).all(1)
    assert ((points != 0.4).any(1) == changed).all(), "all channels of a pixel, or none"
    assert changed.flatten(1).sum(1).unique().tolist() == [6]
    grains = points.permute(0, 2, 3, 1)[changed]
    assert (grains == grains[:, :1]).all()
    assert grains.unique().tolist() == [0.0, 1.0]
    assert grains.mean().item() == pytest.approx(0.5, abs=0.05)
    assert changed.float().mean(0).flatten().tolist() == pytest.approx([6 / 35] * 35, abs=0.07)


@pytest.mark.parametrize("attack", [RepeatedNoise(kind="sphere"), RepeatedNoise(kind="gaussian"), SaltAndPepper()])
def test_a_radius_of_zero_changes_nothing(attack: RepeatedNoise | SaltAndPepper) -> None:
    x = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    threat = Threat("l0" if isinstance(attack, SaltAndPepper) else "l2", 0.0)
    assert torch.equal(shown(attack, x, threat), x.repeat(10, 1, 1, 1))


def test_noise_of_one_draw_is_what_it_was() -> None:
    """Results of earlier runs are kept under keys that say nothing of how the noise is computed."""
    x, threat = torch.full((2, 1, 3, 3), 0.5), Threat("l1", 0.3)
    rng = Randomness("0", torch.arange(2))
    target, _ = make_target(Linear.binary((1, 3, 3)), x, torch.zeros(2, dtype=torch.int64), threat, access="none")
    point = GaussianNoise(scale=0.7)(target, x, torch.zeros(2, dtype=torch.int64), threat, rng)
    sigma = 0.7 * 0.3 / (9 * math.sqrt(2 / math.pi))
    assert torch.equal(point, threat.project(x, x + rng.normal(None, (1, 3, 3)) * sigma))
    assert (length(point - x, "l1") > 0).all()
