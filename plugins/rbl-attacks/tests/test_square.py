"""The parts of Square: window sizes, patterns, starts and proposals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from never_beaten import never_beaten
from torch import Tensor

from rbl_attacks import square
from rbl_attacks.geometry import length
from rbl_attacks.margins import lead
from rbl_attacks.square import Square
from rbl_attacks.windows import Faces, Masses, NewFaces, Proposals, pattern, window_size
from robustbench_lite import Randomness, Threat, losses
from robustbench_lite.testing import CoinFlip, Constant, Linear, Masked, make_target


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


def proposals_of(
    kind: type[Proposals], x: Tensor, threat: Threat, *, share: float, seed: int = 0, queries: int = 5000
) -> Proposals:
    """All windows cover this share of the image."""
    return kind(x, threat, Randomness(str(seed), torch.arange(len(x))), lambda _: share, queries)


def points(proposals: Proposals, x: Tensor, count: int) -> Iterator[Tensor]:
    """The start and the points of the next queries, each from the one before."""
    current = x
    for _ in range(count):
        look = proposals.next(current)
        if look is None:
            return
        rows, found = look
        current = current.clone()
        current[slice(None) if rows is None else rows] = found
        proposals.moved(torch.arange(len(x)) if rows is None else rows, current)
        yield current


@settings(max_examples=60)
@given(
    kind=st.sampled_from([Faces, NewFaces, Masses]),
    power=st.sampled_from(["l2", "l1"]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    eps=st.floats(0.05, 3),
    share=st.floats(0.001, 0.8),
    seed=st.integers(0, 99),
)
def test_every_proposal_is_inside_whatever_the_image(
    kind: type[Proposals], power: str, shape: tuple[int, int, int], eps: float, share: float, seed: int
) -> None:
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(seed))
    threat = Threat(power if kind is Masses else "linf", eps)
    found = list(points(proposals_of(kind, x, threat, share=share, seed=seed), x, 4))
    assert len(found) == 4 or kind is NewFaces, "where few moves are new there may be none"
    for candidate in found:
        assert candidate.isfinite().all()
        assert threat.contains(x, candidate).all()
        assert threat.in_box(candidate).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_far_from_the_box_it_stays_on_the_sphere(norm: str) -> None:
    x = torch.full((6, 3, 12, 12), 0.5)
    proposals = proposals_of(NewFaces if norm == "linf" else Masses, x, Threat(norm, 0.05), share=0.1)
    for point in points(proposals, x, 20):
        assert length(point - x, norm).flatten().tolist() == pytest.approx([0.05] * 6, rel=1e-3)
        if norm == "linf":
            assert (point - x).abs().flatten().tolist() == pytest.approx([0.05] * point.numel(), rel=1e-4)


@pytest.mark.parametrize(("value", "eps"), [(0.75, 0.01), (0.6, 0.03), (0.9, 0.1)])
def test_rounding_thousands_of_values_alike_does_not_leave_the_ball(value: float, eps: float) -> None:
    x = torch.full((2, 3, 128, 128), value)
    threat = Threat("l2", eps)
    proposals = proposals_of(Masses, x, threat, share=0.0002)
    proposals.next(x)
    _, point = proposals.next(x + eps / math.sqrt(x[0].numel())) or (None, x)
    assert not torch.equal(point, x)
    assert threat.contains(x, point).all()


@pytest.mark.parametrize(("kind", "norm"), [(NewFaces, "linf"), (Masses, "l2")])
def test_what_is_drawn_ahead_of_large_images_is_no_more_than_a_few_of_them(kind: type[Proposals], norm: str) -> None:
    x = torch.rand(16, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    made = proposals_of(kind, x, Threat(norm, 0.1), share=0.0125)
    list(points(made, x, 2))
    held = [part for value in vars(made).values() for part in (value if isinstance(value, tuple) else [value])]
    kept = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in held if isinstance(part, Tensor)}
    assert sum(kept.values()) < 7 * x.untyped_storage().nbytes(), "three of these are the images and the faces of their balls"


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_mass_moves_between_windows_as_published(norm: str, channels: int) -> None:
    """Against the formulas of the papers, one example and one channel at a time. Windows are large, so that many overlap."""
    order, threat = (2 if norm == "l2" else 1), Threat(norm, 0.4)
    x = torch.rand(40, channels, 5, 6, generator=torch.Generator().manual_seed(0))
    proposals = proposals_of(Masses, x, threat, share=0.4)
    current = list(points(proposals, x, 3))[-1]
    gains, gives, hills = proposals.prepare(torch.rand(1, 40, 5 + channels, generator=torch.Generator().manual_seed(1)), (3, 3))
    overlaps = 0
    for row, found in enumerate(proposals.move(current, gains[0], gives[0], hills[0])):
        delta = (current[row] - x[row]).double().flatten(1)
        unspent = max(0.0, threat.eps**order - float(delta.abs().pow(order).sum()))
        moved = delta.clone()
        for channel, values in enumerate(moved):
            gain, give = gains[0, row, channel], gives[0, row, channel]
            either = sorted({*gain.tolist(), *give.tolist()})
            overlaps += len(either) < 18
            added = hills[0, row, channel] + delta[channel, gain] / (1e-12 + delta[channel, gain].norm(order))
            held = float(delta[channel, either].norm(order))
            mass = math.sqrt(unspent / channels + held**2) if norm == "l2" else (unspent / channels + held) * channels
            values[give] = 0
            values[gain] = mass * added / added.norm(order)
        if norm == "l2":
            moved *= threat.eps / moved.norm()
        expected = threat.project(x[row, None], x[row, None] + moved.float().view(1, channels, 5, 6))
        assert torch.allclose(found[None], expected, atol=2e-6)
    assert overlaps > 10


class Asked:
    """Remembers the points that each example was asked about, and the scores."""

    def __init__(self) -> None:
        self.of: dict[int, list[tuple[bytes, Tensor]]] = {}

    def asked(self, rows: Tensor | None, x: Tensor, scores: Tensor) -> None:
        for row, point, score in zip(range(len(x)) if rows is None else rows.tolist(), x, scores, strict=True):
            self.of.setdefault(row, []).append((point.numpy().tobytes(), score.clone()))

    def followed(self, rows: Tensor | None, gradient: Tensor) -> None:
        raise AssertionError("no gradient was to be asked for")


def once_each(asked: list[tuple[bytes, Tensor]], label: Tensor) -> list[bytes]:
    """Of all points that a search asked about in turn, those that were new since it last moved to a better one."""
    best, known, found = -math.inf, set[bytes](), list[bytes]()
    for point, scores in asked:
        if point in known:
            continue
        found.append(point)
        known.add(point)
        margin = float(lead(scores[None], label[None], len(scores)))
        if margin > best:
            best, known = margin, {point}
    return found


def is_in_order(part: Iterable[bytes], whole: Iterable[bytes]) -> bool:
    """Whether ``part`` is what remains of ``whole`` when some are left out."""
    rest = iter(whole)
    return all(each in rest for each in part)


@pytest.mark.parametrize("ahead", [512, 30])
@pytest.mark.parametrize("p_init", [0.8, 0.01])
@pytest.mark.parametrize("most", [1 << 14, 60, 0])
@pytest.mark.parametrize("shape", [(1, 6, 6), (2, 4, 5)])
def test_what_is_known_is_not_asked_again_and_nothing_changes_by_that(
    shape: tuple[int, ...], most: int, p_init: float, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a search that asks about every point in turn. most: of 60, large windows have few enough moves to be remembered,
    and small ones have not. p_init: of 0.01, all windows are single pixels, so that every move leads to another point.
    """
    x = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0))
    model = never_beaten(math.prod(shape), 3)
    *_, last = model.parameters()
    last.data -= model(x).mean(0).detach()
    y, threat = model(x).argmax(1), Threat("linf", 0.1)
    monkeypatch.setattr(NewFaces, "MOST", most)
    monkeypatch.setattr(NewFaces, "AHEAD", ahead)
    runs = []
    for kind in (Faces, NewFaces):
        monkeypatch.setattr(square, "NewFaces", kind)
        target, rng = make_target(model, x, y, threat, access="scores")
        target._watch = asked = Asked()
        runs.append((Square(queries=900, p_init=p_init)(target, x, y, threat, rng), target, asked.of))
    (plain, plain_target, every), (found, target, some) = runs
    assert torch.equal(plain, found)
    assert torch.equal(plain_target.broken, target.broken)
    assert 0 < int(target.broken.sum()) < len(x)
    assert target.forwards.tolist() == [len(some[row]) for row in range(len(x))]
    for row in range(len(x)):
        in_turn, asked = ([point for point, _ in points_of[row]] for points_of in (every, some))
        assert is_in_order(asked, in_turn)
        assert is_in_order(once_each(every[row], y[row]), asked)
        if p_init == 0.01:
            assert asked == (once_each(every[row], y[row]) if most == 1 << 14 else in_turn)
    if most == 1 << 14:
        assert (2 * target.forwards < plain_target.forwards)[~target.broken].all()
    elif most and p_init == 0.8:
        assert (target.forwards < plain_target.forwards)[~target.broken].all()


