"""The training loop: data, optimiser, monitoring and determinism, which all trained defenses share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_lite.data import DatasetBundle, MapDataset, fetch
from robustbench_lite.errors import PluginError
from robustbench_lite.training.augment import augment
from robustbench_lite.training.checkpoint import Checkpoint
from robustbench_lite.training.defense import TrainedDefense
from robustbench_lite.training.recipe import Context, Run
from robustbench_lite.training.result import TrainingResult, collapsed, goodness
from robustbench_lite.training.split import Split, training_split
from robustbench_lite.training.update import Average, Precision, Update
from robustbench_lite.training.watch import OVERFIT_IMAGES, overfitting, watch


def train(
    defense: TrainedDefense,
    bundle: DatasetBundle,
    *,
    seed: int = 0,
    device: str = "cpu",
    precision: Precision = "float32",
    teacher: nn.Module | None = None,
    extra: MapDataset | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> TrainingResult:
    """Train a defense.

    teacher: the trained module that its field ``teacher`` names. extra: the training split of the data set that its field
    ``extra`` names. checkpoint: written after each epoch. resume: go on from it, where there is one. progress: told of each
    epoch: epoch, epochs, loss, clean, robust.

    Raises MissingData where the data set has no training split, or one of fewer than ten examples; RblError where the loss is
    not finite; UsageError for a checkpoint that does not fit.
    """
    training_split(bundle)
    state = checkpoint.read() if checkpoint is not None and resume else None
    with torch.random.fork_rng(devices=[torch.device(device)] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        training = _Training(defense, bundle, device, precision, teacher, extra)
        if state is not None:
            training.load_state_dict(state)
        while not training.finished:
            training.epoch()
            if checkpoint is not None:
                checkpoint.write(training.state_dict())
            if progress is not None:
                progress({**training.history[-1], "epochs": training.recipe.epochs})
        return training.result()


class _Training:
    """One run of training, and all of its state."""

    def __init__(
        self,
        defense: TrainedDefense,
        bundle: DatasetBundle,
        device: str,
        precision: Precision,
        teacher: nn.Module | None,
        extra: MapDataset | None,
    ) -> None:
        self.defense, self.device = defense, device
        self.recipe = recipe = defense.recipe(bundle.info)
        self.module = defense.architecture(bundle.info).to(device)
        if precision != "float32":
            # Losses are computed from float32 logits: in half precision, probabilities near 0 and 1 are all the same.
            self.module.register_forward_hook(lambda module, inputs, logits: logits.float())
        auxiliary = defense.auxiliary(self.module, bundle.info)
        auxiliary = None if auxiliary is None else auxiliary.to(device)
        self.split = Split(bundle, device)
        self.update = Update(defense.parameter_groups(self.module, auxiliary), recipe, device, precision)
        if teacher is not None:
            teacher = teacher.to(device).eval().requires_grad_(False)
        self.run = Run(teacher, auxiliary, self.split.examples, self.split.held_out, extra)
        self.context = Context(0.0, recipe, bundle.info, run=self.run)
        self.extra = defense.extra_data(self.context) if recipe.extra_share else None
        if recipe.extra_share and not self.extra:
            raise PluginError(
                f"{type(defense).__name__} wants a share of {recipe.extra_share:g} of extra data and brings none",
                hint="return a map-style data set from its method extra_data",
            )
        self.average: Average | None = None
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.steps = 0

    def epoch(self) -> None:
        """One pass over the training examples, and what is measured after it."""
        number, recipe = len(self.history), self.recipe
        self._training_mode()
        self.defense.begin_epoch(self.module, replace(self.context, epoch=float(number), step=self.steps, _kept={}))
        self._training_mode()
        if self.average is None and recipe.ema:
            self.average = Average(self.module, recipe.ema)
        shuffled = self.split.rest[torch.randperm(len(self.split.rest))]
        size = recipe.batch_size - self._extra_rows
        count = max(1, len(shuffled) // size)  # batch norm wants no small rest
        for i in range(count):
            self._batch(shuffled[i * size : (i + 1) * size], number + i / count)
        logged = {name: sum(values) / len(values) for name, values in self.run.logged.items()}
        self.run.logged.clear()
        found = {"epoch": number + 1, "loss": self.update.mean_loss()} | logged
        found |= watch(self._deployed, *self.split.held_out, recipe)
        if (recipe.overfitting or recipe.early_stop == "collapse") and recipe.eps:
            found |= overfitting(self.module, *self.split.examples(OVERFIT_IMAGES), recipe)
        self.history.append(found)
        if self._kept == number + 1 and recipe.early_stop != "last":
            self.best = {name: value.detach().clone() for name, value in self._deployed.state_dict().items()}

    @property
    def finished(self) -> bool:
        """Whether all epochs are over, or a collapse has ended them."""
        return len(self.history) == self.recipe.epochs or self._collapsed

    @property
    def _collapsed(self) -> bool:
        return self.recipe.early_stop == "collapse" and self.recipe.eps > 0 and collapsed(self.history)

    @property
    def _kept(self) -> int:
        """The epoch, counted from 1, whose weights are kept."""
        if self.recipe.early_stop == "best-robust":
            return int(max(self.history, key=goodness)["epoch"])
        return len(self.history) - self._collapsed

    def _training_mode(self) -> None:
        self.module.train()
        if self.run.auxiliary is not None:
            self.run.auxiliary.train()

    @property
    def _extra_rows(self) -> int:
        return min(round(self.recipe.extra_share * self.recipe.batch_size), self.recipe.batch_size - 1)

    def _batch(self, index: Tensor, now: float) -> None:
        x, y = fetch(self.split.data, index.tolist())
        if self.extra is not None and self._extra_rows:
            drawn = torch.randint(len(self.extra), (self._extra_rows,))
            x, y = (torch.cat(pair) for pair in zip((x, y), fetch(self.extra, drawn.tolist()), strict=True))
            index = torch.cat([index, torch.full_like(drawn, -1)])
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
        module = self._deployed
        if self.best:
            module.load_state_dict(self.best)
        return TrainingResult(module.eval(), self.recipe, len(self.split.held_out[1]), self.history, self._kept)

    def state_dict(self) -> dict[str, Any]:
        """All that changes from epoch to epoch, with the states of the generators."""
        return {
            "module": self.module.state_dict(),
            "auxiliary": None if self.run.auxiliary is None else self.run.auxiliary.state_dict(),
            "update": self.update.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "best": self.best,
            "history": self.history,
            "steps": self.steps,
            "state": self.run.state,
            "generator": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.startswith("cuda") else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another process was."""
        self.module.load_state_dict(state["module"])
        if self.run.auxiliary is not None:
            self.run.auxiliary.load_state_dict(state["auxiliary"])
        self.update.load_state_dict(state["update"])
        if state["average"] is not None:
            self.average = Average(self.module, self.recipe.ema)
            self.average.load_state_dict(state["average"])
        self.best, self.history, self.steps = state["best"], state["history"], state["steps"]
        self.run.state.clear()
        self.run.state.update(_moved(state["state"], self.device))
        torch.set_rng_state(state["generator"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)


def _moved(value: Any, device: str) -> Any:
    """Tensors in nested dicts and lists, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return [_moved(item, device) for item in value] if isinstance(value, list) else value
