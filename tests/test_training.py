"""The training loop: what it optimises, that it repeats itself, what it reports; crafting and augmentation."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_lite import DatasetBundle, DatasetInfo, MissingData, RblError
from robustbench_lite.losses import cross_entropy
from robustbench_lite.testing import Linear
from robustbench_lite.training import (
    HELD_OUT,
    Context,
    Recipe,
    TrainedDefense,
    augment,
    craft,
    identity,
    in_mode,
    model_card,
    train,
)
from robustbench_lite.weights import save_weights

INFO = DatasetInfo(name="halves", classes=("left", "right"), shape=(1, 4, 4))


class Halves:
    """Images whose left (class 0) or right half (class 1) is brighter, by more than the noise."""

    def __init__(self, n: int, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.y = torch.randint(0, 2, (n,), generator=g)
        self.x = 0.3 * torch.rand((n, 1, 4, 4), generator=g)
        self.x[self.y == 0, :, :, :2] += 0.5
        self.x[self.y == 1, :, :, 2:] += 0.5

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.y[index])


def bundle(n: int = 200, *, seed: int = 0) -> DatasetBundle:
    return DatasetBundle(
        info=INFO, test=Halves(50, seed=99), evaluation=range(50), fingerprint=f"halves {n} {seed}", train=Halves(n, seed)
    )


@dataclass(frozen=True, kw_only=True)
class Plain(TrainedDefense):
    """Cross-entropy on a linear model with batch norm; keeps what its loss was given."""

    settings: Recipe = field(default_factory=lambda: Recipe(epochs=3, batch_size=32))
    seen: list[tuple[Tensor, Tensor, Context]] = field(default_factory=list)
    factor: float = 1.0

    def architecture(self, info: DatasetInfo) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, info.num_classes))

    def recipe(self, info: DatasetInfo) -> Recipe:
        return self.settings

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        assert model.training
        self.seen.append((x, y, context))
        return self.factor * F.cross_entropy(model(x), y)


# ---------------------------------------------------------------------------------------------------------------- training


def test_what_can_be_learnt_is_learnt() -> None:
    result = train(Plain(), bundle())
    assert not result.module.training
    assert result.metrics["clean"] == 1.0
    test = Halves(50, seed=99)
    assert (result.module(test.x).argmax(1) == test.y).all()
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]


def test_the_seed_decides_everything_and_the_global_generator_is_left_as_it_was() -> None:
    recipe = Recipe(epochs=2, batch_size=32, shift=1, flip=True, eps=0.1)
    states = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 3)):
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        result = train(Plain(settings=recipe), bundle(), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append((result.module.state_dict(), result.history))
    (a, told_a), (b, told_b), (c, _) = states
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert told_a == told_b
    assert not torch.equal(a["2.weight"], c["2.weight"])


def test_an_epoch_shows_each_training_example_at_most_once_and_no_held_out_one() -> None:
    data = bundle(200)
    defense = Plain(settings=Recipe(epochs=2, batch_size=32))
    result = train(defense, data)
    assert result.held_out == 40  # a fifth, being less than HELD_OUT
    assert len(defense.seen) == 2 * (160 // 32)
    both = [Counter(image.numpy().tobytes() for x, _, _ in defense.seen[i : i + 5] for image in x) for i in (0, 5)]
    assert [sum(c.values()) for c in both] == [160, 160]
    assert max(both[0].values()) == max(both[1].values()) == 1
    assert both[0] == both[1]
    assert not torch.equal(defense.seen[0][0], defense.seen[5][0])  # in another order
    large = train(Plain(settings=Recipe(epochs=1, batch_size=512)), bundle(1000))
    assert large.held_out == HELD_OUT == 128


def test_images_and_labels_stay_together() -> None:
    defense = Plain()
    train(defense, bundle())
    for x, y, _ in defense.seen:
        assert torch.equal((x[..., 2:].mean((1, 2, 3)) > x[..., :2].mean((1, 2, 3))).long(), y)


def test_the_last_incomplete_batch_is_left_out_but_a_small_split_is_one_batch() -> None:
    defense = Plain(settings=Recipe(epochs=1, batch_size=64))
    train(defense, bundle(200))
    assert [len(x) for x, _, _ in defense.seen] == [64, 64]
    small = Plain(settings=Recipe(epochs=1, batch_size=64))
    assert train(small, bundle(10)).held_out == 2
    assert [len(x) for x, _, _ in small.seen] == [8]


def test_the_radius_is_ramped_up_batch_by_batch() -> None:
    defense = Plain(settings=Recipe(epochs=4, batch_size=80, eps=0.2, ramp=0.5))
    train(defense, bundle(200))
    assert [c.epoch for _, _, c in defense.seen] == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    assert [c.eps for _, _, c in defense.seen] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.2, 0.2, 0.2])
    assert Context(0.0, Recipe(epochs=4, eps=0.2, ramp=0.0), INFO).eps == 0.2


def test_steps_are_those_of_nesterov_sgd_with_a_cosine_schedule_and_clipped_gradients() -> None:
    """Two epochs of one batch each, repeated by hand."""
    recipe = Recipe(epochs=2, batch_size=8, lr=0.3, momentum=0.8, weight_decay=0.01, clip=0.5)
    defense = Plain(settings=recipe, factor=20.0)
    result = train(defense, bundle(10), seed=4)

    torch.manual_seed(4)
    model = defense.architecture(INFO).train()
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    norms = []
    for epoch, (x, y, _) in enumerate(defense.seen):
        grads = torch.autograd.grad(20 * F.cross_entropy(model(x), y), list(model.parameters()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        norms.append(norm)
        lr = 0.3 * 0.5 * (1 + math.cos(math.pi * epoch / 2))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(model.parameters(), grads, strict=True)):
                step = g * min(1.0, 0.5 / norm) + 0.01 * p
                velocity[i] = 0.8 * velocity[i] + step
                p.sub_(lr * (step + 0.8 * velocity[i]))
    assert max(norms) > 0.5  # clipping took place
    for (name, found), expected in zip(result.module.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_progress_is_told_after_each_epoch() -> None:
    told: list[dict[str, float]] = []
    result = train(Plain(settings=Recipe(epochs=3, eps=0.1)), bundle(), progress=told.append)
    assert [(t["epoch"], t["epochs"]) for t in told] == [(1, 3), (2, 3), (3, 3)]
    assert [{k: v for k, v in t.items() if k != "epochs"} for t in told] == result.history
    assert set(result.metrics) == {"loss", "clean", "robust"}
    assert set(train(Plain(), bundle()).metrics) == {"loss", "clean"}  # no radius, nothing to watch under attack


def test_robust_accuracy_is_watched_at_the_radius_asked_for() -> None:
    """The halves differ by at least 0.2 per pixel: a ball of 0.05 cannot beat a good model, one of 0.5 beats any."""
    narrow = train(Plain(settings=Recipe(epochs=10, batch_size=32, eps=0.05)), bundle())
    wide = train(Plain(settings=Recipe(epochs=10, batch_size=32, eps=0.5)), bundle())
    assert narrow.metrics["robust"] > 0.9
    assert wide.metrics["robust"] < 0.1


def test_a_loss_that_is_not_finite_ends_the_training_with_advice() -> None:
    for factor in (math.nan, math.inf):
        before = torch.get_rng_state()
        with pytest.raises(RblError, match=r"the loss is (nan|inf) in epoch 1") as raised:
            train(Plain(factor=factor), bundle())
        assert "lower lr" in raised.value.hint
        assert torch.equal(torch.get_rng_state(), before)


def test_no_training_split_or_next_to_none_is_missing_data() -> None:
    none = DatasetBundle(info=INFO, test=Halves(5), evaluation=range(5), fingerprint="halves")
    with pytest.raises(MissingData, match="halves has no training split"):
        train(Plain(), none)
    with pytest.raises(MissingData, match="the training split of halves has 9 examples"):
        train(Plain(), bundle(9))


def test_the_card_says_what_made_the_weights(tmp_path: Path) -> None:
    result = train(Plain(settings=Recipe(epochs=2, batch_size=16, eps=0.1)), bundle(100), seed=7)
    card = model_card(identity("lab/plain", 3, {"width": 4}, bundle(100), 7, recipe=result.recipe), result)
    assert (card["defense"], card["version"], card["seed"], card["parameters"]) == ("lab/plain", 3, 7, {"width": 4})
    assert card["dataset"] == {"name": "halves", "fingerprint": "halves 100 0"}
    assert card["recipe"]["epochs"] == 2
    assert card["held_out"] == {"n": 20, **result.metrics}
    assert [e["epoch"] for e in card["history"]] == [1, 2]
    assert card["packages"]["torch"] == torch.__version__
    assert card["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(card)) == card
    save_weights(tmp_path / "w.safetensors", result.module.state_dict(), card)
    again = Plain()(INFO, tmp_path / "w.safetensors")
    assert not again.training
    x = Halves(5).x
    assert torch.equal(again(x), result.module(x))


# ---------------------------------------------------------------------------------------------------------------- crafting


def climb(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, start: Literal["uniform", "gaussian", "zero"]) -> Tensor:
    return craft(model, x, lambda z: cross_entropy(z, y), eps=eps, step=eps / 4, steps=8, start=start)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0.001, 0.6), st.sampled_from(["uniform", "gaussian", "zero"]))
def test_a_linear_model_is_beaten_in_closed_form(seed: int, eps: float, start: Literal["uniform", "gaussian", "zero"]) -> None:
    """The worst point of ball and box moves every pixel as far as it can go, against the sign of its weight."""
    g = torch.Generator().manual_seed(seed)
    model, x = Linear.binary((1, 4, 4), seed=seed), torch.rand(5, 1, 4, 4, generator=g)
    with torch.no_grad():
        model.weight.mul_(0.1)  # else the softmax saturates, and its gradient is exactly zero
    y = torch.randint(0, 2, (5,), generator=g)
    kept, before = x.clone(), torch.get_rng_state()
    x_adv = climb(model, x, y, eps, start=start)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), before) == (start == "zero")
    w = (model.weight[1] - model.weight[0]).detach().view(1, 1, 4, 4)
    away = -w.sign() * (2 * y - 1).view(-1, 1, 1, 1)
    worst = (x + eps * away).clamp(0, 1)
    # Eight steps of a quarter cross the whole ball, from wherever in it they start.
    torch.testing.assert_close(x_adv, worst, rtol=0, atol=1e-6)
    assert (x_adv - x).abs().max() <= eps + 1e-6
    assert 0 <= x_adv.min() <= x_adv.max() <= 1


def test_starts_are_where_they_say() -> None:
    model, x, y = Linear.binary((1, 4, 4)), torch.full((400, 1, 4, 4), 0.5), torch.zeros(400, dtype=torch.int64)

    def begin(start: Literal["uniform", "gaussian", "zero"], eps: float = 0.2) -> Tensor:
        return craft(model, x, lambda z: cross_entropy(z, y), eps=eps, step=0.1, steps=0, start=start) - 0.5

    n = x.numel()
    assert begin("zero").abs().max() == 0
    uniform = begin("uniform")
    assert 0.199 < uniform.abs().max() <= 0.2 + 1e-6
    assert abs(uniform.mean().item()) < 5 * 0.2 / math.sqrt(3 * n)
    gaussian = begin("gaussian")
    assert abs(gaussian.std().item() / 0.001 - 1) < 5 / math.sqrt(2 * n)
    assert begin("gaussian", eps=0.0005).abs().max() <= 0.0005 + 1e-7


class Frozen(nn.Module):
    """A part in evaluation mode inside a model in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.fixed = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.linear = nn.Linear(16, 2)
        self.fixed.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.fixed(self.free(x)).flatten(1))
        return logits


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_each_module_gets_its_own_mode_back(mode: Literal["eval", "train"]) -> None:
    model = Frozen()
    before = {name: m.training for name, m in model.named_modules()}
    with in_mode(model, mode):
        assert {m.training for m in model.modules()} == {mode == "train"}
    assert {name: m.training for name, m in model.named_modules()} == before

    def fail() -> None:
        with in_mode(model, mode):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {name: m.training for name, m in model.named_modules()} == before


