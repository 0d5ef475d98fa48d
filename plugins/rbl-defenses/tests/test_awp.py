"""Adversarial weight perturbation: which way, how far, and that it is undone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rbl_defenses.awp import AWP, ascent, moved
from rbl_defenses.image_defense import ImageDefense
from rbl_defenses.pgd_at import PGDTraining
from rbl_defenses.standard import Standard
from rbl_defenses.trades import Trades
from robustbench_lite import DatasetBundle, DatasetInfo
from robustbench_lite.training import Context, Recipe, Update, parameter_groups, train

INFO = DatasetInfo(name="digits", classes=tuple("0123456789"), shape=(1, 8, 8), mean=(0.3,), std=(0.4,))
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Recording(PGDTraining):
    """Keeps the weights at which its loss is evaluated, and the points on which."""

    seen: list[dict[str, Tensor]] = field(default_factory=list)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        found = super().loss(model, x, y, context)
        state = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.seen.append(state | {"x_adv": context.once("x_adv", lambda: x)})
        return found


def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    return torch.rand(32, 1, 8, 8, generator=g), torch.randint(0, 10, (32,), generator=g)


def step(defense: Any, *, lr: float, epoch: float = 10.0, **settings: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """One batch of training; the model afterwards, and its parameters before."""
    torch.manual_seed(0)
    model = defense.architecture(INFO).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = Recipe(epochs=20, lr=lr, eps=0.15, schedule="step", milestones=(), momentum=0.0, clip=1e9, **settings)
    update = Update(parameter_groups(model), recipe, "cpu")
    update.at(epoch)
    defense.train_batch(model, *batch(), Context(epoch, recipe, INFO), update)
    return model, before


def test_without_a_step_weights_are_exactly_what_they_were() -> None:
    defense = Recording(width=4)
    model, before = step(AWP(gamma=0.05).around(defense), lr=0.0)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    first, second = defense.seen
    assert all(torch.equal(first[name], before[name]) for name in before)
    for name, weight in before.items():
        if weight.dim() > 1:
            moved_by = (second[name] - weight).norm() / weight.norm()
            assert moved_by.item() == pytest.approx(0.05, rel=1e-3)
        else:
            assert torch.equal(second[name], weight)


def test_both_passes_are_on_the_same_points_and_leave_one_trace_in_batch_norm() -> None:
    defense = Recording(width=4)
    model, _ = step(AWP().around(defense), lr=0.1)
    assert torch.equal(defense.seen[0]["x_adv"], defense.seen[1]["x_adv"])
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [int(m.num_batches_tracked or 0) for m in norms] == [1] * len(norms)


def test_the_step_is_that_of_the_moved_weights_on_the_weights_as_they_were() -> None:
    """w + v + step(w + v) - v, where v climbs the loss: by hand, with plain SGD, which decays w + v."""
    defense = Recording(width=4)
    model, before = step(AWP(gamma=0.02).around(defense), lr=0.1, weight_decay=0.01)
    x_adv, y = defense.seen[1]["x_adv"], batch()[1]
    torch.manual_seed(0)
    other = defense.architecture(INFO).train()
    here = F.cross_entropy(other(x_adv), y)
    gradients = dict(zip(before, torch.autograd.grad(here, list(other.parameters())), strict=True))
    v = {
        n: 0.02 * w.norm() / gradients[n].norm() * gradients[n] if w.dim() > 1 else torch.zeros_like(w)
        for n, w in before.items()
    }
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.add_(v[name])
    there = F.cross_entropy(other(x_adv), y)
    assert there > here
    steps = dict(zip(before, torch.autograd.grad(there, list(other.parameters())), strict=True))
    for name, p in model.named_parameters():
        expected = before[name] - 0.1 * (steps[name] + 0.01 * (before[name] + v[name]))
        torch.testing.assert_close(p.detach(), expected, msg=name)


def test_the_ascent_has_its_length_and_no_direction_where_there_is_none() -> None:
    weights = [torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])]
    up = ascent(weights, [torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2)], 0.1)
    assert [v.tolist() for v in up] == [[[0.0, 0.5]], [[0.0, 0.0]]]


def test_weights_are_put_back_also_after_an_error() -> None:
    weight = torch.tensor([[1.0, 2.0]])

    def fail() -> None:
        with moved([weight], [torch.tensor([[0.3, 0.1]])]):
            assert weight[0, 0] > 1.2
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert weight.tolist() == [[1.0, 2.0]]


INNER: list[ImageDefense] = [
    Standard(width=2, epochs=2),
    PGDTraining(width=2, epochs=2, steps=2),
    Trades(width=2, epochs=2, steps=2, ema=0.5),
]


@pytest.mark.parametrize("inner", INNER, ids=["standard", "pgd-at", "trades"])
def test_without_length_or_before_it_begins_it_is_its_method(inner: ImageDefense, digits: DatasetBundle) -> None:
    plain = train(inner, digits, seed=1)
    for idle in (AWP(gamma=0.0, warmup=0), AWP(gamma=0.1, warmup=2)):
        found = train(idle.around(inner), digits, seed=1)
        assert found.history == plain.history
        states = found.module.state_dict(), plain.module.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    busy = train(AWP(gamma=0.02, warmup=1).around(inner), digits, seed=1)
    assert busy.history[0] == plain.history[0]
    assert busy.history[1]["loss"] != plain.history[1]["loss"]
