"""Attacks made of other attacks, and crafted on surrogates: what they see, what counts, and who gets the credit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lite import AccessError, PluginError, Randomness, Target, Threat, losses, mean_of_logits
from robustbench_lite.cell import Cell
from robustbench_lite.ledger import SurrogateLedger
from robustbench_lite.planner import make_plan
from robustbench_lite.registry import Registry, load
from robustbench_lite.request import RunRequest
from robustbench_lite.resolve import resolve_attack
from robustbench_lite.runner import Workbench, WorkItem, run_cell
from robustbench_lite.store import Store
from robustbench_lite.testing import CoinFlip, Linear, make_target
from tests.support import TOY

TEAM = TOY.with_name("team.py")
LINF = Threat.parse("linf:0.1")

# One value per image; class 1 above 0.5.
MODEL = Linear(torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 0.0]))
X = torch.tensor([0.45, 0.30, 0.60, 0.55]).view(4, 1, 1, 1)
Y = torch.tensor([0, 0, 1, 1])


@pytest.fixture(scope="module")
def registry() -> Registry:
    sys.modules.pop("team", None)
    return load([TOY, TEAM])


@pytest.fixture
def team(registry: Registry) -> Callable[..., tuple[Target, Randomness]]:
    """A target on MODEL for an attack made of these members."""

    def make(*members: str, **options: Any) -> tuple[Target, Randomness]:
        resolved = [resolve_attack(registry, text) for text in members]
        return make_target(options.pop("model", MODEL), X, Y, LINF, members=resolved, **({"access": "scores"} | options))

    return make


@pytest.fixture
def run(registry: Registry, tmp_path: Path) -> Callable[..., tuple[str, Cell, str]]:
    """Plan one cell and run it here: how it ended, the cell, and the reason."""

    def make(name: str = "store", **fields: Any) -> tuple[str, Cell, str]:
        asked = {"dataset": "toy/blobs", "threat": "linf:0.06", "defense": "toy/mean", "attack": "team/team", "n": 64} | fields
        request = RunRequest.model_validate({"store": tmp_path / name, "data": tmp_path} | asked)
        (planned,) = make_plan(request, registry, None).cells
        assert planned.state == "run", planned.reason
        events: list[dict[str, Any]] = []
        status = run_cell(WorkItem.of(planned, request, "cpu"), Workbench(registry), events.append)
        return status, Store.open(request.store).cell(planned.spec), events[-1]["reason"]

    return make


# ------------------------------------------------------------------------------------------------------------- members


def test_who_found_a_point_is_kept_and_judged(run: Callable[..., Any]) -> None:
    arrays = run()[1].load().arrays
    beaten, dark = arrays["success"], arrays["y"] == 0
    assert beaten.any()
    assert not beaten.all()
    np.testing.assert_array_equal(arrays["member"], np.where(beaten, np.where(dark, 1, 2), 0))
    turned = run("turned", attack="team/team[attacks=[team/darken,team/lighten]]")[1].load().arrays
    np.testing.assert_array_equal(turned["success"], beaten)
    np.testing.assert_array_equal(turned["member"], np.where(beaten, np.where(dark, 2, 1), 0))


def test_an_attack_of_its_own_has_no_such_column(run: Callable[..., Any]) -> None:
    assert "member" not in run(attack="toy/shift")[1].load().arrays


def test_a_member_that_asks_nothing_still_finds(team: Callable[..., Any]) -> None:
    """What it returns is looked at once, where it can count."""
    target, rng = team("team/darken")
    target.members[0](target, X, Y, LINF, rng)
    assert target.broken.tolist() == [False, False, False, True]
    assert target.queries.tolist() == [1, 1, 1, 1]
    target.members[0](target, X, Y, LINF, rng)
    assert target.queries.tolist() == [2, 2, 2, 1], "a beaten example has nothing to gain"


def test_points_that_cannot_count_are_not_looked_at(team: Callable[..., Any], registry: Registry) -> None:
    target, rng = team("team/closest", "toy/prints")
    near, nothing = target.members
    near(target, X, Y, LINF, rng)  # moves 0.3 and 0.6 by 0.2 and 0.1, of which the first is too far
    assert target.queries.tolist() == [1, 0, 0, 1]
    nothing(target, X, Y, LINF, rng)  # returns the clean images
    assert target.queries.tolist() == [1, 0, 0, 1]


def test_a_minimal_norm_member_gets_the_radius_and_leaves_at_its_first_find(team: Callable[..., Any]) -> None:
    target, rng = team("team/closest")
    target.members[0](target, X, Y, LINF, rng)
    assert target.broken.tolist() == [True, False, False, True]
    assert target.members[0].goal == "minimal-norm"


def test_a_members_access_is_its_own(team: Callable[..., Any]) -> None:
    target, _ = team("team/darken", "team/lighten", access="gradient")
    asks_nothing, asks_scores = (target.enter(member) for member in target.members)
    assert (asks_nothing.access, asks_scores.access) == ("none", "scores")
    with pytest.raises(AccessError, match="darken in the attack declared access 'none' and asked for labels"):
        asks_nothing.labels(X)
    with pytest.raises(AccessError, match="asked for gradients"):
        asks_scores.loss_and_grad(X, losses.margin, Y)
    assert asks_scores.members == ()
    low, _ = team("team/lighten", access="decision")
    with pytest.raises(AccessError, match="has access 'decision', and its member lighten needs 'scores'"):
        low.enter(low.members[0])


def test_a_member_draws_the_same_whoever_is_left_and_whoever_else_there_is(team: Callable[..., Any]) -> None:
    target, rng = team("team/wander", "team/wander")
    first, second = (member(target, X, Y, LINF, rng) for member in target.members)
    assert not torch.equal(first, second), "each has a stream of its own"
    rows = torch.tensor([2, 0])
    again, _ = team("team/lighten", "team/wander")
    few = again.members[1](again.select(rows), X[rows], Y[rows], LINF, rng.select(rows))
    assert torch.equal(few, second[rows])


def test_a_member_that_draws_globally_is_seeded_and_leaves_the_generator(team: Callable[..., Any]) -> None:
    before = torch.random.get_rng_state()
    points = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        target, rng = team("team/global")
        points.append(target.members[0](target, X, Y, LINF, rng))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(*points)
    torch.random.set_rng_state(before)


def test_a_member_may_change_what_it_is_given(team: Callable[..., Any]) -> None:
    target, rng = team("team/lighten")
    object.__setattr__(target.members[0], "attack", lambda t, x, y, threat, rng: x.add_(0.01))
    x = X.clone()
    target.members[0](target, x, Y, LINF, rng)
    assert torch.equal(x, X)


@pytest.mark.parametrize(
    ("name", "said"), [("stumbles", "ValueError: half way through"), ("short", "it returned torch.float32")]
)
def test_what_a_member_raises_is_named_and_what_others_found_is_kept(run: Callable[..., Any], name: str, said: str) -> None:
    status, cell, reason = run(attack=f"team/team[attacks=[lighten,{name},darken]]")
    assert status == "error"
    assert reason.startswith(f"member {name}: {said}")
    assert cell.load().n == 0, "no score"
    salvaged = cell.salvaged()
    assert salvaged is not None
    np.testing.assert_array_equal(salvaged["member"], np.where(salvaged["success"], 1, 0))
    assert salvaged["success"].any()


def test_the_budget_holds_for_all_members_together(run: Callable[..., Any], tmp_path: Path) -> None:
    protocol = tmp_path / "tight.yaml"
    protocol.write_text("name: tight\nversion: 1\nbudget: 4\n")
    named = "team/team[attacks=['lighten[draws=3]','lighten[draws=3]',darken]]"
    status, cell, _ = run(attack=named, protocol=str(protocol))
    arrays = cell.load().arrays
    assert status == "done"
    assert arrays["queries"].max() == 4
    assert set(arrays["member"][arrays["success"]]) == {1}, "the second ended it"


def test_a_stochastic_defense_is_confirmed_and_averaged_in_members_too(run: Callable[..., Any]) -> None:
    found = [run(f"s{k}", defense="toy/noisy-mean", micro_batch=size)[1].load().arrays for k, size in enumerate((None, 7))]
    np.testing.assert_array_equal(found[0]["member"], found[1]["member"])
    assert (found[0]["member"] > 0).any()
    assert (found[0]["forwards"] > found[0]["queries"]).any()


# ---------------------------------------------------------------------------------------------------------- surrogates


def test_what_fools_a_surrogate_is_no_find_and_its_passes_are_counted_apart(run: Callable[..., Any]) -> None:
    status, cell, _ = run(attack="team/borrows[attack=rbl/pgd[steps=3]]")
    arrays = cell.load().arrays
    assert status == "done"
    assert arrays["success"].any()
    assert set(arrays["forwards"]) == {1}, "one look at the defense"
    assert set(arrays["backwards"]) == {0}
    assert set(arrays["surrogate_forwards"]) == {4}, "to the last step, though the surrogate was fooled before"
    assert set(arrays["surrogate_backwards"]) == {3}
    assert (arrays["member"] == 0).all(), "the defense was beaten by the attack itself"


def test_a_surrogate_is_never_broken_and_remembers_what_it_gets_most_wrong() -> None:
    target, _ = make_target(MODEL, X, Y, LINF, access="transfer", surrogates=[MODEL])
    (surrogate,) = target.surrogates
    far, near = X + 0.09, X + 0.06
    for points in (near, far, X + 0.08, X + 0.2):  # the last one is outside
        surrogate.logits(points)
    assert not surrogate.broken.any()
    assert torch.equal(surrogate.best(X)[:1], far[:1])
    assert torch.equal(surrogate.best(X)[1:], X[1:])
    assert not target.broken.any()
    assert (target.queries.sum(), surrogate.queries.tolist()) == (0, [4] * 4)
    part = surrogate.select(torch.tensor([3, 0]))
    part.logits(torch.cat([X[:1] + 0.095, X[:1] + 0.1]), index=torch.tensor([1, 1]))
    assert part.best(X[[3, 0]]).flatten().tolist() == pytest.approx([0.55, 0.55])


def test_selections_go_through_to_the_surrogates() -> None:
    target, _ = make_target(MODEL, X, Y, LINF, access="transfer", surrogates=[MODEL])
    rows = torch.tensor([2, 1])
    (surrogate,) = target.select(rows).surrogates
    assert len(surrogate) == 2
    surrogate.logits(X[rows])
    assert target.surrogates[0].queries.tolist() == [0, 1, 1, 0]


def test_the_mean_of_logits(small_cnn: nn.Module, images: Tensor) -> None:
    torch.manual_seed(3)
    other = nn.Sequential(nn.Flatten(), nn.LazyLinear(small_cnn(images[:1]).shape[1])).eval()
    other(images)
    y = small_cnn(images).argmax(1)
    target, _ = make_target(small_cnn, images, y, "linf:0.1", access="transfer", surrogates=[small_cnn, other])
    joined = mean_of_logits(target.surrogates)
    expected = (small_cnn(images) + other(images)) / 2
    assert torch.allclose(joined.logits(images), expected, atol=1e-6)
    _, loss, gradient = joined.loss_and_grad(images, losses.cross_entropy, y)
    leaf = images.clone().requires_grad_()
    value = losses.cross_entropy((small_cnn(leaf) + other(leaf)) / 2, y)
    (true,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.allclose(loss, value.detach(), atol=1e-5)
    assert torch.allclose(gradient, true, atol=1e-5)
    assert joined.forwards.tolist() == [2] * len(images)
    assert target.forwards.sum() == 0
    assert not joined.broken.any()
    alone = mean_of_logits(target.surrogates[:1])
    assert torch.equal(alone.logits(images), small_cnn(images))
    with pytest.raises(PluginError, match="joins the surrogates of one target"):
        mean_of_logits([target])


def test_the_mean_of_a_stochastic_and_of_a_rejecting_surrogate(small_cnn: nn.Module, images: Tensor) -> None:
    """Draws belong to examples there as well; and what the surrogates cost is one sum."""
    y = small_cnn(images).argmax(1)
    noisy = CoinFlip(small_cnn, sigma=0.5)
    found = []
    for size in (3, None):
        target, _ = make_target(
            noisy, images, y, "linf:0.1", access="transfer", surrogates=[noisy, noisy], stochastic=True, eot=4, micro_batch=size
        )
        joined = mean_of_logits(target.surrogates)
        found.append(joined.loss_and_grad(images, losses.cross_entropy, y))
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    assert joined.forwards.tolist() == [4] * len(images)
    ledgers = target._ledger.surrogates
    assert len(ledgers) == 3
    assert all(isinstance(ledger, SurrogateLedger) for ledger in ledgers)


def test_a_workbench_keeps_surrogates_while_they_are_the_same(registry: Registry, tmp_path: Path) -> None:
    bench = Workbench(registry)

    def deployed(attack: str) -> tuple[Any, ...]:
        asked = {"dataset": "toy/blobs", "threat": "linf:0.1", "defense": "toy/mean", "attack": attack, "store": tmp_path}
        request = RunRequest.model_validate(asked)
        return bench.surrogates(WorkItem.of(make_plan(request, registry, None).cells[0], request, "cpu"))

    first = deployed("team/borrows")
    assert deployed("team/borrows[attack=rbl/pgd]")[0] is first[0]
    assert deployed("toy/shift") == ()
    assert deployed("team/borrows")[0] is not first[0], "what is not needed is let go"
