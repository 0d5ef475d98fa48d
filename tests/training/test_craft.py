"""Crafting: where adversarial examples start, where they end, and what they leave as it was."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_lite.losses import cross_entropy
from robustbench_lite.testing import Linear
from robustbench_lite.training import craft, in_mode, keeping_buffers
from tests.training.common import Halves


def climb(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, start: Literal["uniform", "gaussian", "zero"]) -> Tensor:
    return craft(model, x, lambda z: cross_entropy(z, y), eps=eps, step=eps / 4, steps=8, start=start)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0.001, 0.6), st.sampled_from(["uniform", "gaussian", "zero"]))
def test_a_linear_model_is_beaten_in_closed_form(seed: int, eps: float, start: Literal["uniform", "gaussian", "zero"]) -> None:
    """The worst point of ball and box moves every pixel as far as it can go, against the sign of its weight."""
    g = torch.Generator().manual_seed(seed)
    model, x = Linear.binary((1, 4, 4), seed=seed), torch.rand(5, 1, 4, 4, generator=g)
    with torch.no_grad():
        model.weight.mul_(0.1)  # else the softmax saturates, and its gradient is exactly zero
    y = torch.randint(0, 2, (5,), generator=g)
    kept, before = x.clone(), torch.get_rng_state()
    x_adv = climb(model, x, y, eps, start=start)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), before) == (start == "zero")
    w = (model.weight[1] - model.weight[0]).detach().view(1, 1, 4, 4)
    away = -w.sign() * (2 * y - 1).view(-1, 1, 1, 1)
    worst = (x + eps * away).clamp(0, 1)
    # Eight steps of a quarter cross the whole ball, from wherever in it they start.
    torch.testing.assert_close(x_adv, worst, rtol=0, atol=1e-6)
    assert (x_adv - x).abs().max() <= eps + 1e-6
    assert 0 <= x_adv.min() <= x_adv.max() <= 1


def test_starts_are_where_they_say() -> None:
    model, x, y = Linear.binary((1, 4, 4)), torch.full((400, 1, 4, 4), 0.5), torch.zeros(400, dtype=torch.int64)

    def begin(start: Literal["uniform", "gaussian", "zero"], eps: float = 0.2) -> Tensor:
        return craft(model, x, lambda z: cross_entropy(z, y), eps=eps, step=0.1, steps=0, start=start) - 0.5

    n = x.numel()
    assert begin("zero").abs().max() == 0
    uniform = begin("uniform")
    assert 0.199 < uniform.abs().max() <= 0.2 + 1e-6
    assert abs(uniform.mean().item()) < 5 * 0.2 / math.sqrt(3 * n)
    gaussian = begin("gaussian")
    assert abs(gaussian.std().item() / 0.001 - 1) < 5 / math.sqrt(2 * n)
    assert begin("gaussian", eps=0.0005).abs().max() <= 0.0005 + 1e-7


class Frozen(nn.Module):
    """A part in evaluation mode inside a model in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.fixed = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.linear = nn.Linear(16, 2)
        self.fixed.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.fixed(self.free(x)).flatten(1))
        return logits


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_each_module_gets_its_own_mode_back(mode: Literal["eval", "train"]) -> None:
    model = Frozen()
    before = {name: m.training for name, m in model.named_modules()}
    with in_mode(model, mode):
        assert {m.training for m in model.modules()} == {mode == "train"}
    assert {name: m.training for name, m in model.named_modules()} == before

    def fail() -> None:
        with in_mode(model, mode):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {name: m.training for name, m in model.named_modules()} == before


@pytest.mark.parametrize(("mode", "counted"), [("eval", 0), ("train", 4)])
def test_crafting_touches_the_statistics_of_batch_norm_only_where_asked(mode: Literal["eval", "train"], counted: int) -> None:
    model, data = Frozen(), Halves(20)
    craft(model, data.x, lambda z: cross_entropy(z, data.y), eps=0.1, step=0.05, steps=4, mode=mode)
    assert int(model.free.num_batches_tracked or 0) == counted
    assert all(p.grad is None for p in model.parameters())


