"""What tests of training methods look at: small networks, a moment of training, a loss with its gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rbl_defenses.architectures import small_cnn
from rbl_defenses.image_defense import ImageDefense
from robustbench_lite import DatasetBundle, DatasetInfo
from robustbench_lite.data import fetch
from robustbench_lite.training import Context, Recipe, Run, TrainedDefense, Update

DIGITS = DatasetInfo(name="digits", classes=tuple("0123456789"), shape=(1, 8, 8), mean=(0.3,), std=(0.4,))
CIFAR = DatasetInfo(name="cifar10", classes=tuple("0123456789"), shape=(3, 32, 32))
# What digits are trained for.
EPS, L2, L1 = 0.15, 0.6, 2.0

Batch = tuple[Tensor, Tensor]


class Subset:
    """The first images of a training split."""

    def __init__(self, bundle: DatasetBundle, n: int) -> None:
        assert bundle.train is not None
        self.x, self.y = fetch(bundle.train, range(n))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.y[index])


def network(seed: int = 0) -> nn.Module:
    """An untrained network for digits, in training mode."""
    torch.manual_seed(seed)
    return small_cnn(DIGITS, width=4).train()


def moment(
    defense: TrainedDefense,
    *,
    epoch: float | None = None,
    step: int = 1,
    info: DatasetInfo = DIGITS,
    teacher: nn.Module | None = None,
    auxiliary: nn.Module | None = None,
) -> Context:
    """The context half way through a training, after the ramp, unless an epoch is given."""
    recipe = defense.recipe(info)
    now = recipe.epochs / 2 if epoch is None else epoch
    return Context(now, recipe, info, step=step, run=Run(teacher, auxiliary))


def loss_and_gradients(defense: ImageDefense, batch: Batch, teacher: nn.Module | None = None) -> tuple[Tensor, list[Tensor]]:
    """Of an untrained network, with the draws of one seed."""
    model = network()
    torch.manual_seed(11)
    loss = defense.loss(model, *batch, moment(defense, teacher=teacher))
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


def descended(defense: ImageDefense, batch: Batch, teacher: nn.Module | None = None, *, steps: int = 40) -> nn.Module:
    """A network after some steps on one batch, in evaluation mode, its parameters fixed."""
    model = network()
    update = Update(defense.parameter_groups(model, None), Recipe(epochs=1, lr=0.05), "cpu")
    torch.manual_seed(2)
    for number in range(steps):
        defense.train_batch(model, *batch, moment(defense, step=number, teacher=teacher), update)
    model.zero_grad()
    return model.eval().requires_grad_(False)
