"""Single-step methods, unions of norms, distillation and SCORE in tables: against their parents, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from probes import CIFAR, DIGITS, EPS, Batch, Subset, descended, loss_and_gradients, moment, network
from torch import Tensor, nn

from rbl_defenses.ard import RobustDistillation
from rbl_defenses.distillation import Distilled
from rbl_defenses.fast_at import FastTraining
from rbl_defenses.fgsm_at import FGSMTraining
from rbl_defenses.free_at import FreeTraining
from rbl_defenses.gat import GuidedTraining
from rbl_defenses.gradalign import GradAlign, cosine
from rbl_defenses.image_defense import ImageDefense
from rbl_defenses.msd import MSD
from rbl_defenses.n_fgsm import NFGSM
from rbl_defenses.rslad import RSLAD
from rbl_defenses.score import Score
from rbl_defenses.standard import Standard
from robustbench_lite import DatasetBundle, losses
from robustbench_lite.training import craft, train

# ------------------------------------------------------------------------------ without its own term a method is its parent

# The step is so long that it ends on the ball's boundary.
ONE_STEP: dict[str, Any] = {"eps": EPS, "l2": 1e-9, "l1": 1e-9, "steps": 1, "relative_step": 10.0}
PARENTS: dict[str, tuple[ImageDefense, ImageDefense]] = {
    "gradalign without weight": (GradAlign(weight=0.0), FGSMTraining()),
    "n-fgsm without noise": (NFGSM(k=0.0), FGSMTraining()),
    "fgsm-at in no ball": (FGSMTraining(eps=0.0), Standard()),
    "fast-at in no ball": (FastTraining(eps=0.0), Standard()),
    "free-at in no ball": (FreeTraining(eps=0.0), Standard()),
    "gat without weight": (GuidedTraining(weight=0.0), Standard()),
    "kd without teacher": (Distilled(mix=0.0), Standard()),
    "ard without teacher": (RobustDistillation(mix=0.0), Standard()),
    "ard in no ball": (RobustDistillation(eps=0.0, mix=0.7, temperature=3.0), Distilled(mix=0.7, temperature=3.0)),
    "rslad without adversarial examples": (RSLAD(mix=0.0), Distilled(mix=1.0, temperature=1.0)),
    "msd of one step where linf is largest": (MSD(**ONE_STEP), FGSMTraining(craft_mode="eval")),
    "max of one step where linf is largest": (MSD(**ONE_STEP, union="max"), FGSMTraining(craft_mode="eval")),
}


@pytest.mark.parametrize("name", PARENTS)
def test_without_its_own_term_a_method_is_its_parent(name: str, batch: Batch, teacher: nn.Module) -> None:
    (loss, gradients), (of_parent, parents) = (loss_and_gradients(d, batch, teacher) for d in PARENTS[name])
    torch.testing.assert_close(loss, of_parent)
    for a, b in zip(gradients, parents, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "defense",
    [
        GradAlign(),
        NFGSM(),
        FastTraining(),
        GuidedTraining(),
        Distilled(),
        RobustDistillation(mix=0.5),
        RSLAD(),
        MSD(),
        Score(),
    ],
    ids=lambda defense: type(defense).__name__,
)
def test_with_it_the_loss_is_another(defense: ImageDefense, batch: Batch, teacher: nn.Module) -> None:
    loss, _ = loss_and_gradients(defense, batch, teacher)
    for other in (Standard(), FGSMTraining()):
        assert not torch.isclose(loss, loss_and_gradients(other, batch)[0], rtol=1e-5, atol=0)


def test_free_training_of_one_replay_in_no_ball_trains_the_weights_of_standard_training(digits: DatasetBundle) -> None:
    small = replace(digits, train=Subset(digits, 200))
    free, plain = (
        train(d, small, seed=1).module.state_dict()
        for d in (FreeTraining(width=2, epochs=2, eps=0.0, replays=1), Standard(width=2, epochs=2))
    )
    assert all(torch.equal(free[name], plain[name]) for name in plain)


# ------------------------------------------------------------------------------------------- what is crafted, what it leaves

# How far from x, in linf, the points of a method lie where the box does not bind.
REACH: dict[str, tuple[ImageDefense, float]] = {
    "fgsm-at": (FGSMTraining(), EPS),
    "fast-at": (FastTraining(), EPS),
    "n-fgsm": (NFGSM(), 3 * EPS),
    "gat": (GuidedTraining(), EPS),
    "gradalign": (GradAlign(), EPS),
    "score": (Score(), EPS),
    "ard": (RobustDistillation(), EPS),
    "rslad": (RSLAD(), EPS),
}


@pytest.mark.parametrize("name", REACH)
def test_crafting_stays_in_ball_and_box_and_leaves_no_trace(name: str, batch: Batch, teacher: nn.Module) -> None:
    defense, reach = REACH[name]
    (x, y), model = batch, network()
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    modes = [module.training for module in model.modules()]
    before, now = x.clone(), moment(defense, teacher=teacher)
    defense.loss(model, x, y, now)
    x_adv = now.once("x_adv", lambda: pytest.fail("nothing was crafted"))
    assert not x_adv.requires_grad
    assert (x_adv - x).abs().max() <= reach + 1e-6
    assert (x_adv - x).abs().max() > 0.6 * reach
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert torch.equal(x, before)
    assert all(parameter.grad is None for parameter in (*model.parameters(), *teacher.parameters()))
    assert [module.training for module in model.modules()] == modes
    assert not frozen.training


@pytest.mark.parametrize("name", REACH)
def test_the_ball_grows_with_the_ramp(name: str, batch: Batch, teacher: nn.Module) -> None:
    defense, reach = REACH[name]
    recipe = defense.recipe(DIGITS)
    for share, least in ((0.0, 0.0), (0.5, 0.2)):
        now = moment(defense, epoch=share * recipe.ramp * recipe.epochs, teacher=teacher)
        defense.loss(network(), *batch, now)
        moved = (now.once("x_adv", lambda: pytest.fail("nothing was crafted")) - batch[0]).abs().max()
        assert least * reach <= moved <= share * reach + 1e-6


@pytest.mark.parametrize(
    ("defense", "mode"),
    [(FGSMTraining(), "train"), (FGSMTraining(craft_mode="eval"), "eval"), (GuidedTraining(), "eval"), (Score(), "train")],
    ids=["fgsm-at", "fgsm-at-eval", "gat", "score"],
)
def test_crafting_is_in_the_mode_that_was_asked_for(defense: ImageDefense, mode: str, batch: Batch) -> None:
    model, seen = network(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0].requires_grad)))
    defense.loss(model, *batch, moment(defense))
    assert {training for training, climbed in seen if climbed} == {mode == "train"}
    assert seen[-1] == (True, False)  # the outer loss


# ------------------------------------------------------------------------------------------- the quantity of a method moves


def apart(model: nn.Module, x: Tensor, y: Tensor, teacher: nn.Module) -> float:
    """Mean squared distance between predictions at x and at the worst of its neighbours."""
    p = model(x).softmax(1)
    x_adv = craft(model, x, lambda z: (z.softmax(1) - p).square().sum(1), eps=EPS, step=EPS / 2, steps=5)
    return (model(x_adv).softmax(1) - p).square().sum(1).mean().item()


def misaligned(model: nn.Module, x: Tensor, y: Tensor, teacher: nn.Module) -> float:
    """1 - cos of the gradients at x and beside it."""
    gradients = []
    for point in (x, (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)):
        leaf = point.clone().requires_grad_()
        gradients.append(torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0])
    return 1 - cosine(*gradients).item()


def disagreement(model: nn.Module, x: Tensor, y: Tensor, teacher: nn.Module) -> float:
    """The divergence from the teacher's answers to clean images, at attacked ones."""
    x_adv = craft(model, x, lambda z: losses.cross_entropy(z, y), eps=EPS, step=EPS / 2, steps=5)
    return losses.divergence(model(x_adv), teacher(x)).mean().item()


