"""Steps of gradient attacks from scripted losses and gradients: no model, no image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rbl_attacks.schedule import Accumulated, Euclidean, Sparse, steepest

EPS = 0.3
NOWHERE = torch.zeros(1, 1)


def follow(losses: Callable[[int], float], steps: int = 100) -> tuple[list[int], list[int], list[float]]:
    """Steps after which there was a checkpoint, those at which the step was halved, and the step sizes in use."""
    schedule = Euclidean(steps, EPS, norm="linf", rho=0.75)
    schedule.begin(torch.tensor([losses(0)]))
    checkpoints, halvings, sizes = [], [], []
    best = losses(0)
    for number in range(1, steps + 1):
        sizes.append(schedule.size.item())
        best = max(best, losses(number))
        back = schedule.observe(torch.tensor([losses(number)]), torch.tensor([best]), NOWHERE, NOWHERE)
        if back is not None:
            checkpoints.append(number)
            if bool(back):
                halvings.append(number)
    return checkpoints, halvings, sizes


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-16, 1.0, 1e16, 1e30])
def test_a_step_under_l2_has_length_one_however_small_or_large_the_gradient(scale: float) -> None:
    """A confident network's derivatives have squares that float32 holds as 0."""
    gradient = torch.tensor([[3.0, -4.0], [0.6, 0.8]]) * torch.tensor([[1.0], [scale]])
    step = steepest(gradient, gradient, "l2")
    assert step.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert (step[1].sign() == gradient[1].sign()).all()
    assert torch.equal(step[:1], steepest(gradient[:1], gradient[:1], "l2")), "nobody else's gradient counts"


def test_what_is_no_number_moves_nothing_and_the_rest_does() -> None:
    gradient = torch.tensor([[3.0, 4.0, 0.0], [3.0, 4.0, float("nan")], [3.0, float("inf"), 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.6, 0.8, 0], [0.6, 0.8, 0], [1, 0, 0], [0, 0, 0]])
    assert torch.allclose(steepest(gradient, gradient, "l2"), expected, atol=1e-6)
    assert steepest(gradient[:0], gradient[:0], "l2").shape == (0, 3)
    accumulated = Accumulated(1.0, "l2", decay=1.0)
    assert torch.allclose(accumulated.move(gradient, gradient)[:2], expected[:2], atol=1e-6)


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
    schedule = Euclidean(10, EPS, norm="l2", rho=0.75)
    schedule.begin(torch.zeros(3))
    rising = torch.tensor([1.0, 0.0, 1.0])
    for number in range(1, 3):
        schedule.observe(rising * number, rising * number, torch.zeros(3, 1), torch.zeros(3, 1))
    schedule.keep(torch.tensor([0, 1]))
    assert schedule.size.tolist() == pytest.approx([2 * EPS, EPS])


def step_of(schedule: Sparse, gradient: Tensor) -> tuple[int, float]:
    move = schedule.move(gradient, torch.full_like(gradient, 0.5))
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
            assert schedule.observe(torch.zeros(1), torch.zeros(1), delta, torch.zeros_like(delta)) is None
        return schedule.observe(torch.zeros(1), torch.zeros(1), delta, torch.zeros_like(delta))

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


def test_accumulated_steps_by_hand() -> None:
    """Gradients (1, 3) and (-2, 0) have l1 lengths 4 and 2: the sums are (1/4, 3/4) and 0.5 (1/4, 3/4) - (1, 0)."""
    schedule, points = Accumulated(0.1, "l2", decay=0.5), torch.full((1, 1, 1, 2), 0.5)
    for gradient, total in (((1.0, 3.0), (0.25, 0.75)), ((-2.0, 0.0), (-0.875, 0.375)), ((0.0, 0.0), (-0.4375, 0.1875))):
        move = schedule.move(torch.tensor(gradient).view(1, 1, 1, 2), points).flatten()
        expected = torch.tensor(total)
        assert torch.allclose(move, 0.1 * expected / expected.norm())


def test_accumulated_steps_forget_who_left() -> None:
    schedule, points = Accumulated(0.1, "linf", decay=1.0), torch.full((2, 1, 1, 1), 0.5)
    schedule.move(torch.tensor([5.0, -5.0]).view(2, 1, 1, 1), points)
    schedule.keep(torch.tensor([1]))
    assert schedule.move(torch.zeros(1, 1, 1, 1), points[1:]).item() == pytest.approx(-0.1)


@pytest.mark.parametrize("count", [2, torch.tensor([2, 1])], ids=["one number for all", "one for each"])
def test_a_sparse_direction_takes_the_largest_derivatives_that_the_box_does_not_block(count: int | Tensor) -> None:
    gradient = torch.tensor([[9.0, -4.0, 3.0, 2.0]]).repeat(2, 1).view(2, 1, 2, 2)
    points = torch.tensor([[1.0, 0.5, 0.5, 0.5], [0.5, 0.0, 0.5, 0.5]]).view(2, 1, 2, 2)
    second = [0.5, 0.0, 0.5, 0.0] if isinstance(count, int) else [1.0, 0.0, 0.0, 0.0]
    assert steepest(gradient, points, "l1", count).flatten(1).tolist() == [[0.0, -0.5, 0.5, 0.0], second]


@pytest.mark.parametrize("size", [1.0, 1e-9, 1e-15])
def test_the_smallest_gradients_keep_their_direction(size: float) -> None:
    gradient = size * torch.tensor([3.0, -4.0]).view(1, 1, 1, 2)
    assert steepest(gradient, gradient, "l2").flatten().tolist() == pytest.approx([0.6, -0.8])
    assert steepest(gradient, gradient, "linf").flatten().tolist() == [1.0, -1.0]
