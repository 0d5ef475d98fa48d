"""The training loop that trained defenses share.

A trained defense is a frozen dataclass of hyperparameters with an ``architecture`` and a ``loss``; data, optimiser, schedule,
augmentation, monitoring and determinism are here. The same seed, data and number of threads give the same weights.
"""

from __future__ import annotations

import math
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lite.data import DatasetBundle, DatasetInfo, fetch
from robustbench_lite.errors import MissingData, RblError
from robustbench_lite.losses import cross_entropy
from robustbench_lite.weights import load_into

if TYPE_CHECKING:
    from collections.abc import Iterator

# Examples of the training split that are held out, to watch clean and robust accuracy without touching the test split: so many,
# but no more than a fifth of it.
HELD_OUT = 128
SMALLEST_SPLIT = 10
# The attack by which robust accuracy is watched during training.
MONITOR_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to optimise: SGD with momentum, cosine decay to zero, gradients clipped to norm ``clip``.

    eps: linf radius that the defense is trained for, and watched at; 0 for none. ramp: share of the epochs over which it
    grows linearly from 0. shift: random translation by up to so many pixels (zero padding). flip: random mirroring.
    """

    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 10.0
    eps: float = 0.0
    ramp: float = 0.25
    shift: int = 0
    flip: bool = False


@dataclass(frozen=True)
class Context:
    """Where training stands, for losses that depend on it. epoch counts from 0 and is a fraction inside an epoch."""

    epoch: float
    recipe: Recipe
    info: DatasetInfo

    @property
    def eps(self) -> float:
        """The radius to train with now: ramped up over the first epochs."""
        ramp = self.recipe.ramp * self.recipe.epochs
        return self.recipe.eps * (min(1.0, self.epoch / ramp) if ramp > 0 else 1.0)


class TrainedDefense(ABC):
    """Base of trained defenses: subclass it as ``@dataclass(frozen=True, kw_only=True)``; fields are hyperparameters.

    Write ``architecture``, ``recipe`` and ``loss``. Calling the defense builds the module and loads its weights, which is
    what the core does; ``train`` below makes the weights.
    """

    @abstractmethod
    def architecture(self, info: DatasetInfo) -> nn.Module:
        """The untrained module: [0, 1] NCHW in, logits out, normalisation inside."""

    @abstractmethod
    def recipe(self, info: DatasetInfo) -> Recipe:
        """How to optimise it on this data set, with every hyperparameter that the data set decides."""

    @abstractmethod
    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        """The scalar to minimise on one batch: x (n, C, H, W) in [0, 1], y (n,). The model is in training mode."""

    def __call__(self, info: DatasetInfo, weights: Path | None) -> nn.Module:
        """Build the module and load its weights, where given; in evaluation mode."""
        module = self.architecture(info)
        if weights is not None:
            load_into(module, weights, type(self).__name__)
        return module.eval()


@dataclass
class TrainingResult:
    """A trained module. held_out: how many examples were kept from training to watch it. history: per epoch."""

    module: nn.Module
    recipe: Recipe
    held_out: int
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        """Of the last epoch: the training loss, and the accuracies on the held-out examples: clean, and robust (PGD-10 at the
        recipe's eps, where it has one).
        """
        return {k: v for k, v in self.history[-1].items() if k != "epoch"}


def train(
    defense: TrainedDefense,
    bundle: DatasetBundle,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[dict[str, float]], None] | None = None,
) -> TrainingResult:
    """Train a defense. progress: told of each epoch: epoch, epochs, loss, clean, robust.

    Raises MissingData where the data set has no training split, or one of fewer than ten examples; RblError where the loss is
    not finite.
    """
    if bundle.train is None:
        raise MissingData(
            f"data set {bundle.info.name} has no training split", hint="give it one (x_train and y_train), or other weights"
        )
    if len(bundle.train) < SMALLEST_SPLIT:
        raise MissingData(
            f"the training split of {bundle.info.name} has {len(bundle.train)} examples",
            hint=f"give it at least {SMALLEST_SPLIT}, or other weights",
        )
    recipe = defense.recipe(bundle.info)
    with torch.random.fork_rng(devices=[torch.device(device)] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        module = defense.architecture(bundle.info).to(device)
        order = torch.randperm(len(bundle.train))
        held_out = min(HELD_OUT, len(order) // 5)
        watched, rest = order[:held_out], order[held_out:]
        watch_x, watch_y = (t.to(device) for t in fetch(bundle.train, watched.tolist()))
        optimiser = torch.optim.SGD(
            module.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
        )
        result = TrainingResult(module, recipe, held_out)
        for epoch in range(recipe.epochs):
            loss = _epoch(defense, bundle, rest, epoch, optimiser, result, device)
            result.history.append({"epoch": epoch + 1, "loss": loss} | _watch(module, watch_x, watch_y, recipe))
            if progress is not None:
                progress({**result.history[-1], "epochs": recipe.epochs})
    module.eval()
    return result


def _epoch(
    defense: TrainedDefense,
    bundle: DatasetBundle,
    rest: Tensor,
    epoch: int,
    optimiser: torch.optim.Optimizer,
    result: TrainingResult,
    device: str,
) -> float:
    module, recipe = result.module.train(), result.recipe
    if bundle.train is None:
        raise MissingData(f"data set {bundle.info.name} has no training split")
    shuffled = rest[torch.randperm(len(rest))]
    count = max(1, len(rest) // recipe.batch_size)  # batch norm wants no small rest
    batches = [shuffled[i * recipe.batch_size : (i + 1) * recipe.batch_size] for i in range(count)]
    total = 0.0
    for i, batch in enumerate(batches):
        now = epoch + i / len(batches)
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * 0.5 * (1 + math.cos(math.pi * now / recipe.epochs))
        x, y = fetch(bundle.train, batch.tolist())
        x, y = augment(x, shift=recipe.shift, flip=recipe.flip).to(device), y.to(device)
        loss = defense.loss(module, x, y, Context(now, recipe, bundle.info))
        if not bool(loss.isfinite()):
            raise RblError(f"the loss is {loss.item()} in epoch {epoch + 1}", hint="lower lr, or raise ramp")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
        optimiser.step()
        total += loss.item()
    return total / len(batches)


def _watch(module: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> dict[str, float]:
    """Accuracy on the held-out examples, clean and under PGD at the recipe's eps."""
    module.eval()
    with torch.no_grad():
        found = {"clean": (module(x).argmax(1) == y).float().mean().item()}
    if recipe.eps:
        step = 2.5 * recipe.eps / MONITOR_STEPS
        x_adv = craft(module, x, lambda z: cross_entropy(z, y), eps=recipe.eps, step=step, steps=MONITOR_STEPS)
        with torch.no_grad():
            found["robust"] = (module(x_adv).argmax(1) == y).float().mean().item()
    return found


def craft(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    eps: float,
    step: float,
    steps: int,
    start: Literal["uniform", "gaussian", "zero"] = "uniform",
    mode: Literal["eval", "train"] = "eval",
) -> Tensor:
    """Adversarial examples for training: projected sign ascent on ``loss(logits) -> (n,)`` in the linf ball and the box.

    start: uniform in the ball; ``gaussian`` is x + 0.001 N(0, I), as TRADES has it; zero. mode: that of batch norm while
    crafting; the model's own mode is restored. ``x`` is not modified and no gradient of a parameter is left behind. It
    draws from torch's global generator, which ``train`` seeds.
    """
    if start == "uniform":
        x_adv = x + torch.empty_like(x).uniform_(-eps, eps)
    elif start == "gaussian":
        x_adv = x + 0.001 * torch.randn_like(x)
    else:
        x_adv = x.clone()
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    x_adv = x_adv.clamp(low, high)
    with in_mode(model, mode):
        for _ in range(steps):
            leaf = x_adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(loss(model(leaf)).sum(), leaf)
            x_adv = (leaf.detach() + step * grad.sign()).clamp(low, high)
    return x_adv.detach()


@contextmanager
def in_mode(model: nn.Module, mode: Literal["eval", "train"]) -> Iterator[None]:
    """Put a model into a mode, and each of its modules back into its own afterwards: some may be frozen in evaluation mode."""
    were = [(module, module.training) for module in model.modules()]
    model.train(mode == "train")
    try:
        yield
    finally:
        for module, was in were:
            module.training = was


def augment(x: Tensor, *, shift: int, flip: bool) -> Tensor:
    """Translate each image by up to ``shift`` pixels with zero padding, and mirror it with probability 1/2 if ``flip``.

    x: (n, C, H, W). Draws from torch's global generator.
    """
    n, _, height, width = x.shape
    if shift:
        padded = F.pad(x, (shift,) * 4)
        down, right = torch.randint(0, 2 * shift + 1, (2, n))
        rows = (down[:, None] + torch.arange(height))[:, None, :, None]
        columns = (right[:, None] + torch.arange(width))[:, None, None, :]
        x = padded[torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None], rows, columns]
    if flip:
        x = torch.where((torch.rand(n) < 0.5)[:, None, None, None], x.flip(3), x)
    return x


def model_card(
    defense_id: str, version: int, parameters: Mapping[str, Any], bundle: DatasetBundle, seed: int, result: TrainingResult
) -> dict[str, Any]:
    """What is written with the weights: everything that made them, and how they did on the held-out examples."""
    return {
        "format": 1,
        "defense": defense_id,
        "version": version,
        "parameters": dict(parameters),
        "recipe": asdict(result.recipe),
        "dataset": {"name": bundle.info.name, "fingerprint": bundle.fingerprint},
        "seed": seed,
        "held_out": {"n": result.held_out, **result.metrics},
        "history": [{k: round(v, 4) for k, v in epoch.items()} for epoch in result.history],
        "threads": torch.get_num_threads(),
        "packages": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("robustbench-lite", "torch", "numpy")},
    }
