"""How a defense is optimised, and where its training stands: what the hooks of a trained defense are told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from robustbench_lite.data import DatasetInfo, MapDataset
from robustbench_lite.errors import PluginError

T = TypeVar("T")
EarlyStop = Literal["last", "best-robust", "collapse"]

# Points (share of the training, share of the peak) of a rate that rises from 0 to its peak at half time and falls back to 0.
TRIANGLE = ((0.0, 0.0), (0.5, 1.0), (1.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to optimise: by default SGD with Nesterov momentum, cosine decay to zero, gradients clipped to norm ``clip``.

    eps, norm: radius that the defense is trained for, and watched at, and its norm; 0 for none. ramp: share of the epochs
    over which it grows linearly from 0. shift: random translation by up to so many pixels (zero padding). flip: random
    mirroring. extra_share: of each batch, for what the defense's ``extra_data`` brings; an epoch is a pass over the others.

    schedule: of the learning rate, whose peak is ``lr``: ``cosine`` to zero; ``step``, times ``decay`` after each of
    ``milestones`` (shares of the training); ``linear`` between ``points`` (share of the training, share of the peak), by
    default up to the peak at half time and back. warmup: epochs over which the rate, whatever its schedule, grows from 0.

    ema: decay of a running average of the weights (Polyak), 0 for none. The average is what is watched and kept. It takes
    min(ema, (1 + t) / (10 + t)) at update t, so that it forgets its start; running statistics of batch norm are averaged
    with the weights. early_stop: keep the weights of the ``last`` epoch, or of the one with the ``best-robust`` held-out
    accuracy (ties by the clean one, then the later), or, ``collapse``, stop where accuracy under PGD-10 on training images is
    more than 20 points below that of the epoch before, and keep that one (Wong et al., 2020, arXiv:2001.03994). overfitting:
    compare FGSM with PGD-10 on training images after each epoch: where one step stops at far more accuracy than ten, training
    has overfitted to its one step; ``collapse`` does so too.
    """

    epochs: int
    batch_size: int = 128
    optimiser: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip: float = 10.0
    schedule: Literal["cosine", "step", "linear"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    points: tuple[tuple[float, float], ...] = TRIANGLE
    warmup: float = 0.0
    eps: float = 0.0
    norm: Literal["linf", "l2"] = "linf"
    ramp: float = 0.25
    shift: int = 0
    flip: bool = False
    extra_share: float = 0.0
    ema: float = 0.0
    early_stop: EarlyStop = "last"
    overfitting: bool = False


class Run:
    """What lasts for a whole training run: see the properties of ``Context``, through which a defense reaches it."""

    def __init__(
        self,
        teacher: nn.Module | None = None,
        auxiliary: nn.Module | None = None,
        examples: Callable[[int], tuple[Tensor, Tensor]] | None = None,
        held_out: tuple[Tensor, Tensor] | None = None,
        extra: MapDataset | None = None,
    ) -> None:
        self.teacher, self.auxiliary, self.examples, self.held_out = teacher, auxiliary, examples, held_out
        self.extra = extra
        self.state: dict[str, Any] = {}
        self.logged: dict[str, list[float]] = {}


@dataclass(frozen=True)
class Context:
    """Where training stands, for hooks that depend on it.

    epoch: counts from 0 and is a fraction inside an epoch. index: (n,) the rows of this batch in the training split, -1 for
    those of extra data; empty outside batches. step: how many batches there were before this one.
    """

    epoch: float
    recipe: Recipe
    info: DatasetInfo
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    step: int = 0
    run: Run = field(default_factory=Run)
    _kept: dict[str, Any] = field(default_factory=dict)
    _aside: bool = False

    @property
    def eps(self) -> float:
        """The radius to train with now: ramped up over the first epochs."""
        ramp = self.recipe.ramp * self.recipe.epochs
        return self.recipe.eps * (min(1.0, self.epoch / ramp) if ramp > 0 else 1.0)

    @property
    def teacher(self) -> nn.Module:
        """The trained defense that the field ``teacher`` names: in evaluation mode, its parameters fixed."""
        hint = "give the defense a field `teacher: str`; train(teacher=...) hands it over"
        return _present(self.run.teacher, "teacher", hint)

    @property
    def auxiliary(self) -> nn.Module:
        """What the defense's method ``auxiliary`` made: it is trained along and not deployed."""
        return _present(self.run.auxiliary, "auxiliary module", "return one from the defense's method `auxiliary`")

    @property
    def extra(self) -> MapDataset | None:
        """The training split of the data set that the field ``extra`` names."""
        return self.run.extra

    @property
    def state(self) -> dict[str, Any]:
        """What a method remembers from batch to batch: tensors, numbers, text, lists and dicts of them. Resume restores it."""
        return self.run.state

    def examples(self, n: int) -> tuple[Tensor, Tensor]:
        """The same first n training examples whenever asked (fewer of a small split): as they are, on the device."""
        return _present(self.run.examples, "data", "call it in training")(n)

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Examples of the training split on which nothing is trained."""
        return _present(self.run.held_out, "held-out data", "call it in training")

    def log(self, **values: Tensor | float) -> None:
        """Have the mean over the epoch of these numbers kept in the history: parts of a loss, what it was weighed by."""
        for name, value in () if self._aside else values.items():
            self.run.logged.setdefault(name, []).append(float(value.detach() if isinstance(value, Tensor) else value))

    def aside(self) -> Context:
        """The same, for evaluations beside the one that is descended on: what they log is not kept."""
        return replace(self, _aside=True)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What ``make`` returns, made once per batch, however often the loss is evaluated on it.

        Adversarial examples belong here: a method around this one (``awp``) evaluates the loss at other weights, on the
        same examples.
        """
        if name not in self._kept:
            self._kept[name] = make()
        return cast(T, self._kept[name])


def _present(value: T | None, what: str, hint: str) -> T:
    if value is None:
        raise PluginError(f"this training run has no {what}", hint=hint)
    return value


def schedule(recipe: Recipe, epoch: float) -> float:
    """The learning rate at a fraction of epochs."""
    share = epoch / recipe.epochs
    if recipe.schedule == "cosine":
        rate = recipe.lr * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
    elif recipe.schedule == "step":
        rate = recipe.lr * recipe.decay ** sum(share >= milestone for milestone in recipe.milestones)
    else:
        rate = recipe.lr * _between(recipe.points, share)
    return rate * min(1.0, epoch / recipe.warmup) if recipe.warmup else rate


def _between(points: tuple[tuple[float, float], ...], share: float) -> float:
    """Linear interpolation; the first and the last value hold beyond the ends."""
    if share <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if share < right:
            return low + (high - low) * (share - left) / (right - left)
    return points[-1][1]
