"""The training loop: data, optimiser, monitoring and determinism, which all trained defenses share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_lite.data import DatasetBundle, MapDataset, fetch
from robustbench_lite.errors import MissingData
from robustbench_lite.training.augment import augment
from robustbench_lite.training.defense import TrainedDefense
from robustbench_lite.training.recipe import Context, Recipe, Run
from robustbench_lite.training.update import Average, Precision, Update
from robustbench_lite.training.watch import OVERFIT_IMAGES, overfitting, watch

# Examples of the training split that are held out, to watch clean and robust accuracy without touching the test split: so many,
# but no more than a fifth of it.
HELD_OUT = 128
SMALLEST_SPLIT = 10


@dataclass
class TrainingResult:
    """A trained module. held_out: how many examples were kept from training to watch it. history: per epoch.

    kept: the epoch, counted from 1, whose weights these are.
    """

    module: nn.Module
    recipe: Recipe
    held_out: int
    history: list[dict[str, float]] = field(default_factory=list)
    kept: int = 0
    device: str = "cpu"
    precision: Precision = "float32"

    @property
    def metrics(self) -> dict[str, float]:
        """Of the epoch that was kept: the training loss, and the accuracies on the held-out examples: clean, and robust
        (PGD-10 at the recipe's eps and norm, where it has one); and what the defense logged.
        """
        return {k: v for k, v in self.history[self.kept - 1].items() if k != "epoch"}

    @property
    def best(self) -> dict[str, float]:
        """The epoch with the best held-out robust accuracy (ties by the clean one, then the later)."""
        return max(self.history, key=_goodness)


def _goodness(epoch: Mapping[str, float]) -> tuple[float, float, float]:
    return epoch.get("robust", 0.0), epoch["clean"], epoch["epoch"]


def train(
    defense: TrainedDefense,
    bundle: DatasetBundle,
    *,
    seed: int = 0,
    device: str = "cpu",
    precision: Precision = "float32",
    teacher: nn.Module | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> TrainingResult:
    """Train a defense. teacher: the trained module that its field ``teacher`` names. progress: told of each epoch: epoch,
    epochs, loss, clean, robust.

    Raises MissingData where the data set has no training split, or one of fewer than ten examples; RblError where the loss is
    not finite.
    """
    data = bundle.train
    if data is None:
        raise MissingData(
            f"data set {bundle.info.name} has no training split", hint="give it one (x_train and y_train), or other weights"
        )
    if len(data) < SMALLEST_SPLIT:
        raise MissingData(
            f"the training split of {bundle.info.name} has {len(data)} examples",
            hint=f"give it at least {SMALLEST_SPLIT}, or other weights",
        )
    with torch.random.fork_rng(devices=[torch.device(device)] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        training = _Training(defense, bundle, data, device, precision, teacher)
        for _ in range(training.recipe.epochs):
            training.epoch()
            if progress is not None:
                progress({**training.history[-1], "epochs": training.recipe.epochs})
        return training.result()


class _Training:
    """One run of training, and all of its state."""

    def __init__(
        self,
        defense: TrainedDefense,
        bundle: DatasetBundle,
        data: MapDataset,
        device: str,
        precision: Precision,
        teacher: nn.Module | None,
    ) -> None:
        self.defense, self.data, self.device, self.precision = defense, data, device, precision
        self.recipe = recipe = defense.recipe(bundle.info)
        self.module = defense.architecture(bundle.info).to(device)
        auxiliary = defense.auxiliary(self.module, bundle.info)
        auxiliary = None if auxiliary is None else auxiliary.to(device)
        order = torch.randperm(len(data))
        self.held_out = min(HELD_OUT, len(order) // 5)
        watched, self.rest = order[: self.held_out], order[self.held_out :]
        self.watched = self._fetch(watched)
        self.update = Update(defense.parameter_groups(self.module, auxiliary), recipe, device, precision)
        self.average: Average | None = None
        if teacher is not None:
            teacher = teacher.to(device).eval().requires_grad_(False)
        self.run = Run(teacher, auxiliary, lambda n: self._fetch(self.rest[:n]))
        self.context = Context(0.0, recipe, bundle.info, run=self.run)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}
        self.steps = 0

    def _fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = fetch(self.data, indices.tolist())
        return x.to(self.device), y.to(self.device)

    def epoch(self) -> None:
        """One pass over the training examples, and what is measured after it."""
        number, recipe = len(self.history), self.recipe
        self.module.train()
        if self.run.auxiliary is not None:
            self.run.auxiliary.train()
        self.defense.begin_epoch(self.module, replace(self.context, epoch=float(number), step=self.steps, _kept={}))
        self.module.train()
        if self.average is None and recipe.ema:
            self.average = Average(self.module, recipe.ema)
        shuffled = self.rest[torch.randperm(len(self.rest))]
        count = max(1, len(self.rest) // recipe.batch_size)  # batch norm wants no small rest
        for i in range(count):
            self._batch(shuffled[i * recipe.batch_size : (i + 1) * recipe.batch_size], number + i / count)
        loss, logged = self.update.mean_loss(), self.run.logged
        found = {"epoch": number + 1, "loss": loss} | {name: sum(values) / len(values) for name, values in logged.items()}
        logged.clear()
        found |= watch(self._deployed, *self.watched, recipe)
        if recipe.overfitting and recipe.eps:
            found |= overfitting(self.module, *self.context.examples(OVERFIT_IMAGES), recipe)
        self.history.append(found)
        if recipe.early_stop == "best-robust" and max(self.history, key=_goodness) is found:
            self.best = {name: value.detach().clone() for name, value in self._deployed.state_dict().items()}

    def _batch(self, index: Tensor, now: float) -> None:
        x, y = fetch(self.data, index.tolist())
        x, y = augment(x, shift=self.recipe.shift, flip=self.recipe.flip).to(self.device), y.to(self.device)
        context = replace(self.context, epoch=now, index=index.to(self.device), step=self.steps, _kept={})
        self.update.at(now)
        self.defense.train_batch(self.module, x, y, context, self.update)
        self.defense.after_batch(self.module, context)
        if self.average is not None:
            self.average.update(self.module)
        self.steps += 1

    @property
    def _deployed(self) -> nn.Module:
        """What is watched and kept."""
        return self.module if self.average is None else self.average.module

    def result(self) -> TrainingResult:
        """What came of it: the weights of the epoch that the recipe wants."""
        module, kept = self._deployed, len(self.history)
        if self.best:
            module.load_state_dict(self.best)
            kept = int(max(self.history, key=_goodness)["epoch"])
        return TrainingResult(
            module.eval(), self.recipe, self.held_out, self.history, kept, device=self.device, precision=self.precision
        )
