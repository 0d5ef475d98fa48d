"""The monitor of catastrophic overfitting: one step that overshoots what ten steps find."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite import DatasetInfo
from robustbench_lite.training import Recipe, identity, model_card, train
from robustbench_lite.training.watch import overfitting
from tests.training.common import Halves, Plain, bundle

EPS = 0.1


class Pit(nn.Module):
    """Right everywhere but in a pit half way to the edge of the ball: one full step jumps over it, small ones fall in."""

    def __init__(self) -> None:
        super().__init__()
        self.grey = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        away = (x.mean((1, 2, 3)) - self.grey).abs() / EPS
        margin = 1 - 2 * torch.exp(-(((away - 0.5) / 0.3) ** 2))
        return torch.stack([margin, -margin], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_pit_that_one_step_jumps_over_is_found(norm: str) -> None:
    x, y = torch.full((20, 1, 4, 4), 0.5) + 1e-3, torch.zeros(20, dtype=torch.int64)
    size = EPS if norm == "linf" else EPS * math.sqrt(16)
    recipe = Recipe(epochs=1, eps=size, norm=norm)  # type: ignore[arg-type]
    assert overfitting(Pit(), x, y, recipe) == {"train_fgsm": 1.0, "train_pgd": 0.0, "overfit": True}


def test_a_linear_model_does_not_overfit_to_its_step() -> None:
    recipe = Recipe(epochs=5, batch_size=32, eps=0.2, overfitting=True)
    history = train(Plain(settings=recipe), bundle()).history
    for epoch in history:
        assert epoch["train_fgsm"] == epoch["train_pgd"]
        assert epoch["overfit"] is False


def test_watching_for_it_draws_nothing_and_changes_nothing() -> None:
    before = torch.get_rng_state()
    overfitting(Pit(), Halves(20).x, Halves(20).y, Recipe(epochs=1, eps=EPS))
    assert torch.equal(torch.get_rng_state(), before)
    recipes = [Recipe(epochs=3, eps=0.2, shift=1, overfitting=watching) for watching in (False, True)]
    plain, watched = (train(Plain(settings=recipe), bundle()) for recipe in recipes)
    assert all(torch.equal(a, b) for a, b in zip(plain.module.parameters(), watched.module.parameters(), strict=True))
    assert [epoch["robust"] for epoch in plain.history] == [epoch["robust"] for epoch in watched.history]


@dataclass(frozen=True, kw_only=True)
class Pitted(Plain):
    def architecture(self, info: DatasetInfo) -> nn.Module:
        return Pit()


def test_the_card_says_it() -> None:
    class Grey(Halves):
        def __init__(self, n: int, seed: int = 0) -> None:
            self.x, self.y = torch.full((n, 1, 4, 4), 0.501), torch.zeros(n, dtype=torch.int64)

    data = bundle(100)
    object.__setattr__(data, "train", Grey(100))
    recipe = Recipe(epochs=2, lr=1e-6, eps=EPS, overfitting=True)
    result = train(Pitted(settings=recipe), data)
    made_of = identity("lab/pit", 1, {}, data, 0, recipe=recipe)
    card = model_card(made_of, result)
    assert card["overfit"] is True
    assert [epoch["overfit"] for epoch in card["history"]] == [True, True]
    assert model_card(made_of, train(Plain(settings=recipe), bundle()))["overfit"] is False
