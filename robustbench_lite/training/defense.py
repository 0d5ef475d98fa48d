"""The contract of trained defenses: what one must say, and what it may."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from robustbench_lite.data import DatasetInfo, MapDataset
from robustbench_lite.errors import PluginError
from robustbench_lite.training.recipe import Context, Recipe
from robustbench_lite.weights import load_into

if TYPE_CHECKING:
    from robustbench_lite.training.update import Update


class TrainedDefense(ABC):
    """Base of trained defenses: subclass it as ``@dataclass(frozen=True, kw_only=True)``; fields are hyperparameters.

    Write ``architecture``, ``recipe`` and ``loss``; the other methods are hooks that do nothing special unless overridden.
    Calling the defense builds the module and loads its weights, which is what the core does; ``train`` makes the weights.

    A field ``teacher: str`` names another defense, by a selector: it is found with its weights, and is ``context.teacher``
    while this one is trained. It is not part of what is deployed. A field ``extra: str`` names a data set, whose training split
    is ``context.extra``.

    What a hook changes in the model must be in its state dict, which is what a resumed run restores, or be done in every epoch.

    A parameter that weight decay must spare is declared by the module that owns it: an attribute ``no_decay`` with the names
    of its own parameters.
    """

    @abstractmethod
    def architecture(self, info: DatasetInfo) -> nn.Module:
        """The untrained module: [0, 1] NCHW in, logits out, normalisation inside."""

    @abstractmethod
    def recipe(self, info: DatasetInfo) -> Recipe:
        """How to optimise it on this data set, with every hyperparameter that the data set decides."""

    @abstractmethod
    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        """The scalar to minimise on one batch: x (n, C, H, W) in [0, 1], y (n,). The model is in training mode.

        Draw from torch's global generators: they are seeded, and kept in checkpoints.
        """

    def auxiliary(self, model: nn.Module, info: DatasetInfo) -> nn.Module | None:
        """A module that is trained along and not deployed: predictors, projection or rotation heads, generators."""
        return None

    def parameter_groups(self, model: nn.Module, auxiliary: nn.Module | None) -> Iterable[dict[str, Any]]:
        """Groups of parameters for the optimiser; a group may have its own ``weight_decay`` and ``lr_scale``.

        By default all parameters of both modules, without weight decay where ``no_decay`` says so.
        """
        return parameter_groups(model, *([] if auxiliary is None else [auxiliary]))

    def extra_data(self, context: Context) -> MapDataset | None:
        """Examples to train on besides the split's own, for recipes with an ``extra_share``: by default ``context.extra``; or
        generated ones, fitted to ``context.examples``, or more images with the teacher's labels. Asked once, at the start.
        """
        return context.extra

    def begin_epoch(self, model: nn.Module, context: Context) -> None:  # noqa: B027 (a hook)
        """Before the first batch of an epoch (``context.epoch`` is whole): measure, alternate, or, in epoch 0, initialise."""

    def train_batch(self, model: nn.Module, x: Tensor, y: Tensor, context: Context, update: Update) -> None:
        """What one batch does to the weights: one update on the loss. For methods that own the whole of it."""
        update(lambda: self.loss(model, x, y, context))

    def after_batch(self, model: nn.Module, context: Context) -> None:  # noqa: B027 (a hook)
        """After each batch, before the average of weights sees them: clipping of weights."""

    def __call__(self, info: DatasetInfo, weights: Path | None) -> nn.Module:
        """Build the module and load its weights, where given; in evaluation mode."""
        module = self.architecture(info)
        if weights is not None:
            load_into(module, weights, type(self).__name__)
        return module.eval()


class Around(TrainedDefense):
    """Base of methods around another method: subclass it with a field ``method: str``, the selector of a trained defense.

    The core resolves the selector and binds the method, ``self.inner``; everything that is not overridden is the inner
    method's. ``AWP(gamma=0.01).around(Trades())`` does the same by hand.
    """

    def around(self, inner: TrainedDefense) -> TrainedDefense:
        """A copy that is bound to a method. Raises PluginError where that method owns its update, of which there is one."""
        if type(inner).train_batch is not TrainedDefense.train_batch:
            raise PluginError(
                f"{type(inner).__name__} has an update of its own, and {type(self).__name__} would replace it",
                hint="name a method that only has a loss",
            )
        bound = copy.copy(self)
        object.__setattr__(bound, "_inner", inner)
        return bound

    @property
    def teacher(self) -> str | None:
        """The inner method's teacher, where it has one."""
        return getattr(self.inner, "teacher", None)

    @property
    def extra(self) -> str | None:
        """The inner method's second data set, where it has one."""
        return getattr(self.inner, "extra", None)

    @property
    def inner(self) -> TrainedDefense:
        """The method that this one is around. Raises PluginError where none was bound."""
        found = getattr(self, "_inner", None)
        if not isinstance(found, TrainedDefense):
            raise PluginError(f"{type(self).__name__} is around no method yet", hint="give it one: around(defense)")
        return found

    def architecture(self, info: DatasetInfo) -> nn.Module:
        return self.inner.architecture(info)

    def recipe(self, info: DatasetInfo) -> Recipe:
        return self.inner.recipe(info)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        return self.inner.loss(model, x, y, context)

    def auxiliary(self, model: nn.Module, info: DatasetInfo) -> nn.Module | None:
        return self.inner.auxiliary(model, info)

    def parameter_groups(self, model: nn.Module, auxiliary: nn.Module | None) -> Iterable[dict[str, Any]]:
        return self.inner.parameter_groups(model, auxiliary)

    def extra_data(self, context: Context) -> MapDataset | None:
        return self.inner.extra_data(context)

    def begin_epoch(self, model: nn.Module, context: Context) -> None:
        self.inner.begin_epoch(model, context)

    def after_batch(self, model: nn.Module, context: Context) -> None:
        self.inner.after_batch(model, context)


def parameter_groups(*modules: nn.Module) -> list[dict[str, Any]]:
    """All parameters of some modules, each once: those that decay, and those that a module's ``no_decay`` names."""
    spared: set[int] = set()
    for module in modules:
        for part in module.modules():
            names = getattr(part, "no_decay", ())
            spared |= {id(parameter) for name, parameter in part.named_parameters(recurse=False) if name in names}
    every = {id(parameter): parameter for module in modules for parameter in module.parameters()}
    groups: list[dict[str, Any]] = [{"params": [p for key, p in every.items() if key not in spared]}]
    if spared:
        groups.append({"params": [p for key, p in every.items() if key in spared], "weight_decay": 0.0})
    return groups
