"""Rotations and translations: where pixels go, which are tried, and what that costs."""

from __future__ import annotations

import math

import pytest
import torch
from golden_networks import fixture
from torch import Tensor, nn

from rbl_attacks.rotation_translation import RotationTranslation, grid, rotate_translate
from robustbench_lite import Threat
from robustbench_lite.testing import Constant, make_target

UNRESTRICTED = Threat.parse("unrestricted")


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def moved(x: Tensor, degrees: float, down: float = 0.0, right: float = 0.0) -> Tensor:
    return rotate_translate(x, *(torch.full((len(x),), value, dtype=torch.float64) for value in (degrees, down, right)))


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (1, 1, 8, 8), (2, 2, 5, 9), (1, 3, 224, 200), (2, 1, 1, 4)])
def test_nothing_and_a_whole_turn_change_nothing(shape: tuple[int, ...]) -> None:
    x = images(*shape)
    assert (moved(x, 0) - x).abs().max() <= 1e-6
    assert (moved(x, 360) - x).abs().max() <= 1e-6
    assert (moved(x, 180) - x.flip(2, 3)).abs().max() <= 1e-6


@pytest.mark.parametrize("side", [7, 8])
def test_quarter_turns_are_those_of_torch(side: int) -> None:
    x = images(3, 2, side, side)
    for quarters in (1, 2, 3, -1):
        assert (moved(x, 90 * quarters) - x.rot90(quarters, (2, 3))).abs().max() <= 1e-6


def test_whole_pixels_are_a_shift_with_black_behind() -> None:
    x = images(2, 3, 6, 9)
    found = moved(x, 0, down=2, right=-3)
    assert (found[:, :, 2:, :-3] - x[:, :, :-2, 3:]).abs().max() <= 1e-6
    assert found[:, :, :2].abs().max() <= 1e-6
    assert found[:, :, :, -3:].abs().max() <= 1e-6
    half = moved(x, 0, right=0.5)
    assert (half[..., 1:] - (x[..., 1:] + x[..., :-1]) / 2).abs().max() <= 1e-6


def test_pixels_turn_as_the_formula_says() -> None:
    """One bright pixel on a large black image: its centre of mass is the rotated and shifted position, rows downwards."""
    x = torch.zeros(1, 1, 41, 31)
    x[0, 0, 12, 20] = 1.0
    angle, down, right = math.radians(25), 1.5, -2.25
    found = moved(x, 25, down, right)[0, 0].double()
    rows, columns = torch.arange(41.0).double(), torch.arange(31.0).double()
    up, along = 20 - 12, 20 - 15  # from the centre, up and to the right
    turned_up, turned_along = along * math.sin(angle) + up * math.cos(angle), along * math.cos(angle) - up * math.sin(angle)
    total = found.sum()
    assert (found.sum(1) @ rows / total).item() == pytest.approx(20 - turned_up + down, abs=0.1)
    assert (found.sum(0) @ columns / total).item() == pytest.approx(15 + turned_along + right, abs=0.1)


def test_every_image_has_its_own_motion() -> None:
    x = images(3, 1, 7, 7)
    degrees = torch.tensor([0.0, 90.0, -13.0], dtype=torch.float64)
    together = rotate_translate(x, degrees, degrees / 50, -degrees / 40)
    for i in range(3):
        alone = rotate_translate(x[i : i + 1], *(t[i : i + 1] for t in (degrees, degrees / 50, -degrees / 40)))
        assert torch.allclose(together[i], alone[0], atol=1e-7)


def test_the_grid_is_the_published_one_without_the_identity() -> None:
    points = grid(30.0, 3.0, 3.0)
    assert len(points) == len(set(points)) == 31 * 5 * 5 - 1
    for axis, expected in enumerate(([2 * i - 30 for i in range(31)], [-3, -1.5, 0, 1.5, 3], [-3, -1.5, 0, 1.5, 3])):
        assert sorted({point[axis] for point in points}) == pytest.approx(expected)
    assert sorted(map(abs, points[0])) == [3, 3, 30]
    assert (len(grid(0.0, 3.0, 3.0)), len(grid(30.0, 0.0, 0.0)), len(grid(0.0, 0.0, 0.0))) == (24, 30, 0)


@pytest.mark.parametrize(
    ("side", "expected"), [((28, 28), (3, 3)), ((32, 32), (3, 3)), ((224, 224), (22, 22)), ((8, 30), (1, 3))]
)
def test_a_tenth_of_the_side(side: tuple[int, int], expected: tuple[int, int]) -> None:
    assert RotationTranslation()._limits(*side) == (30.0, *expected)
    assert RotationTranslation(degrees=10, pixels=1.5)._limits(*side) == (10, 1.5, 1.5)


