"""Sinkhorn adversarial training: the divergence against other ways of computing it, and the loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, minimize
from torch import Tensor, nn

from rbl_defenses.pgd_at import PGDTraining
from rbl_defenses.sinkhorn_at import SinkhornTraining, sinkhorn_divergence, transport_cost
from robustbench_lite.training import Context, keeping_buffers

Batch = tuple[Tensor, Tensor]


def clouds(n: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=g, dtype=torch.float64), 1 + torch.randn(m, 3, generator=g, dtype=torch.float64)


def exact(a: Tensor, b: Tensor, sigma: float, iterations: int = 2000) -> Tensor:
    return transport_cost(a, b, sigma=sigma, iterations=iterations, tolerance=0.0)


@pytest.mark.parametrize(("n", "m", "sigma"), [(3, 3, 1.0), (3, 2, 0.5), (2, 4, 3.0)])
def test_the_plan_is_the_one_that_a_general_optimiser_finds(n: int, m: int, sigma: float) -> None:
    """Minimise <P, C> + sigma sum P log P over plans with the given margins, without Sinkhorn's iterations."""
    a, b = clouds(n, m)
    cost = ((a[:, None] - b) ** 2).sum(2).numpy()

    def objective(flat: np.ndarray) -> float:  # type: ignore[type-arg]
        plan = flat.reshape(n, m)
        return float((plan * cost).sum() + sigma * (plan * np.log(plan)).sum())

    margins = [{"type": "eq", "fun": lambda f, i=i: f.reshape(n, m)[i].sum() - 1 / n} for i in range(n)]
    margins += [{"type": "eq", "fun": lambda f, j=j: f.reshape(n, m)[:, j].sum() - 1 / m} for j in range(m - 1)]
    start = np.full(n * m, 1 / (n * m))
    found = minimize(
        objective, start, bounds=[(1e-12, 1)] * (n * m), constraints=margins, options={"ftol": 1e-14, "maxiter": 500}
    )
    assert exact(a, b, sigma).item() == pytest.approx((found.x.reshape(n, m) * cost).sum(), rel=1e-4)


def test_with_little_regularisation_it_is_the_best_assignment_and_with_much_the_mean_distance() -> None:
    a, b = clouds(6, 6)
    cost = ((a[:, None] - b) ** 2).sum(2)
    rows, columns = linear_sum_assignment(cost.numpy())
    assert exact(a, b, 0.005, 20_000).item() == pytest.approx(cost[rows, columns].mean().item(), rel=1e-3)
    assert exact(a, b, 1e6).item() == pytest.approx(cost.mean().item(), rel=1e-5)


def test_large_logits_do_not_overflow() -> None:
    a, b = (1e4 * cloud.float() for cloud in clouds(6, 6))
    a.requires_grad_()
    found = sinkhorn_divergence(a, b, sigma=1.0, iterations=50, tolerance=0.1)
    (slope,) = torch.autograd.grad(found, a)
    assert found.isfinite()
    assert slope.isfinite().all()


def test_the_divergence_of_equal_clouds_is_zero_and_grows_with_their_distance() -> None:
    a, _ = clouds(8, 8)

    def divergence(b: Tensor) -> float:
        return sinkhorn_divergence(a, b, sigma=1.0, iterations=500, tolerance=0.0).item()

    assert divergence(a) == pytest.approx(0, abs=1e-12)
    assert divergence(a.flip(0)) == pytest.approx(0, abs=1e-9)  # clouds have no order
    moved = [divergence(a + step) for step in (0.1, 0.5, 2.0)]
    assert 0 < moved[0] < moved[1] < moved[2]
    assert moved[2] == pytest.approx(3 * 2.0**2, rel=0.1)
    assert divergence(a + 0.5) == pytest.approx(
        sinkhorn_divergence(a + 0.5, a, sigma=1.0, iterations=500, tolerance=0.0).item()
    )


def test_iterations_end_once_the_potential_hardly_moves() -> None:
    a, b = clouds(10, 10)
    settled = exact(a, b, 1.0)
    first, early = (transport_cost(a, b, sigma=1.0, iterations=k, tolerance=0.0) for k in (1, 50))
    assert abs(first - settled) > 1e-2 > abs(early - settled)
    assert torch.equal(transport_cost(a, b, sigma=1.0, iterations=50, tolerance=1e9), first)


def test_gradients_flow_into_both_clouds_and_are_those_of_the_value() -> None:
    a, b = (cloud.requires_grad_() for cloud in clouds(3, 4))

    def value(one: Tensor, other: Tensor) -> Tensor:
        return sinkhorn_divergence(one, other, sigma=0.7, iterations=30, tolerance=0.0)

    assert torch.autograd.gradcheck(value, (a, b))


def test_the_loss_adds_the_divergence_between_logits_at_both_images(
    small: nn.Module, batch: Batch, context_of: Callable[..., Context]
) -> None:
    x, y = batch
    x_adv = (x + 0.1).clamp(0, 1)

    def loss(defense: SinkhornTraining | PGDTraining) -> Tensor:
        context = context_of(defense, small)
        context.once("x_adv", lambda: x_adv)
        with keeping_buffers(small):
            return defense.loss(small, x, y, context)

    with keeping_buffers(small):
        divergence = sinkhorn_divergence(small(x), small(x_adv), sigma=1.0, iterations=50, tolerance=0.1)
    assert divergence > 0
    plain = loss(PGDTraining(craft_mode="train"))
    assert torch.equal(loss(SinkhornTraining(weight=0.0)), plain)
    torch.testing.assert_close(loss(SinkhornTraining()), plain + divergence)
    torch.testing.assert_close(loss(SinkhornTraining(weight=3.0)), plain + 3 * divergence)


def test_what_is_crafted_stays_in_the_box(small: nn.Module, batch: Batch, context_of: Callable[..., Context]) -> None:
    x, y = batch
    defense = SinkhornTraining()
    context = context_of(defense, small)
    defense.loss(small, x, y, context)
    x_adv = context.once("x_adv", lambda: x)
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert 0.1 < (x_adv - x).abs().max() <= 0.15 + 1e-6
