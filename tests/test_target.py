from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_lite import AccessError, BudgetExceeded, PluginError, losses
from robustbench_lite.deployed import misclassified
from robustbench_lite.testing import CoinFlip, Linear, make_target


def test_counts_two_forwards_and_one_backward(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = labelled
    target, _ = make_target(model, x, y, "linf:0.1")
    target.logits(x)
    target.loss_and_grad(x, losses.cross_entropy, y)
    assert target.forwards.tolist() == [2] * 6
    assert target.backwards.tolist() == [1] * 6
    assert target.queries.tolist() == [2] * 6


def test_counts_follow_the_index_through_permutations_subsets_and_repeats(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = labelled
    target, _ = make_target(model, x, y, "linf:0.1")
    order = torch.tensor([5, 0, 3])
    target.logits(x[order], index=order)
    twice = torch.tensor([2, 2, 4])
    target.loss_and_grad(x[twice], losses.margin, y[twice], index=twice)
    assert target.forwards.tolist() == [1, 0, 2, 1, 1, 1]
    assert target.backwards.tolist() == [0, 0, 2, 0, 1, 0]


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=7), max_size=5),
    st.lists(st.integers(0, 4), unique=True, min_size=1),
)
@settings(max_examples=30, deadline=None)
def test_counts_are_exact_through_selections(calls: list[list[int]], chosen: list[int]) -> None:
    model = Linear.binary((1, 2, 2))
    x = torch.full((5, 1, 2, 2), 0.25)
    target, _ = make_target(model, x, torch.zeros(5, dtype=torch.int64), "l2:0.1")
    part = target.select(torch.tensor(chosen))
    expected = [0] * 5
    for call in calls:
        local = torch.tensor([i % len(chosen) for i in call])
        part.labels(x[: len(call)] if len(call) <= 5 else x[torch.zeros(len(call), dtype=torch.int64)], index=local)
        for i in local.tolist():
            expected[chosen[i]] += 1
    assert target.forwards.tolist() == expected
    assert part.forwards.tolist() == [expected[i] for i in chosen]


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_counts_are_exact_after_hundreds_of_calls_for_other_rows_each_time(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target, _ = make_target(
        Linear.binary((1, 2, 2)), torch.full((5, 1, 2, 2), 0.25), torch.zeros(5, dtype=torch.int64), "l2:0.1"
    )
    forwards, backwards = torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
    for number in range(300):
        index = torch.randint(0, 5, (int(torch.randint(1, 8, (), generator=generator)),), generator=generator)
        whole = number % 50 == 7
        x = torch.full((5 if whole else len(index), 1, 2, 2), 0.25)
        labels = torch.zeros(len(x), dtype=torch.int64)
        seen = torch.ones_like(forwards) if whole else torch.bincount(index, minlength=5)
        forwards += seen
        if number % 3:
            target.logits(x, None if whole else index)
        else:
            target.loss_and_grad(x, losses.margin, labels, index=None if whole else index)
            backwards += seen
        if number == 200:
            assert torch.equal(target.forwards, forwards)
    assert torch.equal(target.forwards, forwards)
    assert torch.equal(target.backwards, backwards)
    assert torch.equal(target.queries, forwards)


def test_rows_that_cannot_be_attributed_go_to_a_visible_counter(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = labelled
    target, _ = make_target(model, x, y, "linf:0.1")
    target.logits(torch.cat([x, x]))
    assert target.unattributed == 12
    assert target.forwards.sum() == 0
    budgeted, _ = make_target(model, x, y, "linf:0.1", budget=10)
    with pytest.raises(PluginError, match="12 inputs for 6 examples"):
        budgeted.logits(torch.cat([x, x]))


def test_graph_mode_gives_autograds_gradient_and_counts_backwards(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = labelled
    target, _ = make_target(model, x, y, "linf:0.1")
    leaf = x.clone().requires_grad_()
    logits = target(leaf)
    (first,) = torch.autograd.grad(logits[:, 0].sum(), leaf, retain_graph=True)
    torch.autograd.grad(logits[:, 1].sum(), leaf)
    assert target.forwards.tolist() == [1] * 6
    assert target.backwards.tolist() == [2] * 6
    plain = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(plain)[:, 0].sum(), plain)
    assert torch.equal(first, expected)


@pytest.mark.parametrize(
    ("access", "allowed"),
    [
        ("gradient", {"graph", "grad", "logits", "labels"}),
        ("scores", {"logits", "labels"}),
        ("decision", {"labels"}),
        ("transfer", {"labels"}),
        ("none", set()),
    ],
)
def test_access_is_enforced(labelled: tuple[nn.Module, Tensor, Tensor], access: str, allowed: set[str]) -> None:
    model, x, y = labelled
    target, _ = make_target(model, x, y, "linf:0.1", access=access)
    calls = {
        "graph": lambda: target(x),
        "grad": lambda: target.loss_and_grad(x, losses.cross_entropy, y),
        "logits": lambda: target.logits(x),
        "labels": lambda: target.labels(x),
    }
    for name, call in calls.items():
        if name in allowed:
            call()
        else:
            with pytest.raises(AccessError, match=f"declared access '{access}'") as refused:
                call()
            assert refused.value.hint


def test_what_an_attack_may_see_carries_no_graph(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = labelled
    target, _ = make_target(model, x, y, "linf:0.1", access="scores")
    leaf = x.clone().requires_grad_()
    assert not target.logits(leaf).requires_grad
    assert not target.labels(leaf).requires_grad


def test_the_budget_is_per_example_and_refuses_all_or_nothing(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = labelled
    target, _ = make_target(model, x, y, "linf:0.1", budget=2)
    target.logits(x)
    part = torch.tensor([0, 1])
    target.logits(x[part], index=part)
    with pytest.raises(BudgetExceeded, match="budget of 2") as refused:
        target.logits(x)
    assert refused.value.rows == (0, 1)
    assert target.queries.tolist() == [2, 2, 1, 1, 1, 1]
    twice = torch.tensor([3, 3])
    with pytest.raises(BudgetExceeded):
        target.logits(x[twice], index=twice)


def test_examples_are_told_apart_by_what_they_have_spent(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = labelled
    target, _ = make_target(model, x, y, "linf:0.1", budget=5)
    few = torch.tensor([1, 4])
    target.logits(x[few], index=few)
    assert [group.tolist() for group in target.evenly_spent(torch.tensor([5, 4, 1, 0]))] == [[5, 0], [4, 1]]
    assert [group.tolist() for group in target.evenly_spent(few[:0])] == [[]]
    free, _ = make_target(model, x, y, "linf:0.1")
    free.logits(x[few], index=few)
    assert [group.tolist() for group in free.evenly_spent(few)] == [[1, 4]]


def test_what_is_shown_asks_only_for_those_who_have_a_query_left(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = labelled
    target, _ = make_target(model, x, y, "linf:0.1", budget=2)
    spent = torch.tensor([0, 3])
    for _ in range(2):
        target.logits(x[spent], index=spent)
    target.show((x + 0.01).clamp(0, 1))
    assert target.queries.tolist() == [2, 1, 1, 2, 1, 1]


def test_scores_that_are_not_finite_are_no_class_and_it_is_said() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.cat([x.flatten(1), 1 - x.flatten(1)], 1)
            return torch.where(x.flatten(1) > 0.5, torch.tensor([math.nan, 0.0]), logits)

    x, y = torch.tensor([0.2, 0.45]).view(2, 1, 1, 1), torch.tensor([1, 1])
    target, _ = make_target(Broken(), x, y, "linf:0.1")
    assert target.labels(x).tolist() == [1, 1]
    assert not target._ledger.notes
    assert target.labels(x + 0.09).tolist() == [1, 2]
    assert not target.broken.any()
    assert any("NaN or infinite" in note for note in target._ledger.notes)


def test_rows_may_be_made_under_inference_mode(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = labelled
    target, _ = make_target(model, x, y, "linf:0.1")
    with torch.inference_mode():
        rows = torch.tensor([0, 1])
        target.logits(x[rows], rows)
        rows += 2
        target.logits(x[rows], rows)
        part = target.select(rows)
        part.logits(x[rows])
    assert target.queries.tolist() == [1, 1, 2, 2, 0, 0]


def test_best_so_far_is_kept_once_found_and_only_inside_the_threat_model() -> None:
    model = Linear(torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 0.0]))  # class 1 above x = 0.5
    x, y = torch.tensor([0.45, 0.30]).view(2, 1, 1, 1), torch.tensor([0, 0])
    target, _ = make_target(model, x, y, "linf:0.1")
    target.logits(x + 0.3)  # misclassified, outside the ball
    assert target.broken.tolist() == [False, False]
    target.logits(x + 0.08)
    target.logits(x)  # lost again
    assert target.broken.tolist() == [True, False]
    assert target.best(x).flatten().tolist() == pytest.approx([0.53, 0.30])
    target.logits(x + 0.06)  # smaller, but a fixed-budget attack keeps the first
    assert target.best(x)[0].item() == pytest.approx(0.53)


@pytest.mark.parametrize("surrogate", [False, True])
def test_points_of_another_type_are_kept_in_that_of_the_images(surrogate: bool) -> None:
    class Casts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = linear(x.float())
            return logits

    linear = Linear(torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 0.0]))
    x, y = torch.tensor([0.45, 0.30]).view(2, 1, 1, 1), torch.tensor([0, 0])
    target, _ = make_target(Casts(), x, y, "linf:0.1", surrogates=[Casts()])
    seen = target.surrogates[0] if surrogate else target
    seen.logits((x + 0.08).double())
    best = seen.best(x)
    assert best.dtype == torch.float32
    assert best.flatten().tolist() == pytest.approx([0.53, 0.30])
    assert target.broken.tolist() == [not surrogate, False]


def test_while_finds_stay_so_does_who_is_beaten(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = labelled
    target, rng = make_target(model, x, y, "linf:0.3")
    part, before, changes = target.select(torch.arange(4)), target.broken, 0
    for number in range(20):
        finds = target.finds
        part.logits((x[:4] + rng.uniform(torch.arange(4), x.shape[1:], draw=number, low=-0.3, high=0.3)).clamp(0, 1))
        assert part.finds == target.finds
        assert target.finds > finds or torch.equal(target.broken, before)
        changes, before = changes + int(target.finds > finds), target.broken
    assert changes > 0


def test_a_minimal_norm_target_keeps_the_smallest_point() -> None:
    model = Linear(torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 0.0]))
    x, y = torch.tensor([0.4]).view(1, 1, 1, 1), torch.tensor([0])
    target, _ = make_target(model, x, y, "linf", goal="minimal-norm")
    candidates = torch.tensor([0.9, 0.55, 0.7, 0.51]).view(4, 1, 1, 1)
    target.logits(candidates, index=torch.zeros(4, dtype=torch.int64))
    assert target.best(x).item() == pytest.approx(0.51)
    target.logits(torch.full((1, 1, 1, 1), 0.8))
    assert target.best(x).item() == pytest.approx(0.51)


def test_a_tie_is_no_success() -> None:
    model = Linear(torch.zeros(2, 1), torch.zeros(2))
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([1])
    target, _ = make_target(model, x, y, "linf:0.1")
    target.logits(x)
    assert target.broken.tolist() == [False]


def test_nan_logits_are_never_a_success() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 3), float("nan"))

    x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    target, _ = make_target(Broken(), x, y, "linf:0.1")
    target.logits(x)
    assert not target.broken.any()


