"""The hooks of a trained defense: when they are called, and with what."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lite import DatasetInfo, PluginError
from robustbench_lite.data import MapDataset
from robustbench_lite.training import Around, Context, Recipe, TrainedDefense, Update, parameter_groups, train
from tests.training.common import INFO, Halves, Plain, bundle


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules have the same state, bit by bit."""
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@dataclass(frozen=True, kw_only=True)
class Telling(Plain):
    """Tells in which order its hooks are called."""

    told: list[Any] = field(default_factory=list)

    def begin_epoch(self, model: nn.Module, context: Context) -> None:
        self.told.append(("begin", context.epoch, context.step, model.training))
        model.eval()  # measuring may leave it so

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        self.told.append(("loss", context.epoch, context.step, model.training))
        return super().loss(model, x, y, context)

    def after_batch(self, model: nn.Module, context: Context) -> None:
        self.told.append(("after", context.epoch, context.step, model.training))


def test_hooks_are_called_in_their_order() -> None:
    defense = Telling(settings=Recipe(epochs=2, batch_size=80))
    train(defense, bundle(200))
    assert defense.told == [
        (what, epoch + part if what != "begin" else epoch, 2 * epoch + 2 * part, True)
        for epoch in (0.0, 1.0)
        for what, part in (("begin", 0), ("loss", 0), ("after", 0), ("loss", 0.5), ("after", 0.5))
    ]


def test_hooks_that_do_nothing_change_nothing() -> None:
    assert same(train(Telling(), bundle()).module, train(Plain(), bundle()).module)


def test_a_loss_knows_which_examples_it_is_given() -> None:
    defense, data = Plain(), bundle()
    train(defense, data)
    assert data.train is not None
    for x, _, context in defense.seen:
        assert torch.equal(torch.stack([data.train[int(i)][0] for i in context.index]), x)


# ------------------------------------------------------------------------------------------------------------------- context


@dataclass(frozen=True, kw_only=True)
class Logging(Plain):
    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        context.log(step=context.step, twice=torch.tensor(2.0 * context.step, requires_grad=True))
        context.aside().log(step=1e9)
        return super().loss(model, x, y, context)


def test_what_is_logged_is_averaged_over_the_epoch() -> None:
    history = train(Logging(settings=Recipe(epochs=2, batch_size=40)), bundle(200)).history
    assert [(epoch["step"], epoch["twice"]) for epoch in history] == [(1.5, 3.0), (5.5, 11.0)]


def test_once_is_once_per_batch_also_aside() -> None:
    made: list[float] = []

    def make(context: Context) -> float:
        return context.once("number", lambda: made.append(context.epoch) or context.epoch)  # type: ignore[func-returns-value]

    context = Context(0.5, Recipe(epochs=1), INFO)
    assert make(context) == make(context) == make(context.aside()) == 0.5
    assert make(replace(context, epoch=0.75, _kept={})) == 0.75
    assert made == [0.5, 0.75]


@dataclass(frozen=True, kw_only=True)
class Measuring(Plain):
    """Keeps the examples that it asks for."""

    kept: list[Any] = field(default_factory=list)

    def begin_epoch(self, model: nn.Module, context: Context) -> None:
        self.kept.append((context.examples(30), context.examples(1000), context.held_out))


def test_examples_are_the_same_in_each_epoch_and_none_of_those_held_out() -> None:
    defense = Measuring(settings=Recipe(epochs=2, shift=1))
    train(defense, bundle(200))
    (small, large, held), again = defense.kept
    assert all(torch.equal(a[0], b[0]) for a, b in zip((small, large, held), again, strict=True))
    assert [len(x) for x, _ in (small, large, held)] == [30, 160, 40]
    assert torch.equal(large[0][:30], small[0])
    images = {image.numpy().tobytes() for image in torch.cat([large[0], held[0]])}
    assert images == {image.numpy().tobytes() for image in Halves(200).x}


