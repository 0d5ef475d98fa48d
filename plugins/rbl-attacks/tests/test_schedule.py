"""Auto-PGD's step sizes, from scripted losses: no model, no image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rbl_attacks.schedule import Euclidean, Sparse

EPS = 0.3


def follow(losses: Callable[[int], float], steps: int = 100) -> tuple[list[int], list[int], list[float]]:
    """Steps after which there was a checkpoint, those at which the step was halved, and the step sizes in use."""
    schedule = Euclidean(steps, EPS, torch.tensor([losses(0)]), norm="linf", rho=0.75)
    checkpoints, halvings, sizes = [], [], []
    best = losses(0)
    for number in range(1, steps + 1):
        sizes.append(schedule.size.item())
        best = max(best, losses(number))
        back = schedule.observe(torch.tensor([losses(number)]), torch.tensor([best]), torch.zeros(1, 1))
        if back is not None:
            checkpoints.append(number)
            if bool(back):
                halvings.append(number)
    return checkpoints, halvings, sizes


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),
        (50, [11, 21, 30, 38, 45, 51]),
        (20, [4, 7, 9, *range(10, 21)]),
        (10, list(range(2, 11))),
    ],
)
def test_checkpoints(steps: int, expected: list[int]) -> None:
    assert follow(lambda i: float(i), steps)[0] == [c for c in expected if c <= steps]


def test_a_rising_loss_keeps_the_step() -> None:
    assert follow(lambda i: float(i))[1] == []


@pytest.mark.parametrize("losses", [lambda i: float(i % 2), lambda i: 1.0], ids=["alternating", "flat"])
def test_an_oscillating_or_flat_loss_halves_it_at_every_checkpoint(losses: Callable[[int], float]) -> None:
    checkpoints, halvings, sizes = follow(losses)
    assert halvings == checkpoints
    assert sizes[0] == pytest.approx(2 * EPS)
    assert sizes[-1] == pytest.approx(2 * EPS / 2 ** len(halvings))


def test_no_progress_halves_it_at_every_second_checkpoint_and_never_at_the_first() -> None:
    """A saw that rises four times in five and never passes its first peak: only the second condition can fire."""
    checkpoints, halvings, _ = follow(lambda i: 10.0 if i == 1 else float(i % 5 if i % 5 else -1))
    assert halvings == checkpoints[1::2]


def test_examples_do_not_disturb_each_other() -> None:
    schedule = Euclidean(10, EPS, torch.zeros(3), norm="l2", rho=0.75)
    rising = torch.tensor([1.0, 0.0, 1.0])
    for number in range(1, 3):
        schedule.observe(rising * number, rising * number, torch.zeros(3, 1))
    schedule.keep(torch.tensor([True, True, False]))
    assert schedule.size.tolist() == pytest.approx([2 * EPS, EPS])


def step_of(schedule: Sparse, gradient: Tensor) -> tuple[int, float]:
    move = schedule.move(gradient)
    return int((move != 0).sum()), move.abs().sum().item()


def test_a_sparse_step_moves_a_fifth_of_the_values_by_eps_in_all() -> None:
    gradient = torch.randn(1, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    moved, total = step_of(Sparse(100, EPS, torch.ones(1, 1, 10, 10), given=False), gradient)
    assert moved == 20
    assert total == pytest.approx(EPS)


def test_sparse_steps_follow_the_sparsity_of_the_best_point() -> None:
    gradient = torch.randn(1, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    schedule = Sparse(100, EPS, torch.ones(1, 1, 10, 10), given=False)
    best = torch.zeros(1, 1, 10, 10)
    best.view(-1)[:30] = 0.01

    def period(delta: Tensor) -> Tensor | None:
        for _ in range(3):
            assert schedule.observe(torch.zeros(1), torch.zeros(1), delta) is None
        return schedule.observe(torch.zeros(1), torch.zeros(1), delta)

    back = period(best)  # 100 changed values became 30: back to the best point, with a step of eps
    assert back is not None
    assert bool(back)
    assert step_of(schedule, gradient) == (20, pytest.approx(EPS))
    back = period(best)  # no sparser: on with a smaller step
    assert back is not None
    assert not bool(back)
    assert step_of(schedule, gradient)[1] == pytest.approx(EPS / 1.5)
    for _ in range(20):
        period(best)
    assert step_of(schedule, gradient)[1] == pytest.approx(EPS / 10)