def test_a_lucky_query_is_no_success_where_points_are_confirmed(images: Tensor) -> None:
    """A point beside the clean image, asked for 200 times: single draws flip now and then, the mean over 64 draws does not."""
    model = CoinFlip(Linear.binary((1, 8, 8)), sigma=3.0)
    x = images[:40]
    y = model.base(x).argmax(1)
    easy = (model.base(x)[:, 0] - model.base(x)[:, 1]).abs() < 2
    x, y = x[~easy], y[~easy]
    found = {}
    for confirm in (0, 64):
        target, _ = make_target(model, x, y, "linf:0.1", stochastic=True, access="scores", confirm=confirm)
        for _ in range(200):
            target.logits(x.lerp(1 - x, 1e-4))
        found[confirm] = target
    assert found[0].broken.any()
    assert not found[64].broken.any()
    extra = found[64].forwards - 200
    assert (extra % 64 == 0).all()
    assert (extra[found[0].broken] >= 64).all()


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_what_a_minimal_norm_search_keeps_at_a_random_boundary_stands_on_fresh_draws(images: Tensor, sigma: float) -> None:
    """200 points from just before the boundary to a quarter beyond it: the smallest lucky one would be kept, and then fail.

    One look in 220 is lucky by three standard errors, so that some fail even so where the noise is as large as the lead.
    """
    model = CoinFlip(Linear.binary((1, 8, 8)), sigma=sigma)
    x = images[:60]
    y = model.base(x).argmax(1)
    leaf = x.clone().requires_grad_()
    lead = -losses.margin(model.base(leaf), y)
    (slope,) = torch.autograd.grad(lead.sum(), leaf)
    way = -(lead.detach() / slope.flatten(1).square().sum(1)).view(-1, 1, 1, 1) * slope
    target, _ = make_target(model, x, y, "l2", stochastic=True, confirm=16, goal="minimal-norm")
    for share in torch.linspace(0.98, 1.25, 200):
        target.logits((x + share * way).clamp(0, 1))
    fresh, _ = make_target(model, x, y, "l2", stochastic=True, eot=64, goal="minimal-norm")
    found = target.broken
    assert found.sum() > 20
    assert misclassified(fresh.logits(target.best(x)), y)[found].float().mean() > (0.95 if sigma < 1 else 2 / 3)


