"""A one-file plugin for the core's own tests: a small separable problem, and attacks that behave and misbehave.

Loaded as ``--plugin tests/plugins/toy.py``; everything is found under ``toy/...``.
"""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_lite import AttackSpec, DatasetBundle, DatasetInfo, DatasetSpec, DefenseSpec, hookimpl


@hookimpl
def rbl_datasets():
    yield DatasetSpec(name="blobs", factory="toy:Blobs", summary="Two noisy grey levels")


@hookimpl
def rbl_defenses():
    yield DefenseSpec(name="mean", factory="toy:Mean", summary="Class by mean brightness")
    yield DefenseSpec(name="noisy-mean", factory="toy:NoisyMean", stochastic=True)
    yield DefenseSpec(name="needs-training", factory="toy:NeedsTraining", kind="trained")
    yield DefenseSpec(name="guessing", factory="toy:Guessing", summary="Always answers the same")
    yield DefenseSpec(name="not-a-module", factory="toy:NotAModule")


@hookimpl
def rbl_attacks():
    common = {"norms": ("linf", "l2"), "access": "gradient"}
    yield AttackSpec(name="shift", factory="toy:Shift", norms=("linf",), access="gradient")
    yield AttackSpec(name="minimal", factory="toy:Minimal", norms=("linf",), access="gradient", goal="minimal-norm")
    yield AttackSpec(name="slow", factory="toy:Slow", **common)
    yield AttackSpec(name="raises", factory="toy:Raises", **common)
    yield AttackSpec(name="segfaults", factory="toy:Segfaults", **common)
    yield AttackSpec(name="exits", factory="toy:Exits", **common)
    yield AttackSpec(name="orphans", factory="toy:Orphans", **common)
    yield AttackSpec(name="hangs", factory="toy:Hangs", **common)
    yield AttackSpec(name="cheats", factory="toy:Cheats", **common)
    yield AttackSpec(name="greedy", factory="toy:Greedy", norms=("linf",), access="scores")
    yield AttackSpec(name="prints", factory="toy:Prints", norms=("linf",), access="none")


@dataclass(frozen=True, kw_only=True)
class Blobs:
    """n examples: label 1 where the image is brighter than 0.5 on the whole."""

    n: int = 600

    def __call__(self, root: Path) -> DatasetBundle:
        import torch

        generator = torch.Generator().manual_seed(0)
        y = torch.arange(self.n) % 2
        x = 0.5 + 0.1 * (2 * y - 1).view(-1, 1, 1, 1) * torch.rand((self.n, 1, 1, 1), generator=generator)
        x = x + 0.01 * torch.randn((self.n, 1, 4, 4), generator=generator)

        class Split:
            def __len__(self) -> int:
                return len(x)

            def __getitem__(self, i: int) -> tuple[Any, int]:
                return x[i], int(y[i])

        info = DatasetInfo(name="blobs", classes=("dark", "bright"), shape=(1, 4, 4))
        return DatasetBundle(info=info, test=Split(), evaluation=range(self.n), fingerprint=f"blobs-{self.n}")


def _mean_module(sigma: float):
    from torch import nn

    from robustbench_lite import randn_like

    class Module(nn.Module):
        def forward(self, x):
            z = (x.flatten(1).mean(1, keepdim=True) - 0.5) * 100
            if sigma:
                z = z + sigma * randn_like(z)
            return (z * z.new_tensor([-1.0, 1.0])).contiguous()

    return Module()


@dataclass(frozen=True, kw_only=True)
class Mean:
    """scale changes nothing but the key."""

    scale: float = 1.0

    def __call__(self, info, weights):
        return _mean_module(0.0)


@dataclass(frozen=True, kw_only=True)
class NoisyMean:
    sigma: float = 2.0

    def __call__(self, info, weights):
        return _mean_module(self.sigma)


@dataclass(frozen=True, kw_only=True)
class NeedsTraining:
    def __call__(self, info, weights):
        return _mean_module(0.0)


@dataclass(frozen=True, kw_only=True)
class Guessing:
    def __call__(self, info, weights):
        from robustbench_lite.testing import Constant

        return Constant(info.num_classes)


@dataclass(frozen=True, kw_only=True)
class NotAModule:
    def __call__(self, info, weights):
        return "a module"


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Moves every pixel by eps against the label: optimal here."""

    def __call__(self, target, x, y, threat, rng):
        x_adv = threat.project(x, x - threat.eps * (2.0 * y.view(-1, 1, 1, 1) - 1))
        target.labels(x_adv)
        return x_adv


@dataclass(frozen=True, kw_only=True)
class Minimal:
    """The exact minimal shift, and a little more."""

    def __call__(self, target, x, y, threat, rng):
        gap = x.mean((1, 2, 3), keepdim=True) - 0.5
        return (x - gap * 1.001).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Slow:
    """As shift with random noise first, and ``seconds`` (or $TOY_SECONDS) of sleep per shard; a line in ``log`` for each."""

    seconds: float = 0.2
    log: str = ""

    def __call__(self, target, x, y, threat, rng):
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()} {int(rng.integers(None, (), 0, 1 << 30)[0])}\n")
        noise = rng.uniform(None, x.shape[1:], low=-0.01, high=0.01)
        time.sleep(float(os.environ.get("TOY_SECONDS", self.seconds)))
        return threat.project(x, x + noise - threat.eps * (2.0 * y.view(-1, 1, 1, 1) - 1))


@dataclass(frozen=True, kw_only=True)
class Raises:
    """Beats the first half, then raises."""

    def __call__(self, target, x, y, threat, rng):
        x_adv = threat.project(x, x - threat.eps * (2.0 * y.view(-1, 1, 1, 1) - 1))
        half = y[: len(y) // 2]
        import torch

        target.labels(x_adv[: len(half)], index=torch.arange(len(half)))
        raise ValueError("half way through")


@dataclass(frozen=True, kw_only=True)
class Segfaults:
    def __call__(self, target, x, y, threat, rng):
        ctypes.string_at(0)


@dataclass(frozen=True, kw_only=True)
class Exits:
    def __call__(self, target, x, y, threat, rng):
        os._exit(7)


@dataclass(frozen=True, kw_only=True)
class Orphans:
    """Forks a child, which inherits the worker's pipe and sleeps, and dies."""

    def __call__(self, target, x, y, threat, rng):
        if os.fork() == 0:
            time.sleep(60)
        os._exit(9)


@dataclass(frozen=True, kw_only=True)
class Hangs:
    def __call__(self, target, x, y, threat, rng):
        time.sleep(3600)


@dataclass(frozen=True, kw_only=True)
class Cheats:
    """Returns points far outside the ball."""

    def __call__(self, target, x, y, threat, rng):
        return 1.0 - x


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Declares access to scores and asks for gradients."""

    def __call__(self, target, x, y, threat, rng):
        from robustbench_lite import losses

        return target.loss_and_grad(x, losses.margin, y)[2]


@dataclass(frozen=True, kw_only=True)
class Prints:
    def __call__(self, target, x, y, threat, rng):
        print("text on standard output")
        return x