def test_what_a_run_does_not_have_is_said() -> None:
    context = Context(0.0, Recipe(epochs=1), INFO)
    for name in ("teacher", "auxiliary", "held_out"):
        with pytest.raises(PluginError, match="this training run has no"):
            getattr(context, name)
    with pytest.raises(PluginError, match="this training run has no data"):
        context.examples(3)


# ---------------------------------------------------------------------------------------------- teachers, auxiliary modules


@dataclass(frozen=True, kw_only=True)
class Student(Plain):
    """Learns what its teacher predicts, whatever the labels say."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        assert not context.teacher.training
        assert not any(p.requires_grad for p in context.teacher.parameters())
        return F.cross_entropy(model(x), context.teacher(x).argmax(1))


def test_a_student_learns_from_its_teacher() -> None:
    class Contrary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(9.0))

        def forward(self, x: Tensor) -> Tensor:
            right = x[..., 2:].mean((1, 2, 3)) - x[..., :2].mean((1, 2, 3))
            return self.scale * torch.stack([right, -right], 1)

    result = train(Student(), bundle(), teacher=Contrary().train())
    assert result.metrics["clean"] == 0.0


@dataclass(frozen=True, kw_only=True)
class WithHead(Plain):
    """Tells up from down by a head that is not deployed."""

    def auxiliary(self, model: nn.Module, info: DatasetInfo) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.Dropout(0.1))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        assert context.auxiliary.training
        up = (x[:, 0, :2].mean((1, 2)) > x[:, 0, 2:].mean((1, 2))).long()
        head = F.cross_entropy(context.auxiliary(10 * x), up)
        context.log(head=head)
        return super().loss(model, x, y, context) + head


def test_an_auxiliary_module_is_trained_and_not_deployed() -> None:
    result = train(WithHead(settings=Recipe(epochs=30, batch_size=32)), bundle())
    assert result.history[-1]["head"] < 0.7 * result.history[0]["head"]
    assert result.module.state_dict().keys() == Plain().architecture(INFO).state_dict().keys()


# ---------------------------------------------------------------------------------------------------------------- parameters


class Scaled(nn.Module):
    """A module that spares its own scale, not another's."""

    no_decay = ("scale",)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.inner = nn.Linear(2, 2)
        self.inner.scale = nn.Parameter(torch.ones(1))


def test_modules_say_which_of_their_parameters_do_not_decay() -> None:
    module, other = Scaled(), nn.Linear(2, 3)
    decaying, spared = parameter_groups(module, other, other)
    assert [id(p) for p in spared["params"]] == [id(module.scale)]
    assert spared["weight_decay"] == 0.0
    everything = [*module.parameters(), *other.parameters()]
    assert {id(p) for p in decaying["params"]} == {id(p) for p in everything} - {id(module.scale)}
    assert len(decaying["params"]) == len(everything) - 1
    (only,) = parameter_groups(other)
    assert [id(p) for p in only["params"]] == [id(p) for p in other.parameters()]


@dataclass(frozen=True, kw_only=True)
class Still(Plain):
    """A loss that no parameter has a part in, so that decay alone moves them."""

    def architecture(self, info: DatasetInfo) -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        module[1].no_decay = ("bias",)
        return module

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        return 0.0 * model(x).sum()


def test_what_is_spared_does_not_decay() -> None:
    recipe = Recipe(epochs=1, batch_size=160, lr=0.5, momentum=0.0, weight_decay=0.1, warmup=0.0)
    torch.manual_seed(0)
    before = Still().architecture(INFO).state_dict()
    after = train(Still(settings=recipe), bundle(200)).module.state_dict()
    torch.testing.assert_close(after["1.weight"], before["1.weight"] * (1 - 0.5 * 0.1))
    assert torch.equal(after["1.bias"], before["1.bias"])


@dataclass(frozen=True, kw_only=True)
class Clipped(Plain):
    def after_batch(self, model: nn.Module, context: Context) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.clamp_(-0.05, 0.05)


def test_weights_can_be_clipped_after_each_batch() -> None:
    model = train(Clipped(), bundle()).module
    assert max(float(p.detach().abs().max()) for p in model.parameters()) == pytest.approx(0.05)