@pytest.mark.parametrize(
    "attack",
    [
        RotationTranslation(),
        RotationTranslation(samples=3),
        RotationTranslation(samples="grid"),
        RotationTranslation(samples="grid", degrees=0),
        RotationTranslation(samples="grid", pixels=0),
        RotationTranslation(samples="grid", degrees=0, pixels=0),
    ],
    ids=str,
)
def test_the_expected_cost_is_the_cost_of_an_example_that_is_never_beaten(attack: RotationTranslation) -> None:
    x, y = images(4, 1, 10, 10), torch.zeros(4, dtype=torch.int64)
    target, rng = make_target(Constant(3), x, y, UNRESTRICTED, access="scores")
    x_adv = attack(target, x, y, UNRESTRICTED, rng)
    assert target.forwards.tolist() == [attack.passes(3)] * 4
    assert UNRESTRICTED.in_box(x_adv).all()


class TopLeft(nn.Module):
    """Class 1 where the top left pixel is darker than 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0, 0, 0], 1 - x[:, 0, 0, 0]], 1)


def test_it_stops_at_the_first_success() -> None:
    model, x, y = fixture("std")
    x, y, points = x[:60], y[:60], grid(30.0, 1.0, 1.0)
    with torch.no_grad():
        beaten = torch.stack([model(moved(x, *point)).argmax(1) != y for point in points])
    target, rng = make_target(model, x, y, UNRESTRICTED, access="scores")
    RotationTranslation(samples="grid")(target, x, y, UNRESTRICTED, rng)
    assert torch.equal(target.broken, beaten.any(0))
    first = torch.where(beaten.any(0), beaten.float().argmax(0) + 1, len(points))
    assert target.forwards.tolist() == first.tolist()


@pytest.mark.parametrize(("pixels", "beaten"), [(0.29, 0), (0.49, 50)])
def test_random_motions_fill_their_limits(pixels: float, beaten: int) -> None:
    """A white corner keeps (1 - down)(1 - right) where the image moves that way: below a half needs both, about 0.293."""
    x, y = torch.ones(50, 1, 9, 9), torch.zeros(50, dtype=torch.int64)
    target, rng = make_target(TopLeft(), x, y, UNRESTRICTED, access="scores")
    RotationTranslation(degrees=0, pixels=pixels, samples=200)(target, x, y, UNRESTRICTED, rng)
    assert int(target.broken.sum()) == beaten


def left_over(name: str, attack: RotationTranslation) -> Tensor:
    """(n,) bool: which of the first 200 correct digits survive."""
    model, x, y = fixture(name)
    x, y = x[:200], y[:200]
    target, rng = make_target(model, x, y, UNRESTRICTED, access="scores")
    x_adv = attack(target, x, y, UNRESTRICTED, rng)
    assert UNRESTRICTED.in_box(x_adv).all()
    with torch.no_grad():
        return model(x_adv).argmax(1) == y


@pytest.mark.parametrize("name", ["std", "at"])
def test_more_samples_beat_all_that_fewer_beat_and_the_grid_beats_more(name: str) -> None:
    one, ten, forty = (left_over(name, RotationTranslation(samples=k)) for k in (1, 10, 40))
    assert (ten <= one).all()
    assert (forty <= ten).all()
    every = left_over(name, RotationTranslation(samples="grid"))
    assert every.sum() < ten.sum() < one.sum()


def test_the_grid_beats_whatever_one_of_its_points_beats() -> None:
    model, x, y = fixture("std")
    x, y = x[:100], y[:100]
    points = grid(30.0, 1.0, 1.0)[::40]
    with torch.no_grad():
        beaten = torch.stack([model(moved(x, *point)).argmax(1) != y for point in points]).any(0)
    assert beaten.float().mean() > 0.3
    assert not (left_over("std", RotationTranslation(samples="grid"))[:100] & beaten).any()


def test_each_example_ends_by_itself_at_its_budget() -> None:
    x, y = images(3, 1, 6, 6), torch.zeros(3, dtype=torch.int64)
    target, rng = make_target(Constant(), x, y, UNRESTRICTED, access="scores", budget=8)
    owner = torch.tensor([0] * 8 + [1] * 5)
    target.logits(x[owner], owner)
    RotationTranslation(samples=6)(target, x, y, UNRESTRICTED, rng)
    assert target.queries.tolist() == [8, 8, 6]
