"""Distillation: divergences by hand, who is trained when, and what defensive distillation hides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from probes import CIFAR, DIGITS, EPS, Batch, loss_and_gradients, moment, network
from torch import Tensor, nn

from rbl_defenses.ard import RobustDistillation
from rbl_defenses.defensive_distillation import DefensiveDistillation
from rbl_defenses.distillation import Distilled
from rbl_defenses.rslad import RSLAD
from robustbench_lite import DatasetBundle, losses
from robustbench_lite.data import fetch
from robustbench_lite.registry import load
from robustbench_lite.training import accuracy, craft, train
from robustbench_lite.training.recipe import schedule


def by_hand(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student), softened by T."""
    p = (teacher / temperature).softmax(1)
    return temperature**2 * (p * (p.log() - (student / temperature).log_softmax(1))).sum(1).mean()


def test_the_divergence_is_weighed_by_the_square_of_the_temperature(batch: Batch, teacher: nn.Module) -> None:
    x, y = batch
    with torch.no_grad():
        z, t = network()(x), teacher(x)
    found, gradients = loss_and_gradients(Distilled(mix=0.7, temperature=5.0), batch, teacher)
    torch.testing.assert_close(found, 0.3 * F.cross_entropy(z, y) + 0.7 * by_hand(z, t, 5.0))
    assert all(bool(gradient.any()) for gradient in gradients[-2:])


@pytest.mark.parametrize(
    ("temperature", "name", "expected"), [(None, "digits", 5.0), (None, "cifar10", 30.0), (2.0, "digits", 2.0)]
)
def test_ard_compares_the_student_at_attacked_images_with_the_teacher_at_clean_ones(
    temperature: float | None, name: str, expected: float, batch: Batch, teacher: nn.Module
) -> None:
    (x, y), model, defense = batch, network().eval(), RobustDistillation(eps=EPS, temperature=temperature, craft_mode="eval")
    info = DIGITS if name == "digits" else CIFAR
    now = moment(defense, info=info, teacher=teacher)
    found = defense.loss(model, x, y, now)
    x_adv = now.once("x_adv", lambda: pytest.fail("nothing was crafted"))
    with torch.no_grad():
        torch.testing.assert_close(found.detach(), by_hand(model(x_adv), teacher(x), expected))
        assert losses.cross_entropy(model(x_adv), y).mean() > losses.cross_entropy(model(x), y).mean()


def test_rslad_attacks_its_disagreement_with_the_teacher_and_needs_no_labels(
    batch: Batch, fitted: nn.Module, teacher: nn.Module
) -> None:
    (x, y), defense = batch, RSLAD()
    found = []
    for labels in (y, y.flip(0)):
        now = moment(defense, teacher=teacher)
        torch.manual_seed(4)
        found.append(defense.loss(fitted, x, labels, now))
    torch.testing.assert_close(found[0], found[1])
    x_adv = now.once("x_adv", lambda: pytest.fail("nothing was crafted"))
    there, here = (losses.divergence(fitted(z), teacher(x)).mean() for z in (x_adv, x))
    assert there > 2 * here
    torch.testing.assert_close(found[0], 5 / 6 * there + 1 / 6 * here)


def test_a_distilling_defense_names_a_teacher_that_exists() -> None:
    known = {entry.spec.name for entry in load().entries("defense")}
    assert {Distilled().teacher, RobustDistillation().teacher, RSLAD().teacher} <= known
    assert Distilled().teacher == "standard"  # the control learns from a teacher that is not robust


# --------------------------------------------------------------------------------------------------- defensive distillation


def test_the_first_half_trains_the_teacher_and_the_second_the_student(batch: Batch) -> None:
    (x, y), defense = batch, DefensiveDistillation(epochs=10, temperature=20.0)
    model, teacher = network(), network(seed=5)
    for epoch, trained, still in ((4.9, teacher, model), (5.0, model, teacher)):
        loss = defense.loss(model, x, y, moment(defense, epoch=epoch, auxiliary=teacher))
        found = torch.autograd.grad(loss, [*trained.parameters(), *still.parameters()], allow_unused=True)
        count = len(list(trained.parameters()))
        assert all(gradient is not None for gradient in found[:count])
        assert all(gradient is None for gradient in found[count:])
    with torch.no_grad():
        softened = (teacher.eval()(x) / 20).softmax(1)
        expected = -(softened * (model(x) / 20).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss.detach(), 20 * expected)


def test_both_halves_have_a_learning_rate_that_falls_to_nothing() -> None:
    recipe = DefensiveDistillation().recipe(DIGITS)
    assert recipe.epochs == 120
    rates = [schedule(recipe, epoch) for epoch in (0.0, 30.0, 59.999, 60.0, 90.0, 119.999)]
    assert rates == pytest.approx([0.1, 0.05, 0.0, 0.1, 0.05, 0.0], abs=1e-5)


def test_defensive_distillation_hides_the_gradient_of_the_cross_entropy_and_nothing_else(digits: DatasetBundle) -> None:
    """The finding of Carlini & Wagner, 2017: what withstands attacks on the cross-entropy falls to those on logits."""
    model = train(DefensiveDistillation(width=8, epochs=40), digits, seed=0).module.requires_grad_(False)
    x, y = fetch(digits.test, range(150))
    assert accuracy(model, x, y) > 0.9

    def under(loss: Callable[[Tensor], Tensor], *, steps: int, step: float) -> float:
        torch.manual_seed(0)
        x_adv = craft(model, x, loss, eps=EPS, step=step, steps=steps, start="zero" if steps == 1 else "uniform")
        return accuracy(model, x_adv, y)

    def cross_entropy(z: Tensor) -> Tensor:
        return F.cross_entropy(z, y, reduction="none")

    assert under(cross_entropy, steps=1, step=EPS) > 0.6
    assert under(cross_entropy, steps=20, step=EPS / 4) > 0.6
    assert under(lambda z: losses.margin(z, y), steps=20, step=EPS / 4) < 0.1
