"""Training against a union of balls: steepest ascent in three norms, against the closed forms of linear models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from probes import EPS, L1, L2, Batch, moment, network
from torch import nn

from rbl_defenses.msd import MSD
from rbl_defenses.steepest import few, step
from robustbench_lite import DatasetInfo
from robustbench_lite.testing import Linear

INFO = DatasetInfo(name="mine", classes=("a", "b"), shape=(1, 4, 4))


def spread(seed: int = 0) -> Linear:
    """Two logits whose difference has six equal largest weights: then steps in l1 reach the optimum."""
    model = Linear.binary((1, 4, 4), seed=seed)
    with torch.no_grad():
        w = 0.1 * torch.ones(16)
        w[[0, 2, 5, 7, 11, 12]] = 0.4
        w[::2] *= -1
        model.weight.copy_(torch.stack([-w / 2, w / 2]))
        model.bias.zero_()
    return model


@pytest.mark.parametrize("radii", [(0.05, 0.6, 0.1), (0.01, 0.3, 0.1), (0.005, 0.02, 0.9)], ids=["linf", "l2", "l1"])
def test_the_union_of_balls_of_a_linear_model_is_won_by_the_largest_dual_norm(radii: tuple[float, float, float]) -> None:
    """The worst points of the balls lower a margin by eps times the l1, the l2 and the linf norm of the weights."""
    eps, l2, l1 = radii
    model = spread()
    g = torch.Generator().manual_seed(0)
    x, y = 0.45 + 0.1 * torch.rand(8, 1, 4, 4, generator=g), torch.randint(0, 2, (8,), generator=g)
    w = model.weight[1] - model.weight[0]
    margin = (2 * y - 1) * (x.flatten(1) @ w)
    fall = torch.stack([eps * w.abs().sum(), l2 * w.norm(), l1 * w.abs().max()])
    at = F.softplus(-(margin[:, None] - fall))
    expected = {"max": at.max(1).values.mean(), "msd": at.max(1).values.mean(), "avg": at.mean()}
    for union, value in expected.items():
        defense = MSD(eps=eps, l2=l2, l1=l1, steps=60, union=union)  # type: ignore[arg-type]
        torch.manual_seed(0)
        found = defense.loss(model, x, y, moment(defense, info=INFO))
        torch.testing.assert_close(found, value, rtol=0.02, atol=0)


@pytest.mark.parametrize("union", ["msd", "max", "avg"])
def test_points_of_a_union_are_in_one_of_the_balls_and_in_the_box(union: str, batch: Batch) -> None:
    defense = MSD(union=union)  # type: ignore[arg-type]
    (x, y), model = batch, network()
    modes, now = [module.training for module in model.modules()], moment(defense)
    defense.loss(model, x, y, now)
    points = now.once("points", lambda: pytest.fail("nothing was crafted"))
    assert len(points) == (3 if union == "avg" else 1)
    for x_adv in points:
        delta = (x_adv - x).flatten(1)
        inside = [delta.abs().amax(1) <= EPS + 1e-5, delta.norm(dim=1) <= L2 + 1e-5, delta.abs().sum(1) <= L1 + 1e-5]
        assert torch.stack(inside).any(0).all()
        assert 0 <= x_adv.min() <= x_adv.max() <= 1
        assert delta.abs().amax(1).min() > 0
        assert not x_adv.requires_grad
    if union == "avg":  # each in its own
        deltas = [(x_adv - x).flatten(1) for x_adv in points]
        sizes = [deltas[0].abs().amax(1), deltas[1].norm(dim=1), deltas[2].abs().sum(1)]
        for size, radius in zip(sizes, (EPS, L2, L1), strict=True):
            assert 0.6 * radius < size.max() <= radius * (1 + 1e-5)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_msd_finds_more_than_any_single_norm_where_the_balls_are_alike(batch: Batch, fitted: nn.Module) -> None:
    x, y = batch

    def found(union: str) -> list[float]:
        defense = MSD(eps=0.1, l2=0.6, l1=2.5, union=union)  # type: ignore[arg-type]
        torch.manual_seed(0)
        points = defense.points(fitted, x, y, moment(defense))
        return [F.cross_entropy(fitted(point), y).item() for point in points]

    single, worst, together = found("avg"), found("max"), found("msd")
    assert worst[0] >= max(single) - 1e-4
    assert together[0] > max(single)


def test_steps_in_l1_change_a_few_coordinates_that_the_box_does_not_stop() -> None:
    g = torch.Generator().manual_seed(0)
    gradient, now = torch.randn(6, 1, 8, 8, generator=g), torch.rand(6, 1, 8, 8, generator=g).round()
    torch.manual_seed(0)
    counts = set()
    for _ in range(60):
        direction = few(gradient, now)
        changed = direction != 0
        (count,) = set(changed.flatten(1).sum(1).tolist())
        counts.add(count)
        torch.testing.assert_close(direction.flatten(1).abs().sum(1), torch.ones(6))
        assert not (changed & (((gradient < 0) & (now == 0)) | ((gradient > 0) & (now == 1)))).any()
        assert (direction * gradient >= 0).all()
    assert (min(counts), max(counts)) == (5, 20)


@pytest.mark.parametrize(("norm", "order"), [("linf", float("inf")), ("l2", 2), ("l1", 1)])
def test_a_step_has_its_length_and_stays_in_its_ball(norm: Any, order: float) -> None:
    g = torch.Generator().manual_seed(0)
    gradient, x = torch.randn(6, 1, 8, 8, generator=g), torch.full((6, 1, 8, 8), 0.5)
    free, held = step(x, x, gradient, norm, 1.0, 0.1), step(x, x, gradient, norm, 0.05, 0.1)
    for point, size in ((free, 0.1), (held, 0.05)):
        torch.testing.assert_close((point - x).flatten(1).norm(order, dim=1), torch.full((6,), size), rtol=1e-4, atol=1e-6)
