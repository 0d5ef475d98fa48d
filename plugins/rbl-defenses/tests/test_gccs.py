"""GCCS: the loss against closed forms, and what it makes of the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import kurtosis
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from rbl_defenses.gccs import GCCS, JITTER
from robustbench_lite import DatasetBundle, RblError
from robustbench_lite.training import Context, train


def outputs(n: int, size: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=g, dtype=torch.float64)
    return torch.randn(n, size, generator=g, dtype=torch.float64) @ mixing + torch.tensor([1.0, 68.0, -2.0])


def test_a_class_with_enough_examples_is_compared_by_its_full_covariance() -> None:
    z = outputs(40)
    eye = torch.eye(3, dtype=torch.float64)
    fitted = MultivariateNormal(z.mean(0), z.T.cov() + JITTER * eye)
    target = MultivariateNormal(torch.tensor([0.0, 70.0, 0.0], dtype=torch.float64), 4.0 * eye)
    plain = GCCS(kurtosis=0.0, deviation=2.0).of_class(z, 1)
    torch.testing.assert_close(plain, kl_divergence(fitted, target))
    found = GCCS(kurtosis=0.2, deviation=2.0).of_class(z, 1) - plain
    assert found.item() == pytest.approx(0.2 * kurtosis(z.numpy(), fisher=True).mean(), rel=1e-6)


def test_a_class_with_few_examples_is_compared_by_its_variances() -> None:
    z = outputs(5)
    fitted = Independent(Normal(z.mean(0), (z.var(0) + JITTER).sqrt()), 1)
    target = Independent(Normal(torch.tensor([0.0, 70.0, 0.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)), 1)
    torch.testing.assert_close(GCCS(kurtosis=0.0).of_class(z, 1), kl_divergence(fitted, target))


class Fixed(nn.Module):
    """Logits that are given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def test_the_loss_is_the_mean_over_classes_of_four_examples_and_more(context_of: Callable[..., Context]) -> None:
    defense, z = GCCS(), outputs(21)
    y = torch.tensor([0] * 8 + [1] * 10 + [2] * 3)
    model = Fixed(z)
    found = defense.loss(model, z, y, context_of(defense, model))
    each = [defense.of_class(z[:8], 0), defense.of_class(z[8:18], 1)]
    torch.testing.assert_close(found, sum(each) / 2)
    (slope,) = torch.autograd.grad(found, model.logits)
    assert (slope[18:] == 0).all()
    assert (slope[:18] != 0).all()
    with pytest.raises(RblError, match="no class has 4 examples in a batch of 3"):
        defense.loss(Fixed(z[:3]), z, y[18:], context_of(defense, model))


def test_equal_outputs_give_a_finite_loss_and_slope(context_of: Callable[..., Context]) -> None:
    model = Fixed(torch.zeros(40, 10))
    defense, y = GCCS(), torch.arange(40) % 2
    found = defense.loss(model, model.logits, y, context_of(defense, model))
    (slope,) = torch.autograd.grad(found, model.logits)
    assert found.isfinite()
    assert slope.isfinite().all()


def test_what_fits_best_are_gaussians_around_the_vertices_of_a_simplex(context_of: Callable[..., Context]) -> None:
    """70 sqrt(2) from each class to each other, and the identity as each one's covariance."""
    torch.manual_seed(0)
    defense, y = GCCS(kurtosis=0.0), torch.arange(160) % 4
    model = Fixed(torch.randn(160, 4, dtype=torch.float64))
    context = context_of(defense, model)
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = defense.loss(model, model.logits, y, context)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    z = model.logits.detach()
    means = torch.stack([z[y == label].mean(0) for label in range(4)])
    apart = torch.cdist(means, means)[~torch.eye(4, dtype=torch.bool)]
    torch.testing.assert_close(apart, torch.full_like(apart, 70 * math.sqrt(2)), rtol=1e-3, atol=0)
    for label in range(4):
        torch.testing.assert_close(z[y == label].T.cov(), torch.eye(4, dtype=torch.float64), rtol=0, atol=0.02)
    assert (z.argmax(1) == y).all()


def test_digits_are_learned(digits: DatasetBundle) -> None:
    assert GCCS().recipe(digits.info).epochs == 200
    result = train(GCCS(width=4, epochs=12, lr=0.03), digits, seed=0)
    assert result.metrics["clean"] > 0.5  # chance is 0.1