MOVES: dict[str, tuple[Callable[..., float], ImageDefense, ImageDefense]] = {
    "score": (apart, Score(beta=0.0), Score()),
    "gat": (apart, GuidedTraining(weight=0.0), GuidedTraining()),
    "gradalign": (misaligned, GradAlign(weight=0.0), GradAlign(weight=2.0)),
    "ard": (disagreement, RobustDistillation(mix=0.0), RobustDistillation()),
    "rslad": (disagreement, RSLAD(mix=0.0), RSLAD()),
}


@pytest.mark.parametrize("name", MOVES)
def test_what_is_penalised_falls(name: str, batch: Batch, teacher: nn.Module) -> None:
    quantity, *defenses = MOVES[name]
    found = []
    for defense in defenses:
        model = descended(defense, batch, teacher)
        torch.manual_seed(0)
        found.append(quantity(model, *batch, teacher))
    without, with_it = found
    assert with_it < 0.7 * without


# -------------------------------------------------------------------------------------------------------- squared distances


def test_score_without_beta_is_the_brier_score_of_smoothed_labels(batch: Batch) -> None:
    x, y = batch
    for smoothing in (0.0, 0.3):
        loss, _ = loss_and_gradients(Score(beta=0.0, smoothing=smoothing), batch)
        target = torch.full((len(y), 10), smoothing / 9).scatter(1, y[:, None], 1 - smoothing)
        with torch.no_grad():
            torch.testing.assert_close(loss, (network()(x).softmax(1) - target).square().sum(1).mean())


