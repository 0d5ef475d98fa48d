"""A one-file plugin of trained defenses: a teacher's student, more data, a method around methods, a detector fitted to a base.

Loaded as ``--plugin tests/plugins/workshop.py``; everything is found under ``workshop/...``.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from robustbench_lite import DatasetBundle, DatasetInfo, DatasetSpec, DefenseSpec, FittedDefense, TrainedDefense, hookimpl
from robustbench_lite.training import Around, Recipe

# Test plugins may be heavy; a real entry module imports no torch.


@hookimpl
def rbl_datasets():
    yield DatasetSpec(name="stripes", factory="workshop:Stripes")


@hookimpl
def rbl_defenses():
    yield DefenseSpec(name="linear", factory="workshop:LinearModel", kind="trained")
    yield DefenseSpec(name="noisy", factory="workshop:Noisy", kind="trained", stochastic=True)
    yield DefenseSpec(name="student", factory="workshop:Student", kind="trained")
    yield DefenseSpec(name="more", factory="workshop:More", kind="trained", extra_data="stripes from elsewhere")
    yield DefenseSpec(name="outer", factory="workshop:Outer", kind="trained")
    yield DefenseSpec(name="detector", factory="workshop:Detector", kind="fitted", rejects=True)
    yield DefenseSpec(name="misdeclared", factory="workshop:Detector", kind="trained")


@dataclass(frozen=True, kw_only=True)
class Stripes:
    n: int = 400

    def __call__(self, root: Path) -> DatasetBundle:
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(self.n) % 2
        x = 0.5 + 0.2 * (2 * y - 1).view(-1, 1, 1, 1) * torch.tensor([1.0, -1, 1, -1]).view(1, 1, 1, 4)
        x = (x + 0.05 * torch.randn((self.n, 1, 4, 4), generator=generator)).clamp(0, 1)

        class Split:
            def __init__(self, rows: slice) -> None:
                self.x, self.y = x[rows], y[rows]

            def __len__(self) -> int:
                return len(self.y)

            def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
                return self.x[i], int(self.y[i])

        info = DatasetInfo(name="stripes", classes=("odd", "even"), shape=(1, 4, 4))
        half = self.n // 2
        test, train = Split(slice(0, half)), Split(slice(half, None))
        return DatasetBundle(info=info, test=test, evaluation=range(half), fingerprint=f"stripes-{self.n}", train=train)


@dataclass(frozen=True, kw_only=True)
class LinearModel(TrainedDefense):
    """kill: end the process in this epoch, once: where the file ``killed`` is not there yet."""

    epochs: int = 5
    scale: float = 1.0
    kill: int | None = None

    def architecture(self, info: DatasetInfo) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 2))

    def recipe(self, info: DatasetInfo) -> Recipe:
        return Recipe(epochs=self.epochs, batch_size=40, eps=0.05, ema=0.5)

    def begin_epoch(self, model, context):
        if self.kill is not None and context.epoch == self.kill - 1 and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def loss(self, model, x, y, context):
        return F.cross_entropy(self.scale * model(x), y)


@dataclass(frozen=True, kw_only=True)
class Noisy(LinearModel):
    def architecture(self, info: DatasetInfo) -> nn.Module:
        from robustbench_lite import randn_like

        class Noise(nn.Module):
            def forward(self, x):
                return x + 0.01 * randn_like(x)

        return nn.Sequential(Noise(), super().architecture(info))


@dataclass(frozen=True, kw_only=True)
class Student(LinearModel):
    teacher: str = "workshop/linear"

    def loss(self, model, x, y, context):
        return F.cross_entropy(model(x), context.teacher(x).argmax(1))


@dataclass(frozen=True, kw_only=True)
class More(LinearModel):
    extra: str = "workshop/stripes[n=60]"

    def recipe(self, info: DatasetInfo) -> Recipe:
        return replace(super().recipe(info), extra_share=0.25)

    def loss(self, model, x, y, context):
        context.log(added=(context.index < 0).float().mean())
        return super().loss(model, x, y, context)


@dataclass(frozen=True, kw_only=True)
class Outer(Around):
    method: str = "workshop/linear"


class Guard(nn.Module):
    """Refuses what is farther from the mean image than the threshold."""

    def __init__(self, base: nn.Module, info: DatasetInfo) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("mean", torch.zeros(info.shape))
        self.register_buffer("threshold", torch.tensor(0.0))

    def forward(self, x):
        logits = self.base(x)
        far = (x - self.mean).flatten(1).norm(dim=1) - self.threshold
        return torch.cat([logits, logits.amax(1, keepdim=True) + far[:, None]], 1)


@dataclass(frozen=True, kw_only=True)
class Detector(FittedDefense):
    base: str = "workshop/linear"
    false_positives: float = 0.05

    def architecture(self, info: DatasetInfo, base: nn.Module) -> nn.Module:
        return Guard(base, info)

    def fit(self, module, context):
        x, _ = context.examples(10**6)
        module.mean.copy_(x.mean(0))
        held_out, _ = context.held_out
        distance = (held_out - module.mean).flatten(1).norm(dim=1)
        module.threshold.copy_(distance.quantile(1 - self.false_positives))
        return {"refused": float((distance > module.threshold).float().mean())}
