"""A problem that a linear model learns, and a defense that keeps what its loss was given."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lite import DatasetBundle, DatasetInfo
from robustbench_lite.training import Context, Recipe, TrainedDefense

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
