"""N-FGSM, guided and free training, GradAlign: each step against what its paper says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from probes import EPS, Batch, moment, network
from torch import Tensor

from rbl_defenses.fgsm_at import FGSMTraining
from rbl_defenses.free_at import FreeTraining
from rbl_defenses.gat import GuidedTraining
from rbl_defenses.gradalign import GradAlign, cosine
from rbl_defenses.n_fgsm import NFGSM
from robustbench_lite import DatasetInfo, losses
from robustbench_lite.testing import Linear
from robustbench_lite.training import Update

GREY, LABELS = torch.full((16, 1, 8, 8), 0.5), torch.arange(16) % 10  # the box is far


def test_n_fgsm_is_one_unclipped_step_from_its_noise() -> None:
    defense, model = NFGSM(eps=0.1, craft_mode="eval"), network().eval()
    torch.manual_seed(3)
    found = defense.point(model, GREY, LABELS, moment(defense))
    torch.manual_seed(3)
    start = (GREY + torch.empty_like(GREY).uniform_(-0.2, 0.2)).requires_grad_()
    (gradient,) = torch.autograd.grad(losses.cross_entropy(model(start), LABELS).sum(), start)
    torch.testing.assert_close(found, start.detach() + 0.1 * gradient.sign())
    assert (found - GREY).abs().max() > 0.25


@pytest.mark.parametrize("number", [0, 1])
def test_guided_steps_start_at_random_signs_and_are_guided_in_every_second_batch(number: int) -> None:
    """A large weight decides the direction of guided steps: they climb the distance, the others the cross-entropy."""
    defense, model = GuidedTraining(eps=0.1, weight=1e6), network().eval()
    p = model(GREY).softmax(1).detach()
    climbed: Callable[[Tensor], Tensor]
    climbed = (lambda z: (z.softmax(1) - p).square().sum(1)) if number else (lambda z: losses.cross_entropy(z, LABELS))
    torch.manual_seed(3)
    found = defense.point(model, GREY, LABELS, moment(defense, step=number))
    torch.manual_seed(3)
    start = (GREY + 0.05 * torch.empty_like(GREY).bernoulli_().mul_(2).sub_(1)).requires_grad_()
    assert sorted(set(start.detach().round(decimals=4).flatten().tolist())) == pytest.approx([0.45, 0.55])
    (gradient,) = torch.autograd.grad(climbed(model(start)).sum(), start)
    expected = GREY + (start.detach() + 0.1 * gradient.sign() - GREY).clamp(-0.1, 0.1)
    assert (found - expected).abs().gt(1e-4).float().mean() < 0.01


def test_the_weight_of_guided_training_rises_at_the_end() -> None:
    defense = GuidedTraining(epochs=100)
    weights = [defense.weight_now(moment(defense, epoch=epoch)) for epoch in (0.0, 84.9, 85.0, 99.0)]
    assert weights == [10.0, 10.0, 40.0, 40.0]


def test_free_training_replays_each_batch_and_takes_delta_along(batch: Batch) -> None:
    defense, model = FreeTraining(replays=3), network()
    now, seen = moment(defense), []
    update = Update(defense.parameter_groups(model, None), replace(now.recipe, lr=0.01), "cpu")
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    (x, y), first = batch, copy.deepcopy(model.state_dict())
    for part in (slice(0, 24), slice(24, 48)):
        defense.train_batch(model, x[part], y[part], now, update)
    assert len(seen) == 6
    assert torch.equal(seen[0], x[:24])  # it begins with nothing
    for i, shown in enumerate(seen):
        clean = x[:24] if i < 3 else x[24:]
        assert (shown - clean).abs().max() <= EPS + 1e-6
        assert -1e-6 <= shown.min() <= shown.max() <= 1 + 1e-6
    # One step of size eps along the sign of the gradient that the weights' own backward pass gave.
    leaf = x[:24].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network()(leaf), y[:24]), leaf)
    torch.testing.assert_close(seen[1], (x[:24] + EPS * gradient.sign()).clamp(0, 1))
    # The next batch begins where this one ended, and the weights moved with every pass.
    assert (seen[3] - x[24:]).abs().mean() > 0.1 * EPS
    assert now.state["delta"].shape == x[:24].shape
    assert {int(value) for name, value in model.state_dict().items() if name.endswith("tracked")} == {6}
    assert not torch.equal(first["1.weight"], model.state_dict()["1.weight"])


def test_gradalign_adds_one_minus_the_cosine_with_the_gradient_at_x_held_fixed(batch: Batch) -> None:
    (x, y), defense = batch, GradAlign(weight=2.0)
    now, model = moment(defense), network().eval()  # batch norm makes no difference between the passes
    found = defense.loss(model, x, y, now)
    kept = {name: now.once(name, lambda: pytest.fail("not kept")) for name in ("x_adv", "near")}
    assert (kept["near"] - x).abs().max() <= EPS + 1e-6

    def gradient(z: Tensor) -> Tensor:
        z = z.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(z), y, reduction="none").sum(), z, create_graph=True)
        return g.flatten(1).double()

    cos = F.cosine_similarity(gradient(x).detach(), gradient(kept["near"]), eps=1e-30)
    by_hand = F.cross_entropy(model(kept["x_adv"]), y) + 2.0 * (1 - cos.mean())
    torch.testing.assert_close(found, by_hand.float())
    parameters = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(v, parameters) for v in (found, by_hand)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_cosine_does_not_see_sizes_nor_examples_without_gradient() -> None:
    a, b = torch.tensor([[1.0, 0], [0, 1], [0, 0]]), torch.tensor([[1.0, 0], [1, 0], [1, 1]])
    assert cosine(a, b) == 0.5
    assert cosine(1e-12 * a, 1e-9 * b) == 0.5
    assert cosine(a[2:], b[2:]) == 1.0


def test_a_linear_model_is_aligned_already() -> None:
    info = DatasetInfo(name="mine", classes=("a", "b"), shape=(1, 4, 4))
    model, g = Linear.binary((1, 4, 4), seed=0), torch.Generator().manual_seed(0)
    x, y = 0.4 + 0.2 * torch.rand(8, 1, 4, 4, generator=g), torch.randint(0, 2, (8,), generator=g)
    plain, aligned = FGSMTraining(eps=0.1), GradAlign(eps=0.1, weight=100.0)
    found, expected = (d.loss(model, x, y, moment(d, info=info)) for d in (aligned, plain))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