@pytest.mark.parametrize("defense", [Score(beta=3.0), GuidedTraining(weight=3.0)], ids=["score", "gat"])
def test_the_gradient_goes_through_both_predictions(defense: ImageDefense, batch: Batch) -> None:
    (x, y), model = batch, network()
    now = moment(defense)
    found = torch.autograd.grad(defense.loss(model, x, y, now), list(model.parameters()))
    x_adv = now.once("x_adv", lambda: pytest.fail("nothing was crafted"))
    z, q = model(x), model(x_adv).softmax(1)
    p = z.softmax(1)
    clean = (p - F.one_hot(y, 10)).square().sum(1).mean() if isinstance(defense, Score) else F.cross_entropy(z, y)
    by_hand = clean + 3.0 * (q - p).square().sum(1).mean()
    for a, b in zip(found, torch.autograd.grad(by_hand, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_score_keeps_what_it_crafts_out_of_the_running_statistics(batch: Batch) -> None:
    model = network()
    Score().loss(model, *batch, moment(Score()))
    assert {int(m.num_batches_tracked or 0) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {2}


# ------------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    "defense",
    [FGSMTraining(), FastTraining(), NFGSM(), GuidedTraining(), GradAlign(), FreeTraining()],
    ids=lambda defense: type(defense).__name__,
)
def test_training_on_single_steps_is_watched_for_catastrophic_overfitting(defense: ImageDefense, digits: DatasetBundle) -> None:
    small = replace(digits, train=Subset(digits, 100))
    history = train(replace(defense, width=2, epochs=1), small).history
    assert {"train_fgsm", "train_pgd", "overfit"} <= history[0].keys()


def test_recipes_for_photographs_are_the_papers() -> None:
    fast, gat, msd = (d.recipe(CIFAR) for d in (FastTraining(), GuidedTraining(), MSD()))
    assert (fast.lr, fast.schedule, fast.batch_size, fast.weight_decay) == (0.2, "linear", 128, 5e-4)
    assert (fast.early_stop, FastTraining().alpha * 8) == ("collapse", 10)  # alpha 10/255 at eps 8/255
    assert (gat.lr, gat.schedule, gat.batch_size, gat.milestones, gat.eps) == (0.1, "step", 64, (0.7, 0.85), 8 / 255)
    assert (msd.lr, msd.points[1], msd.points[2]) == (0.1, (0.4, 1.0), (0.8, 0.05))
    assert MSD().radii(CIFAR) == {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
    assert Score().recipe(CIFAR).ema == 0.995
    assert RobustDistillation().recipe(CIFAR).weight_decay == RSLAD().recipe(CIFAR).weight_decay == 2e-4
    assert FreeTraining().recipe(DIGITS).epochs == 8  # of 60, each shown 8 times
    assert FreeTraining(epochs=5).recipe(DIGITS).epochs == 5
