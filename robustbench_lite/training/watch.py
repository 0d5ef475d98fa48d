"""What is measured after each epoch, on held-out and on training images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustbench_lite.losses import cross_entropy
from robustbench_lite.training.craft import craft
from robustbench_lite.training.recipe import Recipe

# The attack by which robust accuracy is watched during training.
MONITOR_STEPS = 10
# Training images on which one step is compared with ten, and the difference in accuracy that counts as overfitting to it.
OVERFIT_IMAGES = 256
OVERFIT_POINTS = 0.3


def watch(module: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> dict[str, float]:
    """Accuracy on held-out examples: clean, and under PGD-10 at the recipe's eps, where it has one."""
    module.eval()
    found = {"clean": accuracy(module, x, y)}
    if recipe.eps:
        found["robust"] = _under_attack(module, x, y, recipe, MONITOR_STEPS)
    return found


def overfitting(module: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> dict[str, float]:
    """Accuracy on training examples under one step of size eps from x (FGSM) and under PGD-10, and whether the first is more
    than 30 points above the second: catastrophic overfitting (Wong et al., 2020, arXiv:2001.03994). No number is drawn from
    the generators that training uses.
    """
    module.eval()
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        fgsm = _under_attack(module, x, y, recipe, 1)
        pgd = _under_attack(module, x, y, recipe, MONITOR_STEPS)
    return {"train_fgsm": fgsm, "train_pgd": pgd, "overfit": fgsm - pgd > OVERFIT_POINTS}


def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of examples that the module classifies correctly, as it is."""
    with torch.no_grad():
        return float((module(x).argmax(1) == y).float().mean())


def _under_attack(module: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, steps: int) -> float:
    step = recipe.eps if steps == 1 else 2.5 * recipe.eps / steps
    x_adv = craft(
        module,
        x,
        lambda z: cross_entropy(z, y),
        eps=recipe.eps,
        step=step,
        steps=steps,
        norm=recipe.norm,
        start="zero" if steps == 1 else "uniform",
    )
    return accuracy(module, x_adv, y)