# -------------------------------------------------------------------------------------------------------------------- in l2


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0.01, 0.45), st.sampled_from(["uniform", "gaussian", "zero"]))
def test_in_l2_a_linear_model_is_beaten_along_its_weights(seed: int, eps: float, start: Literal["uniform", "zero"]) -> None:
    """Far from the box, the worst point is eps away in the direction of the weights' difference."""
    g = torch.Generator().manual_seed(seed)
    model, x = Linear.binary((1, 4, 4), seed=seed), 0.45 + 0.1 * torch.rand(5, 1, 4, 4, generator=g)
    with torch.no_grad():
        model.weight.mul_(0.1)
    y = torch.randint(0, 2, (5,), generator=g)
    x_adv = craft(model, x, lambda z: cross_entropy(z, y), eps=eps, step=eps / 2, steps=60, norm="l2", start=start)
    w = (model.weight[1] - model.weight[0]).detach().view(1, 1, 4, 4)
    worst = x - eps * (2 * y - 1).view(-1, 1, 1, 1) * w / w.norm()
    torch.testing.assert_close(x_adv, worst, rtol=0, atol=2e-3 * eps)
    assert ((x_adv - x).flatten(1).norm(dim=1) <= eps + 1e-6).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.floats(0.01, 5.0))
def test_in_l2_points_stay_in_ball_and_box(seed: int, eps: float) -> None:
    torch.manual_seed(seed)
    model, x, y = Linear.binary((1, 4, 4), seed=seed), torch.rand(6, 1, 4, 4).round(), torch.randint(0, 2, (6,))
    x_adv = craft(model, x, lambda z: cross_entropy(z, y), eps=eps, step=eps, steps=5, norm="l2")
    assert ((x_adv - x).flatten(1).norm(dim=1) <= eps + 1e-6).all()
    assert 0 <= x_adv.min() <= x_adv.max() <= 1


def test_starts_are_uniform_in_the_l2_ball() -> None:
    """Of 16 dimensions, the share of the ball within r of the centre is (r / eps)^16."""
    torch.manual_seed(0)
    model, x = Linear.binary((1, 4, 4)), torch.full((4000, 1, 4, 4), 0.5)
    start = craft(model, x, lambda z: z.sum(1), eps=0.3, step=0.1, steps=0, norm="l2") - x
    radius = start.flatten(1).norm(dim=1) / 0.3
    for share in (0.1, 0.5, 0.9):
        found = (radius < share ** (1 / 16)).float().mean().item()
        assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / 4000)
    assert start.flatten(1).mean(0).abs().max() < 5 * 0.3 / math.sqrt(18 * 4000)  # each coordinate has variance eps^2 / 18


def test_no_gradient_in_l2_is_no_step() -> None:
    model, x = Linear.binary((1, 4, 4)), torch.full((3, 1, 4, 4), 0.5)
    assert torch.equal(craft(model, x, lambda z: 0 * z.sum(1), eps=0.3, step=0.1, steps=3, norm="l2", start="zero"), x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_start_of_ones_own_is_brought_into_ball_and_box(norm: Literal["linf", "l2"]) -> None:
    model, x = Linear.binary((1, 4, 4)), torch.rand(3, 1, 4, 4)
    near = (x + 0.001).clamp(max=1)
    assert torch.allclose(craft(model, x, lambda z: z.sum(1), eps=0.1, step=0.1, steps=0, norm=norm, start=near), near)
    far = craft(model, x, lambda z: z.sum(1), eps=0.1, step=0.1, steps=0, norm=norm, start=x + 5)
    size = (far - x).abs().amax() if norm == "linf" else (far - x).flatten(1).norm(dim=1).max()
    assert size <= 0.1 + 1e-6
    assert far.max() <= 1


def test_buffers_are_kept_but_parameters_are_not() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with keeping_buffers(model):
        model(Halves(20).x)
        assert int(model[0].num_batches_tracked) == 1
        with torch.no_grad():
            model[2].weight.zero_()
    after = model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["2.weight"]
