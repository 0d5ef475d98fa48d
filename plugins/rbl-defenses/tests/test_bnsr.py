"""Batch norm with skewness reduction: the formula, its statistics and its slope at 0."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import skew
from torch import Tensor, nn

from rbl_defenses.bnsr import SkewReduced


def powered(power: float) -> SkewReduced:
    layer = SkewReduced(nn.BatchNorm2d(3), power)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        layer.bias.copy_(torch.tensor([0.0, -1.0, 0.3]))
    return layer


def images() -> Tensor:
    torch.manual_seed(0)
    return 3 * torch.randn(16, 3, 4, 4) + 1


def test_the_power_is_between_normalisation_and_the_affine_map() -> None:
    layer, x = powered(1.3), images()
    h = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1) * h.sign() * h.abs() ** 1.3 + torch.tensor([0, -1, 0.3]).view(
        3, 1, 1
    )
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_in_use_it_has_the_running_statistics_of_batch_norm() -> None:
    layer, norm, x = powered(1.0 + 1e-7), nn.BatchNorm2d(3), images()
    norm.load_state_dict({"weight": layer.weight, "bias": layer.bias}, strict=False)
    torch.testing.assert_close(layer(x), norm(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(layer.eval()(x[:1]), norm.eval()(x[:1]), rtol=0, atol=1e-5)
    assert not torch.equal(layer(x), layer.train()(x))


@pytest.mark.parametrize(("power", "raised"), [(0.5, False), (1.01, True), (2.0, True)])
def test_the_skewness_moves_with_the_exponent(power: float, raised: bool) -> None:
    """Of exponential numbers, which have 2: the remembered exponent, above 1, raises it; one below 1 would reduce it."""
    x = torch.distributions.Exponential(torch.tensor(1.0)).icdf((torch.arange(20_000) + 0.5) / 20_000)
    layer = SkewReduced(nn.BatchNorm2d(1), power)
    plain, found = float(skew(x.numpy())), float(skew(layer(x.view(-1, 1, 1, 1)).detach().flatten().numpy()))
    assert (found > plain) == raised
    assert abs(found - plain) > 0.01


@pytest.mark.parametrize("power", [0.5, 1.01])
def test_the_slope_is_finite_where_a_number_is_the_mean(power: float) -> None:
    layer, x = SkewReduced(nn.BatchNorm2d(1), power), torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).pow(3).sum(), x)
    assert slope.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(layer(x).sum(), list(layer.parameters())))
