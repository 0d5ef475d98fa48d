"""The training loop: what it optimises, that it repeats itself, what it reports."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lite import DatasetBundle, MissingData, RblError
from robustbench_lite.training import HELD_OUT, Checkpoint, Context, Recipe, identity, model_card, train
from robustbench_lite.weights import save_weights
from tests.training.common import INFO, Halves, Plain, bundle


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
    assert torch.__version__.startswith(card["packages"]["torch"])  # pip may leave out "+cu130"
    assert card["packages"]["torch"].count(".") == 2
    assert card["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(card)) == card
    save_weights(tmp_path / "w.safetensors", result.module.state_dict(), card)
    again = Plain()(INFO, tmp_path / "w.safetensors")
    assert not again.training
    x = Halves(5).x
    assert torch.equal(again(x), result.module(x))


# ------------------------------------------------------------------------------------------------------------------ on a GPU


@pytest.fixture
def gpu() -> str:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"


@pytest.mark.gpu
def test_training_on_a_gpu_repeats_itself(gpu: str) -> None:
    before = torch.cuda.get_rng_state()

    def make() -> nn.Module:
        return train(Plain(settings=Recipe(epochs=3, eps=0.05, shift=1)), bundle(), seed=1, device=gpu).module

    a, b = make(), make()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert next(a.parameters()).is_cuda


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_with_float32_weights_and_logits(gpu: str, precision: Literal["bf16", "fp16"]) -> None:
    class Checked(Plain):
        def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
            assert torch.is_autocast_enabled("cuda")
            assert model(x).dtype == torch.float32
            return super().loss(model, x, y, context)

    result = train(Checked(settings=Recipe(epochs=5, batch_size=32, eps=0.05)), bundle(), device=gpu, precision=precision)
    assert result.metrics["clean"] == 1.0
    assert {p.dtype for p in result.module.parameters()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_run_that_is_resumed_on_a_gpu_ends_with_the_same_bits(
    gpu: str, precision: Literal["float32", "fp16"], tmp_path: Path
) -> None:
    defense = Plain(settings=Recipe(epochs=4, batch_size=32, eps=0.05, ema=0.5, shift=1))
    kept = Checkpoint(tmp_path / "w.checkpoint", {})

    def stop(epoch: dict[str, float]) -> None:
        if epoch["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(defense, bundle(), device=gpu, precision=precision, checkpoint=kept, progress=stop)
    resumed = train(defense, bundle(), device=gpu, precision=precision, checkpoint=kept, resume=True)
    whole = train(defense, bundle(), device=gpu, precision=precision)
    assert resumed.history == whole.history
    assert all(torch.equal(p, q) for p, q in zip(resumed.module.parameters(), whole.module.parameters(), strict=True))