@pytest.mark.parametrize(("mode", "counted"), [("eval", 0), ("train", 4)])
def test_crafting_touches_the_statistics_of_batch_norm_only_where_asked(mode: Literal["eval", "train"], counted: int) -> None:
    model, data = Frozen(), Halves(20)
    craft(model, data.x, lambda z: cross_entropy(z, data.y), eps=0.1, step=0.05, steps=4, mode=mode)
    assert int(model.free.num_batches_tracked or 0) == counted
    assert all(p.grad is None for p in model.parameters())


# ------------------------------------------------------------------------------------------------------------ augmentation


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(0, 4), st.booleans(), st.sampled_from([(1, 5, 7), (3, 8, 8)]))
def test_each_image_becomes_one_of_its_shifts_and_mirror_images(
    seed: int, shift: int, flip: bool, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(seed)
    x = 0.1 + 0.9 * torch.rand(6, *shape)
    out = augment(x, shift=shift, flip=flip)
    assert out.shape == x.shape
    for image, made in zip(x, out, strict=True):
        padded = F.pad(image, (shift,) * 4)
        _, height, width = shape
        variants = [padded[:, i : i + height, j : j + width] for i in range(2 * shift + 1) for j in range(2 * shift + 1)]
        variants += [v.flip(2) for v in variants] if flip else []
        assert any(torch.equal(made, v) for v in variants)


def test_shifts_and_mirror_images_are_drawn_evenly() -> None:
    torch.manual_seed(0)
    x = torch.zeros(9000, 1, 5, 5)
    x[:, 0, 2, 1] = 1.0
    out = augment(x, shift=1, flip=True)
    counts = Counter(divmod(int(i), 5) for i in out.flatten(1).argmax(1))
    rows, columns = Counter[int](), Counter[int]()
    for (row, column), count in counts.items():
        rows[row] += count
        columns[column] += count
    assert all(abs(rows[r] - 3000) < 5 * math.sqrt(2000) for r in (1, 2, 3))
    # Columns 0, 1, 2 as they are and 4, 3, 2 mirrored: 2 twice as often.
    expected = {0: 1500, 1: 1500, 2: 3000, 3: 1500, 4: 1500}
    assert all(abs(columns[c] - n) < 5 * math.sqrt(n) for c, n in expected.items())


def test_no_augmentation_is_none() -> None:
    x, before = torch.rand(3, 1, 4, 4), torch.get_rng_state()
    assert torch.equal(augment(x, shift=0, flip=False), x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_training_on_a_gpu_repeats_itself() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = torch.cuda.get_rng_state()

    def make() -> nn.Module:
        return train(Plain(settings=Recipe(epochs=3, eps=0.05, shift=1)), bundle(), seed=1, device="cuda").module

    a, b = make(), make()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert next(a.parameters()).is_cuda
