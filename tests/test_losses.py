"""Losses against their definitions, and where float32 would spoil them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustbench_lite import losses

VECTOR = torch.tensor([[3.0, 1.0, 0.0, -1.0]])


@pytest.mark.parametrize(("label", "margin", "dlr"), [(0, -2.0, -2 / 3), (1, 2.0, 2 / 3), (2, 3.0, 1.0)])
def test_margin_and_dlr_by_hand(label: int, margin: float, dlr: float) -> None:
    y = torch.tensor([label])
    assert losses.margin(VECTOR, y).item() == pytest.approx(margin)
    assert losses.dlr(VECTOR, y).item() == pytest.approx(dlr)


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 20), scale=st.floats(0.1, 5))
def test_cross_entropy_is_torchs(seed: int, classes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(6, classes, generator=generator)).requires_grad_()
    y = torch.randint(0, classes, (6,), generator=generator)
    ours, theirs = losses.cross_entropy(logits, y), F.cross_entropy(logits.double(), y, reduction="none")
    assert torch.allclose(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(ours.sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad(theirs.sum(), logits)
    assert torch.allclose(grad, exact, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("lead", [5.0, 15.0, 17.0, 30.0, 60.0, 85.0])
def test_the_gradient_of_a_confident_prediction_keeps_its_digits(lead: float) -> None:
    """In float64 it is -p for the label, p shared by the others; float32 must agree to five digits, not just be non-zero."""
    logits = torch.tensor([[lead, 0.5, 0.0]], requires_grad=True)
    y = torch.tensor([0])
    (grad,) = torch.autograd.grad(losses.cross_entropy(logits, y).sum(), logits)
    others = torch.tensor([0.5, 0.0], dtype=torch.float64).logsumexp(0)
    wrong = torch.sigmoid(others - lead).item()
    assert grad[0, 0].item() == pytest.approx(-wrong, rel=1e-5)
    assert grad.sum().item() == pytest.approx(0, abs=1e-5 * wrong)


def gradient_direction(loss: Tensor, logits: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return F.normalize(grad, dim=1)


@pytest.mark.parametrize("name", ["margin", "dlr"])
def test_margins_do_not_saturate(name: str) -> None:
    logits = (1e4 * VECTOR).requires_grad_()
    assert (gradient_direction(getattr(losses, name)(logits, torch.tensor([0])), logits) != 0).any()


@given(shift=st.floats(-50, 50), scale=st.floats(0.1, 100))
def test_dlr_knows_no_shift_and_no_scale(shift: float, scale: float) -> None:
    y = torch.tensor([0])
    assert losses.dlr(scale * VECTOR + shift, y).item() == pytest.approx(losses.dlr(VECTOR, y).item(), rel=1e-3)


def test_dlr_needs_three_classes() -> None:
    with pytest.raises(ValueError, match="at least 3 classes"):
        losses.dlr(torch.zeros(1, 2), torch.tensor([0]))


@pytest.mark.parametrize(("label", "target", "value"), [(0, 1, -4 / 7), (0, 3, -8 / 7), (1, 0, 4 / 7), (2, 1, 2 / 7)])
def test_targeted_dlr_by_hand(label: int, target: int, value: float) -> None:
    assert losses.targeted_dlr(VECTOR, torch.tensor([label]), torch.tensor([target])).item() == pytest.approx(value)


def test_targeted_dlr_needs_four_classes() -> None:
    with pytest.raises(ValueError, match="at least 4 classes"):
        losses.targeted_dlr(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([1]))


@given(seed=st.integers(0, 10_000), shift=st.floats(-50, 50), scale=st.floats(0.1, 100))
def test_targeted_dlr_rises_with_its_target_and_knows_no_shift_and_no_scale(seed: int, shift: float, scale: float) -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    y, target = logits.argmax(1), logits.argmin(1)
    value = losses.targeted_dlr(logits, y, target)
    assert (value < 0).all()
    assert torch.allclose(losses.targeted_dlr(scale * logits + shift, y, target), value, rtol=2e-3)
    raised = logits.scatter_add(1, target[:, None], torch.full((4, 1), 0.01))
    assert (losses.targeted_dlr(raised, y, target) > value).all()


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 20))
def test_the_targeted_cross_entropy_is_torchs_negated(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, classes, generator=generator)
    target = torch.randint(0, classes, (6,), generator=generator)
    expected = -F.cross_entropy(logits.double(), target, reduction="none")
    assert torch.allclose(losses.targeted_cross_entropy(logits, target).double(), expected, rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 20))
def test_the_divergence_is_torchs(seed: int, classes: int) -> None:
    logits, reference = 3 * torch.randn(2, 6, classes, generator=torch.Generator().manual_seed(seed))
    expected = F.kl_div(logits.double().log_softmax(1), reference.double().softmax(1), reduction="none").sum(1)
    assert torch.allclose(losses.divergence(logits, reference).double(), expected, rtol=1e-4, atol=1e-5)


def test_the_divergence_is_flat_where_it_is_zero() -> None:
    reference = torch.tensor([[3.0, 1.0, -200.0], [0.0, 0.0, 0.0]])
    logits = (reference + 5).requires_grad_()
    value = losses.divergence(logits, reference)
    assert value.tolist() == pytest.approx([0, 0], abs=1e-6)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert grad.abs().max() < 1e-6


KNOWN = {"cross_entropy": 2, "dlr": 3, "targeted_dlr": 4}  # losses whose derivative is written out, and the classes they need


def known(name: str) -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]:
    loss = getattr(losses, name)
    both = losses.with_slope(loss)
    assert both is not None
    return loss, both


@pytest.mark.parametrize("name", KNOWN)
@given(seed=st.integers(0, 10_000), more=st.integers(0, 16), scale=st.floats(0.1, 50))
def test_a_derivative_written_out_is_autograds(name: str, seed: int, more: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes = KNOWN[name] + more
    logits = (scale * torch.randn(8, classes, generator=generator, dtype=torch.float64)).requires_grad_()
    y = torch.randint(0, classes, (8,), generator=generator)
    labels = (y, (y + torch.randint(1, classes, (8,), generator=generator)) % classes)[: 2 if name == "targeted_dlr" else 1]
    loss, both = known(name)
    value, slope = both(logits.detach(), *labels)
    expected = loss(logits, *labels)
    (exact,) = torch.autograd.grad(expected.sum(), logits)
    assert torch.allclose(value, expected, rtol=1e-9, atol=0)
    # torch takes softplus for the identity above 20. Where the ratio's denominator is small, its derivative is large, in terms
    # that cancel.
    assert torch.allclose(slope, exact, rtol=1e-8, atol=1e-12 * float(1 + exact.abs().max()))


@pytest.mark.parametrize("lead", [-200.0, -30.0, 5.0, 30.0, 60.0, 85.0])
def test_the_cross_entropy_written_out_keeps_its_digits_too(lead: float) -> None:
    logits = torch.tensor([[lead + 20, 20.5, 20.0]])
    y = torch.tensor([0])
    wide = logits.double().requires_grad_()
    (exact,) = torch.autograd.grad(losses.cross_entropy(wide, y).sum(), wide)
    value, slope = known("cross_entropy")[1](logits, y)
    assert torch.allclose(slope.double(), exact, rtol=1e-4, atol=0)
    assert torch.allclose(value.double(), losses.cross_entropy(wide, y), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", KNOWN)
def test_a_derivative_written_out_says_so_of_logits_that_are_not_finite(name: str) -> None:
    logits = torch.tensor([[0.5, float("nan"), 1.0, 2.0, 0.0]])
    value, _ = known(name)[1](logits, torch.tensor([0]), *[torch.tensor([2])] * (name == "targeted_dlr"))
    assert not value.isfinite().any()


@pytest.mark.parametrize(("name", "classes"), [("dlr", 2), ("targeted_dlr", 3)])
def test_too_few_classes_are_an_error_of_the_derivative_too(name: str, classes: int) -> None:
    y = torch.tensor([0])
    with pytest.raises(ValueError, match=f"needs at least {classes + 1} classes"):
        known(name)[1](torch.zeros(1, classes), y, *[y] * (name == "targeted_dlr"))


def test_other_functions_are_left_to_autograd() -> None:
    assert losses.with_slope(losses.margin) is None
    assert losses.with_slope(lambda logits, y: losses.dlr(logits, y)) is None