def test_a_stochastic_defense_is_asked_about_every_proposal() -> None:
    model = CoinFlip(Constant(3), sigma=0.01)
    x, y = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(5, dtype=torch.int64)
    target, rng = make_target(model, x, y, "linf:0.1", access="scores", stochastic=True)
    Square(queries=200)(target, x, y, Threat("linf", 0.1), rng)
    assert target.queries.tolist() == [200] * 5


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_margin_never_gets_worse_with_more_queries_and_no_more_are_asked(norm: str) -> None:
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
        spent = target.forwards[left]
        assert (spent <= queries).all() if norm == "linf" else (spent == queries).all()
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


def test_a_point_whose_scores_are_not_finite_holds_no_search() -> None:
    logits = torch.tensor([[0.0, 1.0, -2.0], [0.0, math.inf, 1.0], [0.0, math.nan, 1.0], [-math.inf, 0.0, 1.0]])
    assert lead(logits, torch.zeros(4, dtype=torch.int64), 3).tolist() == [1, -math.inf, -math.inf, -math.inf]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_each_example_ends_by_itself_at_its_budget(norm: str) -> None:
    """As a member of another attack, examples come with budgets that are more or less used up."""
    model = Linear(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) / 100, torch.tensor([5.0, 0.0, 0.0]))
    x, y = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(4, dtype=torch.int64)
    threat, spent = Threat(norm, 0.5), torch.tensor([30, 29, 12, 0])
    target, rng = make_target(model, x, y, threat, access="scores", budget=30)
    owner = torch.arange(4).repeat_interleave(spent)
    target.logits(x[owner], owner)
    x_adv = Square(queries=60, restarts=2)(target, x, y, threat, rng)
    assert target.queries.tolist() == [30, 30, 30, 30]
    assert torch.equal(x_adv[0], x[0])
    equal, rng = make_target(model, x, y, threat, access="scores", budget=18)
    alone = Square(queries=60)(equal, x, y, threat, rng)
    assert torch.equal(x_adv[2], alone[2]), "18 queries are left to it, whatever the others have"
