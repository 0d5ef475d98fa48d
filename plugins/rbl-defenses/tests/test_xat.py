"""xAT and xVAT: masks, who raises what the other lowers, and that the generator learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rbl_defenses
from rbl_defenses import hard_concrete
from rbl_defenses.standard import Standard
from rbl_defenses.xat import XAT, XVAT, MaskTraining, generator
from robustbench_lite import DatasetBundle, DatasetInfo
from robustbench_lite.training import Context, Update, keeping_buffers, train

SHIPPED = Path(rbl_defenses.__file__).parent / "weights" / "digits"
Batch = tuple[Tensor, Tensor]
Contexts = Callable[..., Context]


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.5])
def test_masks_are_hard_concrete(logit: float) -> None:
    """The chance of a number above 0, and of one below 1, in closed form: s < t where logit(u) < beta logit(t) - a."""
    torch.manual_seed(0)
    n = 100_000
    logits = torch.full((n,), logit, dtype=torch.float64)
    mask = hard_concrete.draw(logits)
    assert 0 <= mask.min() <= mask.max() <= 1
    positive = 1 / (1 + math.exp(-(logit - 0.66 * math.log(0.1 / 1.1))))
    below_one = 1 / (1 + math.exp(-(0.66 * math.log((1.1 / 1.2) / (0.1 / 1.2)) - logit)))
    for found, expected in (((mask > 0), positive), ((mask < 1), below_one)):
        assert abs(found.double().mean().item() - expected) < 5 * math.sqrt(expected * (1 - expected) / n)
    assert hard_concrete.kept(logits[:1]).item() == pytest.approx(positive)
    assert hard_concrete.mode(logits[:1]).item() == pytest.approx(max(0.0, 1.2 / (1 + math.exp(-logit / 0.66)) - 0.1))
    assert hard_concrete.mode(torch.tensor([-50.0, 50.0])).tolist() == [0.0, 1.0]


def test_the_generator_has_the_papers_shape() -> None:
    def shapes(channels: int) -> list[tuple[int, ...]]:
        info = DatasetInfo(name="mine", classes=("a", "b"), shape=(channels, 8, 8))
        return [tuple(p.shape) for p in XAT().auxiliary(nn.Identity(), info).parameters()]

    assert shapes(3) == [(1, 3, 3, 3), (1,)]
    assert shapes(1) == [(1, 1, 3, 3), (1,)] * 2
    assert generator(3, 1)(torch.rand(5, 3, 8, 6)).shape == (5, 1, 8, 6)


@pytest.mark.parametrize("defense", [XAT(kept=1.5, weight=0.3), XVAT(kept=1.5, weight=0.7)])
def test_the_model_lowers_and_the_generator_raises(
    defense: XAT | XVAT, small: nn.Module, batch: Batch, context_of: Contexts
) -> None:
    """Against gradients of the two objectives, each written down by itself with the same draw."""
    x, y = batch
    context = context_of(defense, small)
    network, masks = list(small.parameters()), list(context.auxiliary.parameters())
    with keeping_buffers(small):
        torch.manual_seed(4)
        found = torch.autograd.grad(defense.loss(small, x, y, context), [*network, *masks])
        torch.manual_seed(4)
        logits = context.auxiliary(x)
        masked = x * hard_concrete.draw(logits)
        share = torch.sigmoid(logits - 0.66 * math.log(0.1 / 1.1)).mean()
        answers = small(x)
        if isinstance(defense, XAT):
            clean, distance = 0.7 * F.cross_entropy(answers, y), 0.3 * F.cross_entropy(small(masked), y)
        else:
            p, q = answers.detach().softmax(1), small(masked).softmax(1)
            clean, distance = F.cross_entropy(answers, y), 0.7 * (q * (q.log() - p.log())).sum(1).mean()
        lowered = torch.autograd.grad(clean + distance, network, retain_graph=True)
        raised = torch.autograd.grad(distance + 1.5 * share, masks)
    for a, b in zip(found, [*lowered, *(-g for g in raised)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert all(g.abs().max() > 0 for g in raised)


@pytest.mark.parametrize("defense", [XAT(weight=0.0), XVAT(weight=0.0)])
def test_without_its_weight_it_is_standard_training(
    defense: MaskTraining, small: nn.Module, batch: Batch, context_of: Contexts
) -> None:
    x, y = batch
    with keeping_buffers(small):
        found = defense.loss(small, x, y, context_of(defense, small))
        assert torch.equal(found, Standard().loss(small, x, y, context_of(Standard(), small)))


def test_masked_images_of_xvat_leave_the_statistics_alone(small: nn.Module, batch: Batch, context_of: Contexts) -> None:
    x, y = batch
    before = {name: value.clone() for name, value in small.state_dict().items()}
    small(x)
    expected = {name: value.clone() for name, value in small.state_dict().items()}
    small.load_state_dict(before)
    XVAT().loss(small, x, y, context_of(XVAT(), small))
    for name, value in small.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, expected[name])
    assert {m.momentum for m in small.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize("defense", [XAT(), XVAT()])
def test_both_train_their_generator_by_adam_at_its_own_rate(
    defense: MaskTraining, small: nn.Module, digits: DatasetBundle
) -> None:
    """In the authors' code that of xAT is in no optimiser."""
    auxiliary = defense.auxiliary(small, digits.info)
    update = Update(defense.parameter_groups(small, auxiliary), defense.recipe(digits.info), "cpu")
    assert isinstance(update.optimiser, torch.optim.Adam)
    update.at(0.0)
    rates = {id(p): group["lr"] for group in update.optimiser.param_groups for p in group["params"]}
    assert [rates[id(p)] for p in auxiliary.parameters()] == pytest.approx([0.002] * 4)
    assert {rates[id(p)] for p in small.parameters()} == {0.003}


@pytest.mark.parametrize("defense", [XAT(kept=20.0), XVAT(kept=20.0)])
def test_the_generator_learns_masks_that_change_the_answer_more_than_the_same_numbers_elsewhere(
    defense: XAT | XVAT, digits: DatasetBundle, context_of: Contexts
) -> None:
    """Against a model that stands still, and each mask against a permutation of itself: it keeps as much."""
    model = Standard()(digits.info, SHIPPED / "standard.safetensors")
    torch.manual_seed(0)
    context = context_of(defense, model)
    x, y = context.examples(128)
    masks = context.auxiliary
    optimiser = torch.optim.Adam(masks.parameters(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        defense.loss(model, x, y, context).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        mask = hard_concrete.draw(masks(x))
        elsewhere = mask.flatten(1).gather(1, torch.rand(len(x), 64).argsort(1)).view_as(mask)
        answers = model(x)

        def distance(m: Tensor) -> float:
            changed = model(x * m)
            if isinstance(defense, XAT):
                return F.cross_entropy(changed, y).item()
            return F.kl_div(answers.log_softmax(1), changed.log_softmax(1), reduction="batchmean", log_target=True).item()

        assert distance(mask) > 1.2 * distance(elsewhere)
    assert 0.5 < (mask > 0).float().mean() < 0.98


def test_a_short_training_learns_and_tells_what_the_masks_keep(digits: DatasetBundle) -> None:
    result = train(XAT(width=4, epochs=5), digits, seed=0)
    assert result.metrics["clean"] > 0.7
    assert 0.3 < result.metrics["mask"] < result.metrics["kept"] < 0.98