# ---------------------------------------------------------------------------------------------------------- own updates


@dataclass(frozen=True, kw_only=True)
class Replaying(Plain):
    """Each batch twice, as free adversarial training does; counts in its state how often."""

    def train_batch(self, model: nn.Module, x: Tensor, y: Tensor, context: Context, update: Update) -> None:
        for _ in range(2):
            super().train_batch(model, x, y, context, update)
        context.state["batches"] = context.state.get("batches", 0) + 1
        context.log(batches=context.state["batches"])


def test_a_method_may_own_its_update() -> None:
    defense = Replaying(settings=Recipe(epochs=2, batch_size=40))
    result = train(defense, bundle(200))
    assert [int(c.step) for _, _, c in defense.seen] == [i // 2 for i in range(16)]
    assert result.history[-1]["batches"] == 6.5  # of 5, 6, 7, 8
    assert not same(result.module, train(Plain(settings=defense.settings), bundle(200)).module)


# ------------------------------------------------------------------------------------------------------------ extra data


@dataclass(frozen=True, kw_only=True)
class WithExtra(Plain):
    """Adds images that are brighter on the left, all labelled 1."""

    n: int = 50

    def extra_data(self, context: Context) -> MapDataset | None:
        more = Halves(self.n, seed=int(context.examples(1)[1][0]))
        more.x = more.x.flip(3)
        return more


def test_extra_data_fills_its_share_of_each_batch() -> None:
    defense = WithExtra(settings=Recipe(epochs=2, batch_size=40, extra_share=0.3))
    train(defense, bundle(200))
    assert len(defense.seen) == 2 * (160 // 28)
    for x, y, context in defense.seen:
        own = context.index >= 0
        assert (len(x), int(own.sum())) == (40, 28)
        right = (x[..., 2:].mean((1, 2, 3)) > x[..., :2].mean((1, 2, 3))).long()
        assert torch.equal(right[own], y[own])
        assert torch.equal(1 - right[~own], y[~own])


def test_a_share_of_nothing_is_said() -> None:
    with pytest.raises(PluginError, match=r"wants a share of 0\.5 of extra data and brings none"):
        train(Plain(settings=Recipe(epochs=1, extra_share=0.5)), bundle())


# ------------------------------------------------------------------------------------------------- methods around methods


@dataclass(frozen=True, kw_only=True)
class Nothing(Around):
    method: str = "plain"


def test_a_method_that_adds_nothing_trains_the_same() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Everything(Logging, Clipped, WithHead, Watchful):
        """Uses every hook but train_batch."""

    recipe = Recipe(epochs=2, batch_size=40, extra_share=0.2, weight_decay=0.1)
    inner = Everything(settings=recipe)
    alone = train(inner, bundle())
    told = len(inner.told)
    around = train(Nothing().around(inner), bundle())
    assert same(around.module, alone.module)
    assert around.history == alone.history
    assert told == 2
    assert len(inner.told) == 2 * told


@dataclass(frozen=True, kw_only=True)
class Watchful(WithExtra):
    teacher: str = "somebody"
    told: list[float] = field(default_factory=list)

    def begin_epoch(self, model: nn.Module, context: Context) -> None:
        self.told.append(context.epoch)

    def parameter_groups(self, model: nn.Module, auxiliary: nn.Module | None) -> list[dict[str, Any]]:
        return [group | {"weight_decay": 0.0} for group in super().parameter_groups(model, auxiliary)]


def test_a_method_around_another_has_its_teacher() -> None:
    assert Nothing().around(Watchful()).teacher == "somebody"  # type: ignore[attr-defined]
    assert Nothing().around(Plain()).teacher is None  # type: ignore[attr-defined]


def test_a_method_that_owns_its_update_cannot_be_wrapped() -> None:
    with pytest.raises(PluginError, match="Replaying has an update of its own, and Nothing would replace it"):
        Nothing().around(Replaying())
    with pytest.raises(PluginError, match="Nothing is around no method yet"):
        Nothing().architecture(INFO)
    assert isinstance(Nothing().around(Nothing().around(Plain())), TrainedDefense)
