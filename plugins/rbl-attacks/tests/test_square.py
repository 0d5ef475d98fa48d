"""The parts of Square: window sizes, patterns, starts and proposals."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rbl_attacks.geometry import length
from rbl_attacks.square import Faces, Masses, Proposals, Square, pattern, window_size
from robustbench_lite import Randomness, Threat, losses
from robustbench_lite.testing import Linear, Masked, make_target


def test_the_window_shrinks_as_published() -> None:
    attack = Square(p_init=0.8)
    halvings = {10: 0, 11: 1, 50: 1, 51: 2, 200: 2, 201: 3, 501: 4, 1001: 5, 2001: 6, 4001: 7, 6001: 8, 8001: 9, 50_000: 9}
    assert {at: attack.share(at) for at in halvings} == {at: 0.8 / 2**times for at, times in halvings.items()}
    assert Square(queries=100, rescale=True).share(1) == Square(queries=10_000).share(100)


@pytest.mark.parametrize(
    ("share", "shape", "expected"),
    [
        (0.8, (32, 32), (29, 29)),
        (0.0001, (32, 32), (1, 1)),
        (0.8, (1, 100), (1, 80)),
        (0.8, (100, 1), (80, 1)),
        (0.5, (4, 40), (4, 20)),
        (1.0, (8, 8), (8, 8)),
    ],
)
def test_a_window_is_a_square_where_one_fits(share: float, shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert window_size(share, *shape) == expected


@given(height=st.integers(1, 12), width=st.integers(1, 12), power=st.sampled_from([2, 4]))
def test_a_pattern_has_unit_length_and_two_signs(height: int, width: int, power: int) -> None:
    found = pattern(height, width, power)
    assert found.shape == (height, width)
    assert torch.linalg.vector_norm(found, ord=2 if power == 2 else 1).item() == pytest.approx(1, rel=1e-5)
    assert (found[: height // 2] > 0).all()
    assert (found[height // 2 :] < 0).all()


def test_a_hill_falls_off_with_the_published_weights() -> None:
    centre = pattern(9, 9, 2)[6]  # the lower hill is 5 high: its centre is row 4 + 2
    boxes = [sum(1 / (k + 1) ** 2 for k in range(distance, 5)) for distance in range(5)]
    assert (centre[4:] / centre[4]).tolist() == pytest.approx([b / boxes[0] for b in boxes], rel=1e-5)


@settings(max_examples=40)
@given(
    norm=st.sampled_from(["linf", "l2", "l1"]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    eps=st.floats(0.05, 3),
    query=st.integers(1, 3000),
    seed=st.integers(0, 99),
)
def test_every_proposal_is_inside_whatever_the_image(
    norm: str, shape: tuple[int, int, int], eps: float, query: int, seed: int
) -> None:
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(seed))
    threat, rng = Threat(norm, eps), Randomness(str(seed), torch.arange(4))
    proposals = (Faces if norm == "linf" else Masses)(Square(), x, threat, rng)
    start = proposals.start(rng)
    for candidate in (start, proposals.from_points(start, query)):
        assert candidate.isfinite().all()
        assert threat.contains(x, candidate).all()
        assert threat.in_box(candidate).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_far_from_the_box_it_stays_on_the_sphere(norm: str) -> None:
    x = torch.full((6, 3, 12, 12), 0.5)
    threat, rng = Threat(norm, 0.05), Randomness("0", torch.arange(6))
    proposals = (Faces if norm == "linf" else Masses)(Square(), x, threat, rng)
    point = proposals.start(rng)
    for query in range(100, 120):
        point = proposals.from_points(point, query)
        assert length(point - x, norm).flatten().tolist() == pytest.approx([0.05] * 6, rel=1e-3)
    if norm == "linf":
        assert (point - x).abs().flatten().tolist() == pytest.approx([0.05] * point.numel(), rel=1e-4)


@pytest.mark.parametrize(("proposals", "norm"), [(Faces, "linf"), (Masses, "l2")])
def test_what_is_drawn_ahead_of_large_images_is_no_more_than_a_few_of_them(proposals: type[Proposals], norm: str) -> None:
    x = torch.rand(16, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    made = proposals(Square(), x, Threat(norm, 0.1), Randomness("0", torch.arange(16)))
    made.from_points(x, 5000)
    assert sum(part.untyped_storage().nbytes() for part in made.block) < 4 * x.untyped_storage().nbytes()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_margin_never_gets_worse_with_more_queries_and_each_is_counted(norm: str) -> None:
    model = Linear.binary((1, 8, 8))
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    threat = Threat(norm, {"linf": 0.004, "l2": 0.02, "l1": 0.05}[norm])
    margins: list[Tensor] = []
    for queries in (1, 5, 40, 160):
        target, rng = make_target(model, x, y, threat, access="scores")
        x_adv = Square(queries=queries)(target, x, y, threat, rng)
        margins.append(losses.margin(model(x_adv), y).detach())
        left = ~target.broken
        assert target.forwards[left].tolist() == [queries] * int(left.sum())
        assert (target.backwards == 0).all()
    assert all((later >= earlier - 1e-6).all() for earlier, later in pairwise(margins))
    assert (margins[-1] > margins[0]).any()


def test_it_beats_a_model_without_gradients() -> None:
    base = Linear.binary((1, 8, 8))
    x = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Masked(base, levels=8)
    y = model(x).argmax(1)
    target, rng = make_target(model, x, y, "linf:0.3", access="scores")
    x_adv = Square(queries=300)(target, x, y, Threat("linf", 0.3), rng)
    assert (model(x_adv).argmax(1) != y).float().mean() > 0.9


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_each_example_ends_by_itself_at_its_budget(norm: str) -> None:
    """As a member of another attack, examples come with budgets that are more or less used up."""
    model = Linear(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) / 100, torch.tensor([5.0, 0.0, 0.0]))
    x, y = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(4, dtype=torch.int64)
    threat, spent = Threat(norm, 0.5), torch.tensor([30, 29, 12, 0])
    target, rng = make_target(model, x, y, threat, access="scores", budget=30)
    owner = torch.arange(4).repeat_interleave(spent)
    target.logits(x[owner], owner)
    x_adv = Square(queries=25, restarts=2)(target, x, y, threat, rng)
    assert target.queries.tolist() == [30, 30, 30, 30]
    assert torch.equal(x_adv[0], x[0])
    free, rng = make_target(model, x, y, threat, access="scores")
    alone = Square(queries=18)(free, x, y, threat, rng)
    assert torch.equal(x_adv[2], alone[2]), "18 queries are left to it, whatever the others have"
