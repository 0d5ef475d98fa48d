"""Norm loss: its value and slope, what it takes the place of, and where lengths end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import rbl_defenses
from rbl_defenses.norm_loss import NormLoss, filter_norms
from rbl_defenses.standard import Standard
from robustbench_lite import DatasetBundle
from robustbench_lite.training import Context

SHIPPED = Path(rbl_defenses.__file__).parent / "weights" / "digits"


def test_the_loss_and_its_slope_are_those_of_the_formula(
    small: nn.Module, batch: tuple[Tensor, Tensor], context_of: Callable[..., Context]
) -> None:
    defense = NormLoss(weight=0.3).around(Standard())
    plain = Standard().loss(small, *batch, context_of(Standard(), small))
    found = defense.loss(small, *batch, context_of(defense, small))
    layers = [module for module in small.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 5
    away = sum(((1 - w.norm()) ** 2 for layer in layers for w in layer.weight), torch.zeros(()))
    torch.testing.assert_close(found, plain + 0.3 * away)
    parameters = dict(small.named_parameters())
    slopes = torch.autograd.grad(found - plain, list(parameters.values()), allow_unused=True)
    for (name, p), slope in zip(parameters.items(), slopes, strict=True):
        if p.dim() > 1:
            length = p.flatten(1).norm(dim=1).view(-1, *(1,) * (p.dim() - 1))
            torch.testing.assert_close(slope, 0.3 * 2 * (length - 1) * p / length, rtol=1e-3, atol=1e-5)
        else:
            assert slope is None or slope.abs().max() < 1e-6, name  # biases, and scales of batch norm


def test_it_takes_the_place_of_weight_decay(digits: DatasetBundle) -> None:
    recipes = [NormLoss(weight=w).around(Standard(weight_decay=1e-3)).recipe(digits.info) for w in (0.0, 0.01)]
    assert [recipe.weight_decay for recipe in recipes] == [1e-3, 0.0]


def test_the_filters_of_the_shipped_weights_are_nearer_to_length_1_than_those_of_standard_training(
    digits: DatasetBundle,
) -> None:
    with torch.no_grad():
        plain = filter_norms(Standard()(digits.info, SHIPPED / "standard.safetensors"))
        found = filter_norms(NormLoss().around(Standard())(digits.info, SHIPPED / "norm-loss.safetensors"))
    assert (1 - found).abs().mean() < 0.25 * (1 - plain).abs().mean()
