"""BPDA: the values of one function, the gradient of another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_lite.errors import PluginError
from robustbench_lite.randomness import Randomness, keyed_draws, randn_like
from robustbench_lite.surrogates import bpda


def stairs(x: Tensor) -> Tensor:
    """Eight steps: the gradient is zero everywhere."""
    return (x * 8).floor() / 8


@settings(deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.booleans())
def test_values_are_those_of_forward_bit_for_bit(seed: int, wants_grad: bool, smooth: bool) -> None:
    x = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_(wants_grad)
    out = bpda(stairs, torch.sigmoid if smooth else "identity")(x)
    assert torch.equal(out, stairs(x))
    assert out.requires_grad == wants_grad


def test_the_gradient_of_the_identity_is_what_comes_from_above() -> None:
    x = torch.rand(3, 5, requires_grad=True)
    above = torch.randn(3, 5)
    (grad,) = torch.autograd.grad(bpda(stairs)(x), x, above)
    assert torch.equal(grad, above)
    (grad,) = torch.autograd.grad(stairs(x).sum(), x)
    assert torch.equal(grad, torch.zeros_like(x))


def test_the_gradient_of_a_function_is_taken_at_the_input() -> None:
    x = torch.rand(3, 5, requires_grad=True)
    above = torch.randn(3, 5)
    (got,) = torch.autograd.grad(bpda(stairs, lambda t: t**3)(x), x, above)
    torch.testing.assert_close(got, 3 * x.detach() ** 2 * above)


def test_shapes_may_change_when_backward_changes_them_too() -> None:
    pool = nn.AvgPool2d(2)
    x = torch.rand(2, 1, 4, 4, requires_grad=True)
    out = bpda(lambda t: stairs(pool(t)), pool)(x)
    assert torch.equal(out, stairs(pool(x)))
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, torch.full_like(x, 0.25))


def test_the_chain_rule_goes_through() -> None:
    x, weight = torch.rand(4, 3, requires_grad=True), torch.randn(3)
    (grad,) = torch.autograd.grad(((bpda(stairs)(x * 2) * weight).sum(1) ** 2).sum(), x)
    level = (stairs(x.detach() * 2) * weight).sum(1, keepdim=True)
    torch.testing.assert_close(grad, 2 * level * weight * 2)


def test_forward_runs_once_and_without_a_graph_and_backward_only_for_gradients() -> None:
    calls: list[str] = []

    def hard(t: Tensor) -> Tensor:
        calls.append(f"hard, graph: {torch.is_grad_enabled() and t.requires_grad}")
        return stairs(t)

    def smooth(t: Tensor) -> Tensor:
        calls.append("smooth")
        return t * 1

    step = bpda(hard, smooth)
    x = torch.rand(2, 3, requires_grad=True)
    step(x.detach())
    with torch.no_grad():
        step(x)
    assert calls == ["hard, graph: False"] * 2
    step(x).sum().backward()  # type: ignore[no-untyped-call]
    assert calls == ["hard, graph: False"] * 3 + ["smooth"]


def test_layers_that_work_in_place_may_follow() -> None:
    for forward in (stairs, lambda t: t, lambda t: t.view_as(t)):
        x = torch.randn(3, 5, requires_grad=True)
        kept = x.detach().clone()
        out = nn.functional.relu(bpda(forward)(x), inplace=True)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert torch.equal(x, kept)
        assert torch.equal(grad, (forward(kept) > 0).float())


def test_a_random_step_draws_the_same_numbers_with_and_without_gradients() -> None:
    step = bpda(lambda t: stairs(t + randn_like(t)), lambda t: t + randn_like(t))
    x = torch.rand(2, 3)
    values = []
    for wants_grad in (False, True):
        with keyed_draws(Randomness("cell", torch.arange(2)), torch.zeros(2, dtype=torch.int64)):
            values.append(step(x.clone().requires_grad_(wants_grad)).detach())
    assert torch.equal(*values)


def test_a_staircase_is_climbed_to_within_a_step_of_the_linear_optimum() -> None:
    g = torch.Generator().manual_seed(0)
    x, weight, eps = torch.rand(6, 20, generator=g), torch.randn(20, generator=g), 0.3
    best = (torch.minimum(torch.full_like(x, eps), torch.where(weight > 0, 1 - x, x)) * weight.abs()).sum(1)
    step, point = bpda(stairs), x
    for _ in range(20):
        leaf = point.detach().requires_grad_()
        (grad,) = torch.autograd.grad((step(leaf) * weight).sum(), leaf)
        point = (leaf.detach() + 0.05 * grad.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    reached = ((stairs(point) - stairs(x)) * weight).sum(1)
    assert (reached >= best - weight.abs().sum() / 8).all()
    assert (reached > 0).all()


def test_what_cannot_work_is_an_error() -> None:
    x = torch.rand(2, 4, requires_grad=True)
    with pytest.raises(PluginError, match="backward must be 'identity'"):
        bpda(stairs, "idnetity")  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"\(2, 2\).*\(2, 4\)"):
        bpda(lambda t: t[:, :2])(x)
    with pytest.raises(PluginError, match="int64"):
        bpda(lambda t: t.long())(x)
    with pytest.raises(PluginError, match="list"):
        bpda(lambda t: t.tolist())(x)  # type: ignore[arg-type, return-value]


def test_the_public_name_is_the_function_however_it_was_imported() -> None:
    import robustbench_lite
    import robustbench_lite.surrogates

    assert robustbench_lite.bpda is robustbench_lite.surrogates.bpda
