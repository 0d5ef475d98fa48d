"""The optimiser's side of a step, running averages, and which epoch's weights are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustbench_lite import DatasetInfo, UsageError
from robustbench_lite.training import Context, Recipe, Update, parameter_groups, train
from robustbench_lite.training.update import Average
from tests.training.common import INFO, Plain, bundle


def test_adam_does_what_torch_does() -> None:
    recipe = Recipe(
        epochs=3, batch_size=160, optimiser="adam", lr=0.01, weight_decay=0.1, clip=1e9, schedule="step", milestones=()
    )
    defense = Plain(settings=recipe)
    result = train(defense, bundle(200), seed=4)
    torch.manual_seed(4)
    model = defense.architecture(INFO).train()
    adam = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    for x, y, _ in defense.seen:
        adam.zero_grad()
        F.cross_entropy(model(x), y).backward()
        adam.step()
    for (name, found), expected in zip(result.module.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_with_and_without_nesterov(nesterov: bool) -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    recipe = Recipe(epochs=1, lr=0.1, momentum=0.5, nesterov=nesterov, weight_decay=0.0, schedule="step", milestones=())
    update = Update([{"params": [weight]}], recipe, "cpu")
    update.at(0.0)
    losses = [update(lambda: 2 * weight.sum()).item() for _ in range(2)]
    # Velocities 2 and 3; with Nesterov each step looks half a velocity ahead: 2 + 1 and 2 + 1.5.
    expected = 1 - 0.1 * (3 + 3.5) if nesterov else 1 - 0.1 * (2 + 3)
    assert weight.item() == pytest.approx(expected)
    assert losses == pytest.approx([2.0, 2 * (1 - 0.1 * (3 if nesterov else 2))])
    assert update.mean_loss() == pytest.approx(sum(losses) / 2)
    assert update.mean_loss() == 0.0


def test_gradients_can_be_had_without_a_step() -> None:
    model = nn.Linear(3, 2)
    update = Update(parameter_groups(model), Recipe(epochs=1), "cpu")
    unused = torch.ones(4, requires_grad=True)
    before = [p.clone() for p in model.parameters()]
    bias, nothing = update.gradients(lambda: (model(torch.ones(1, 3)) * torch.tensor([1.0, 5.0])).sum(), [model.bias, unused])
    assert bias.tolist() == [1.0, 5.0]
    assert nothing.tolist() == [0.0] * 4
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_for_gpus(precision: Any) -> None:
    with pytest.raises(UsageError, match=f"precision {precision} is for GPUs, not for cpu"):
        train(Plain(), bundle(), precision=precision)


# ------------------------------------------------------------------------------------------------------- running averages


def test_the_average_forgets_its_start_and_then_decays() -> None:
    """By hand: weights 1/10 at first, then min(decay, (1 + t) / (10 + t))."""
    module = nn.BatchNorm1d(1)
    average = Average(module, 0.5)
    expected, mean = 1.0, 0.0
    for t in range(30):
        with torch.no_grad():
            module.weight.fill_(t)
        module.running_mean.fill_(-t)  # type: ignore[union-attr]
        module.num_batches_tracked.fill_(t)  # type: ignore[union-attr]
        average.update(module)
        decay = min(0.5, (1 + t) / (10 + t))
        expected, mean = decay * expected + (1 - decay) * t, decay * mean - (1 - decay) * t
        found = average.module.state_dict()
        assert found["weight"].item() == pytest.approx(expected)
        assert found["running_mean"].item() == pytest.approx(mean)
        assert found["num_batches_tracked"].item() == t


@dataclass(frozen=True, kw_only=True)
class Following(Plain):
    """Keeps its weights after each batch."""

    kept: list[Any] = field(default_factory=list)

    def after_batch(self, model: nn.Module, context: Context) -> None:
        self.kept.append({name: value.clone() for name, value in model.state_dict().items()})


def test_the_average_is_what_is_watched_and_returned() -> None:
    recipe = Recipe(epochs=3, batch_size=40, ema=0.9)
    defense = Following(settings=recipe)
    result = train(defense, bundle(200), seed=1)
    torch.manual_seed(1)
    expected = defense.architecture(INFO).state_dict()["2.weight"]
    for t, state in enumerate(defense.kept):
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * state["2.weight"]
    torch.testing.assert_close(result.module.state_dict()["2.weight"], expected)
    assert not torch.allclose(expected, defense.kept[-1]["2.weight"], atol=1e-4)
    # What is trained is not changed by it.
    plain = Following(settings=Recipe(epochs=3, batch_size=40))
    train(plain, bundle(200), seed=1)
    assert all(torch.equal(a["2.weight"], b["2.weight"]) for a, b in zip(plain.kept, defense.kept, strict=True))


# ----------------------------------------------------------------------------------------------------------- early stopping


@dataclass(frozen=True, kw_only=True)
class Scripted(Plain):
    """A model whose weights are set after each epoch: how far it tells left from right, and whether the right way round."""

    script: tuple[float, ...] = (0.1, 1.0, 1.0, -1.0)

    def architecture(self, info: DatasetInfo) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))

    def after_batch(self, model: nn.Module, context: Context) -> None:
        epoch = int(context.epoch)
        w = torch.tensor([-1.0, -1, 1, 1]).repeat(4) * self.script[epoch]
        with torch.no_grad():
            model[1].weight.copy_(torch.stack([-w, w]))  # type: ignore[index, operator]
            model[1].bias.copy_(torch.tensor([0.0, 0.01 * epoch]))  # type: ignore[index, operator]


def test_the_epoch_with_the_best_held_out_accuracy_is_kept_the_later_of_equals() -> None:
    recipe = Recipe(epochs=4, batch_size=160, early_stop="best-robust", eps=0.01)
    best = train(Scripted(settings=recipe), bundle(200))
    last = train(Scripted(settings=Recipe(epochs=4, batch_size=160, eps=0.01)), bundle(200))
    assert (best.kept, last.kept) == (3, 4)
    assert best.history == last.history
    assert best.metrics["robust"] == 1.0 == best.best["robust"] == last.best["robust"]
    assert last.metrics["robust"] == 0.0
    assert best.best["epoch"] == last.best["epoch"] == 3
    assert best.module.state_dict()["1.bias"][1].item() == pytest.approx(0.02)
    assert last.module.state_dict()["1.bias"][1].item() == pytest.approx(0.03)


def test_without_a_radius_the_clean_accuracy_decides() -> None:
    recipe = Recipe(epochs=4, batch_size=160, early_stop="best-robust")
    assert train(Scripted(settings=recipe, script=(-1.0, 1.0, -1.0, -1.0)), bundle(200)).kept == 2


def test_training_stops_at_a_collapse_and_keeps_the_epoch_before() -> None:
    recipe = Recipe(epochs=6, batch_size=160, early_stop="collapse", eps=0.01)
    result = train(Scripted(settings=recipe, script=(0.1, 1.0, -1.0, 1.0, 1.0, 1.0)), bundle(200))
    assert [epoch["train_pgd"] for epoch in result.history] == [1.0, 1.0, 0.0]
    assert result.kept == 2
    assert result.metrics["robust"] == 1.0
    assert result.module.state_dict()["1.bias"][1].item() == pytest.approx(0.01)


@pytest.mark.parametrize("eps", [0.01, 0.0])
def test_without_a_collapse_the_last_epoch_is_kept(eps: float) -> None:
    recipe = Recipe(epochs=3, batch_size=160, early_stop="collapse", eps=eps)
    assert train(Scripted(settings=recipe, script=(-1.0, 1.0, 1.0)), bundle(200)).kept == 3
