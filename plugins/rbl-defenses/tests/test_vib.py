"""Training inside a visual imperceptible bound: the bound, the points, the loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rbl_defenses.standard import Standard
from rbl_defenses.vib import VIB, imperceptible_bound
from robustbench_lite import DatasetBundle
from robustbench_lite.data import fetch
from robustbench_lite.training import Context, keeping_buffers, train

Batch = tuple[Tensor, Tensor]
Contexts = Callable[..., Context]


def test_the_bound_is_half_the_distance_to_the_nearest_of_another_class() -> None:
    x = torch.tensor([0.0, 0.1, 0.4, 1.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    y = torch.tensor([0, 0, 1, 1])
    # Pixels apart from the nearest of another class: 0.4, 0.3, 0.3, 0.9.
    assert imperceptible_bound(x, y, "linf", 0.0) == pytest.approx(0.15)
    assert imperceptible_bound(x, y, "linf", 1.0) == pytest.approx(0.45)
    assert imperceptible_bound(x, y, "l2", 0.0) == pytest.approx(0.3)  # four pixels: twice as far
    assert imperceptible_bound(x, y, "l2", 0.5) == pytest.approx(0.35)


def test_on_digits_eps_is_inside_the_bound(digits: DatasetBundle) -> None:
    x, y = fetch(digits.train, range(len(digits.train)))
    flat, labels = x.flatten(1).numpy(), y.numpy()
    found = {}
    for norm, order in (("linf", np.inf), ("l2", 2)):
        nearest = [
            np.linalg.norm(flat[labels != label] - image, order, axis=1).min()
            for image, label in zip(flat, labels, strict=True)
        ]
        for q in (0.0, 0.5):
            found[norm, q] = imperceptible_bound(x, y, norm, q)  # type: ignore[arg-type]
            assert found[norm, q] == pytest.approx(np.quantile(nearest, q) / 2, rel=1e-4)
    assert 0.15 < found["linf", 0.0] < 0.25  # a ball of eps 0.25 holds images that are as near to another class


@pytest.mark.parametrize(("norm", "radius"), [("l2", 0.7), ("linf", 0.2)])
def test_points_lie_in_the_ball_and_the_box_and_far_out(norm: str, radius: float, small: nn.Module) -> None:
    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    points = VIB(norm=norm)._worst(small, x, torch.zeros(64, dtype=torch.long), radius)  # type: ignore[arg-type]
    size = (points - x).flatten(1).norm(dim=1, p=float(norm[1:]))
    assert 0 <= points.min() <= points.max() <= 1
    assert size.max() <= radius * (1 + 1e-5)
    assert size.min() > 0.6 * radius  # a ball of 64 dimensions is mostly rim; the box takes some


def test_of_several_draws_the_worst_is_taken(small: nn.Module, batch: Batch) -> None:
    x, y = batch
    small.eval()

    def loss(draws: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return F.cross_entropy(small(VIB(draws=draws)._worst(small, x, y, 2.0)), y, reduction="none")

    torch.manual_seed(3)
    several = torch.stack([F.cross_entropy(small(VIB()._worst(small, x, y, 2.0)), y, reduction="none") for _ in range(5)])
    torch.testing.assert_close(loss(5, 3), several.amax(0).detach())
    assert (loss(5, 3) >= loss(1, 3)).all()


def test_the_loss_is_the_sum_of_its_parts_and_standard_training_without_them(
    small: nn.Module, batch: Batch, context_of: Contexts
) -> None:
    x, y = batch
    nearby = (x + 0.1).clamp(0, 1)

    def loss(defense: VIB | Standard) -> Tensor:
        context = context_of(defense, small)
        context.state["radius"] = 0.5
        context.once("nearby", lambda: nearby)
        with keeping_buffers(small):
            return defense.loss(small, x, y, context)

    with keeping_buffers(small):
        a, b = small(x), small(nearby)
    clean = loss(Standard())
    assert torch.equal(loss(VIB(augmented=0, consistency=0)), clean)
    torch.testing.assert_close(loss(VIB(augmented=2, consistency=0)), clean + 2 * F.cross_entropy(b, y))
    torch.testing.assert_close(loss(VIB(augmented=0, consistency=3)), clean + 3 * ((a - b) ** 2).sum(1).mean())


def test_training_takes_the_radius_from_its_images(digits: DatasetBundle) -> None:
    result = train(VIB(width=3, epochs=2, quantile=0.5), digits, seed=0)
    assert result.metrics["radius"] == pytest.approx(0.94, abs=0.02)
    assert result.history[0]["radius"] == result.history[1]["radius"]
    assert result.metrics["clean"] > 0.3  # chance is 0.1
