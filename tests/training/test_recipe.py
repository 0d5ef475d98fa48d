"""Schedules of the learning rate, and that the optimiser follows them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_lite.training import Context, Recipe, Update, parameter_groups, train
from robustbench_lite.training.recipe import schedule
from tests.training.common import Plain, bundle


def rates(epochs: int = 10, parts: int = 4, **settings: Any) -> list[float]:
    recipe = Recipe(epochs=epochs, lr=0.4, **settings)
    return [schedule(recipe, i / parts) for i in range(epochs * parts)]


def test_cosine_decays_from_the_peak_to_zero() -> None:
    found = rates()
    assert (found[0], found[20]) == (0.4, pytest.approx(0.2))
    assert found == pytest.approx([0.2 * (1 + math.cos(math.pi * i / 40)) for i in range(40)])


def test_steps_are_taken_at_the_milestones() -> None:
    found = rates(schedule="step", milestones=(0.5, 0.75), decay=0.1)
    assert found == pytest.approx([0.4] * 20 + [0.04] * 10 + [0.004] * 10)
    assert rates(schedule="step", milestones=()) == [0.4] * 40


def test_linear_rises_to_its_peak_and_falls_back_unless_told_otherwise() -> None:
    found = rates(schedule="linear")
    assert found == pytest.approx([0.4 * i / 20 for i in range(20)] + [0.4 * (40 - i) / 20 for i in range(20, 40)])
    # The piecewise linear schedule of Maini et al., 2020: up at 0.4 of the training, down to a twentieth at 0.8, to zero.
    recipe = Recipe(epochs=50, lr=0.1, schedule="linear", points=((0.0, 0.0), (0.4, 1.0), (0.8, 0.05), (1.0, 0.0)))
    found = [schedule(recipe, epoch) for epoch in (0, 10, 20, 30, 40, 45, 50, 51)]
    assert found == pytest.approx([0, 0.05, 0.1, 0.0525, 0.005, 0.0025, 0, 0])


def test_the_first_and_the_last_point_hold_beyond_their_ends() -> None:
    recipe = Recipe(epochs=10, lr=1.0, schedule="linear", points=((0.2, 0.5), (0.8, 0.1)))
    assert [schedule(recipe, epoch) for epoch in (0, 2, 5, 8, 10)] == pytest.approx([0.5, 0.5, 0.3, 0.1, 0.1])


KINDS: list[Literal["cosine", "step", "linear"]] = ["cosine", "step", "linear"]


@given(st.sampled_from(KINDS), st.floats(0, 1), st.floats(0, 5))
def test_rates_lie_between_zero_and_the_peak_and_warm_up_scales_them(
    kind: Literal["cosine", "step", "linear"], share: float, warmup: float
) -> None:
    cold = schedule(Recipe(epochs=10, lr=0.3, schedule=kind), 10 * share)
    warm = schedule(Recipe(epochs=10, lr=0.3, schedule=kind, warmup=warmup), 10 * share)
    assert 0 <= cold <= 0.3 + 1e-12
    assert warm == pytest.approx(cold * (min(1.0, 10 * share / warmup) if warmup else 1.0))


@dataclass(frozen=True, kw_only=True)
class Watching(Plain):
    """Keeps the learning rates of its optimiser's groups."""

    def parameter_groups(self, model: nn.Module, auxiliary: nn.Module | None) -> list[dict[str, Any]]:
        (every,) = parameter_groups(model)
        first, *rest = every["params"]
        return [{"params": [first], "lr_scale": 0.1, "weight_decay": 0.25}, {"params": rest}]

    def train_batch(self, model: nn.Module, x: Tensor, y: Tensor, context: Context, update: Update) -> None:
        self.rates.append([(group["lr"], group["weight_decay"]) for group in update.optimiser.param_groups])
        super().train_batch(model, x, y, context, update)

    rates: Any = None


def test_the_optimiser_follows_the_schedule_at_each_groups_own_scale() -> None:
    found: list[list[tuple[float, float]]] = []
    recipe = Recipe(epochs=4, batch_size=80, lr=0.4, schedule="linear", weight_decay=0.5)
    train(Watching(settings=recipe, rates=found), bundle(200))
    first, second = zip(*found, strict=True)
    expected = [schedule(recipe, i / 2) for i in range(8)]
    assert [rate for rate, _ in first] == pytest.approx([0.1 * rate for rate in expected])
    assert [rate for rate, _ in second] == pytest.approx(expected)
    assert {decay for _, decay in first} == {0.25}
    assert {decay for _, decay in second} == {0.5}
