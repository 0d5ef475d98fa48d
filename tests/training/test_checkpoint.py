"""Checkpoints: a run that goes on from one ends with the same bits, and is refused where it is another run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite import UsageError
from robustbench_lite.training import Checkpoint, Context, Recipe, TrainingResult, Update, identity, train
from tests.training.common import bundle
from tests.training.test_hooks import WithExtra, WithHead, same


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@dataclass(frozen=True, kw_only=True)
class Everything(WithHead, WithExtra):
    """Noise in its loss, a head that is not deployed, extra data, and a state of tensors and numbers."""

    after: list[Any] = field(default_factory=list)

    def train_batch(self, model: nn.Module, x: Tensor, y: Tensor, context: Context, update: Update) -> None:
        noise = context.state.setdefault("noise", torch.zeros_like(x))
        noise.add_(0.01 * torch.randn_like(x))
        context.state["lists"] = [{"count": context.state.get("lists", [{"count": 0}])[0]["count"] + 1}]
        context.log(count=context.state["lists"][0]["count"])
        super().train_batch(model, x + noise, y, context, update)


RECIPES = {
    "plain": Recipe(epochs=4, batch_size=40, shift=1, flip=True, eps=0.1, extra_share=0.2),
    "average": Recipe(epochs=4, batch_size=40, ema=0.8, extra_share=0.2, overfitting=True, eps=0.1),
    "best": Recipe(epochs=4, batch_size=40, early_stop="best-robust", ema=0.5, extra_share=0.2),
    "collapse": Recipe(epochs=4, batch_size=40, early_stop="collapse", eps=0.1, extra_share=0.2),
    "adam": Recipe(epochs=4, batch_size=40, optimiser="adam", lr=0.01, schedule="linear", extra_share=0.2, warmup=2),
}


def checkpoint(folder: Path, recipe: Recipe, **changed: Any) -> Checkpoint:
    settings = {"parameters": {"width": 4}, "seed": 3} | changed
    made_of = identity("lab/all", 1, settings["parameters"], bundle(), settings["seed"], recipe=recipe)
    return Checkpoint(folder / "weights" / "all.checkpoint", made_of)


def interrupted(recipe: Recipe, kept: Checkpoint, after: int, **options: Any) -> None:
    def stop(epoch: dict[str, float]) -> None:
        if epoch["epoch"] == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(Everything(settings=recipe), bundle(), seed=3, checkpoint=kept, progress=stop, **options)


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_was_interrupted_twice_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    whole = train(Everything(settings=recipe), bundle(), seed=3)
    kept = checkpoint(tmp_path, recipe)
    interrupted(recipe, kept, 1)
    torch.manual_seed(99)  # another process has other generators
    interrupted(recipe, kept, 3, resume=True)
    told: list[float] = []
    resumed = train(
        Everything(settings=recipe), bundle(), seed=3, checkpoint=kept, resume=True, progress=lambda e: told.append(e["epoch"])
    )
    assert told == [4]
    check(resumed, whole)
    # All epochs done, and killed before the weights were written: nothing is left to train.
    check(train(Everything(settings=recipe), bundle(), seed=3, checkpoint=kept, resume=True), whole)


def check(found: TrainingResult, expected: TrainingResult) -> None:
    assert same(found.module, expected.module)
    assert found.history == expected.history
    assert (found.kept, found.held_out) == (expected.kept, expected.held_out)


def test_checkpoints_change_nothing_and_without_resume_are_not_read(tmp_path: Path) -> None:
    recipe = RECIPES["plain"]
    kept = checkpoint(tmp_path, recipe)
    interrupted(recipe, kept, 2)
    again = train(Everything(settings=recipe), bundle(), seed=3, checkpoint=kept)
    check(again, train(Everything(settings=recipe), bundle(), seed=3))
    kept.remove()
    assert list(kept.path.parent.iterdir()) == []
    check(train(Everything(settings=recipe), bundle(), seed=3, checkpoint=kept, resume=True), again)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 4}, "seed: 3 there, 4 here"),
        ({"parameters": {"width": 5}}, "parameters: width 4 there, 5 here"),
        ({"parameters": {"width": 4, "eps": 0.1}}, "parameters: eps None there, 0.1 here"),
        ({"recipe": Recipe(epochs=5)}, "recipe: .*epochs 4 there, 5 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    recipe = RECIPES["plain"]
    interrupted(recipe, checkpoint(tmp_path, recipe), 1)
    other = checkpoint(tmp_path, changed.pop("recipe", recipe), **changed)
    with pytest.raises(UsageError, match=said) as raised:
        train(Everything(settings=recipe), bundle(), checkpoint=other, resume=True)
    assert f"remove {other.path}" in raised.value.hint
    assert other.path.exists()


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_refused(damage: bytes | None, tmp_path: Path) -> None:
    kept = checkpoint(tmp_path, RECIPES["plain"])
    interrupted(RECIPES["plain"], kept, 1)
    data = kept.path.read_bytes()
    kept.path.write_bytes(data[: len(data) // 2] if damage is None else damage)
    with pytest.raises(UsageError, match="is no readable checkpoint"):
        kept.read()


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "boom",)

    kept = checkpoint(tmp_path, RECIPES["plain"])
    kept.path.parent.mkdir()
    torch.save({"format": 1, "identity": "{}", "state": Bomb()}, kept.path)
    with pytest.raises(UsageError, match="is no readable checkpoint"):
        kept.read()
    assert not (tmp_path / "boom").exists()


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    kept = checkpoint(tmp_path, RECIPES["plain"])
    kept.path.parent.mkdir()
    torch.save({"format": 2, "identity": "{}", "state": {}}, kept.path)
    with pytest.raises(UsageError, match="another version of robustbench-lite"):
        kept.read()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint(tmp_path, RECIPES["plain"]).read() is None