def test_under_a_radius_a_search_goes_on_from_lucky_points_until_one_is_surely_misclassified(images: Tensor) -> None:
    """Points ever further beyond the boundary: an example that left at the first find would be lost in most fresh draws."""
    model = CoinFlip(Linear.binary((1, 8, 8)), sigma=1.0)
    x = images[:60]
    y = model.base(x).argmax(1)
    leaf = x.clone().requires_grad_()
    lead = -losses.margin(model.base(leaf), y)
    (slope,) = torch.autograd.grad(lead.sum(), leaf)
    way = -(lead.detach() / slope.flatten(1).square().sum(1)).view(-1, 1, 1, 1) * slope
    target, _ = make_target(model, x, y, "l2:1000", stochastic=True, confirm=16)
    kept = []
    for share in torch.linspace(0.98, 1.25, 200):
        rows = (~target.broken).nonzero()[:, 0]
        target.logits((x + share * way).clamp(0, 1)[rows], rows)
        kept.append(((target.best(x) != x).flatten(1).any(1) & ~target.broken).sum())
    assert max(kept) > 10, "found, and not surely"
    assert target.broken.sum() > 20
    fresh, _ = make_target(model, x, y, "l2:1000", stochastic=True, eot=64)
    assert misclassified(fresh.logits(target.best(x)), y)[target.broken].float().mean() > 2 / 3, (
        "the noise is as large as the lead, see above"
    )


def test_of_many_equally_good_points_few_are_confirmed(images: Tensor) -> None:
    model = CoinFlip(Linear.binary((1, 8, 8)), sigma=3.0)
    x = images[:40]
    y = model.base(x).argmax(1)
    target, _ = make_target(model, x, y, "linf:0.1", stochastic=True, confirm=64, eot=4)
    for _ in range(400):
        target.logits(x.lerp(1 - x, 1e-4))
    times = (target.forwards - 1600) // 64
    assert (times > 3).any()
    assert times.max() <= 8 + 34 + 10, "8, then log(400 / 8) / log(9 / 8), and records"


def test_confirmation_does_not_depend_on_who_else_is_in_the_batch(images: Tensor) -> None:
    model = CoinFlip(Linear.binary((1, 8, 8)), sigma=1.0)
    x = images[:30]
    y = 1 - model.base(x).argmax(1)
    whole, _ = make_target(model, x, y, "linf:0.1", stochastic=True, confirm=2)
    parts, _ = make_target(model, x, y, "linf:0.1", stochastic=True, confirm=2, micro_batch=7)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    whole.logits(x)
    parts.logits(x[order], index=order)
    assert torch.equal(whole.broken, parts.broken)
    assert whole.forwards.tolist() == parts.forwards.tolist()


def test_counts_are_those_of_the_rows_as_they_were_when_the_index_is_written_to(
    labelled: tuple[nn.Module, Tensor, Tensor],
) -> None:
    model, x, y = labelled
    whole, _ = make_target(model, x, y, "linf:0.1")
    for target, expected in ((whole, [1, 2, 0, 0, 0, 0]), (whole.select(torch.tensor([3, 4, 5])), [1, 2, 0])):
        index = torch.tensor([0, 1])
        target.logits(x[index], index=index)
        index[0] = 1
        target.logits(x[index[1:]], index=index[1:])
        assert target.forwards.tolist() == expected
