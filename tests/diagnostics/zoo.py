"""Defenses with one planted defect each: real small models on scikit-learn's digits, and what must be said of each.

Most wrap the shipped ``standard``; those whose defect comes from training are trained here, in seconds.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lite import randn_like
from robustbench_lite.data import fetch
from robustbench_lite.deployed import Deployed
from robustbench_lite.diagnostics.subject import Subject
from robustbench_lite.registry import Registry, load
from robustbench_lite.resolve import ResolvedDataset, resolve_dataset, resolve_defense
from robustbench_lite.runner import load_examples
from robustbench_lite.threat import Threat

THREAT = "linf:0.15"
# Radius of the single steps that the overfitted model is trained on.
TOO_LONG = 0.4
PROTOCOL = {"name": "quick", "version": 1, "eot": 8, "eval_draws": 16, "budget": None}


@cache
def registry() -> Registry:
    return load()


@cache
def digits() -> ResolvedDataset:
    return resolve_dataset(registry(), "digits", Path())


@cache
def _shipped(name: str) -> nn.Module:
    return resolve_defense(registry(), name, digits().info).build()


def shipped(name: str) -> nn.Module:
    """A defense of rbl-defenses with its shipped weights."""
    return copy.deepcopy(_shipped(name))


def subject(
    module: nn.Module,
    *,
    n: int = 32,
    threat: str = THREAT,
    stochastic: bool = False,
    differentiable: bool = True,
    rejects: bool = False,
) -> Subject:
    """The module as a defense for digits, ready to be looked at."""
    ids = digits().subset(n)
    x, y = load_examples(digits(), ids)
    deployed = Deployed(module, num_classes=10, stochastic=stochastic, differentiable=differentiable, rejects=rejects)
    declared = {"stochastic": stochastic, "differentiable": differentiable, "rejects": rejects, "label": "zoo"}
    declared |= {"surrogate": not differentiable and hasattr(module, "surrogate")}
    spec: dict[str, Any] = {"protocol": PROTOCOL, "dataset": {"label": "digits"}, "defense": declared, "seed": 0}
    return Subject(
        deployed,
        x,
        y,
        torch.tensor(ids),
        spec=spec,
        info=digits().info,
        registry=registry(),
        threat=Threat.parse(threat),
        craft=lambda attack: [Deployed(surrogate.build(), num_classes=10) for surrogate in attack.surrogates],
    )


# ----------------------------------------------------------------------------------------------- wrapped around a base


class Wrapped(nn.Module):
    """A base, and functions before and after it."""

    def __init__(
        self,
        base: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.base = base
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.base(self.before(x)))


def scaled(factor: float) -> nn.Module:
    return Wrapped(shipped("standard"), after=lambda z: factor * z)


def three_levels(x: Tensor) -> Tensor:
    return (2 * x).round() / 2


def quantised() -> nn.Module:
    return Wrapped(shipped("standard"), before=three_levels)


class Straight(Wrapped):
    """Something before the base, declared: with a surrogate that passes the gradient straight through."""

    def surrogate(self, x: Tensor) -> Tensor:
        return self.base(x + (self.before(x) - x).detach())


def straight() -> nn.Module:
    return Straight(shipped("standard"), before=three_levels)


def noisy(sigma: float) -> nn.Module:
    return Wrapped(shipped("standard"), before=lambda x: x + sigma * randn_like(x))


class NoBackward(nn.Module):
    """The base behind a function whose gradient cannot be computed."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(_Refuses.apply(x))


class _Refuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise RuntimeError("no gradient for you")


class Refusing(nn.Module):
    """The base, and the answer "I do not know" wherever no class is sure."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        logits = self.base(x)
        return torch.cat([logits, torch.full_like(logits[:, :1], 3.0)], 1)


def resized(x: Tensor) -> Tensor:
    size = random.choice((6, 7, 9, 10))
    return F.interpolate(F.interpolate(x, size=size, mode="bilinear"), size=8, mode="bilinear")


class Counting(Wrapped):
    """Answers a little differently with every image that it has seen."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.base(x) + 1e-9 * self.seen


class Optimising(Wrapped):
    """Moves the image to where its best class is more certain, by autograd inside the forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.base(leaf).amax(1).sum(), leaf)
        return self.base(x + 0.02 * gradient.sign())


class Untidy(nn.Module):
    """Batch norm left in training mode, whatever ``eval()`` says; ``tracks``: and goes on tracking its statistics."""

    def __init__(self, base: nn.Module, tracks: bool) -> None:
        super().__init__()
        self.base = base
        for part in base.modules():
            if isinstance(part, nn.BatchNorm2d) and not tracks:
                part.track_running_stats, part.running_mean, part.running_var = False, None, None

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(mode=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x)


class BatchStatistics(nn.Module):
    """Normalises each image by the mean of the batch, in evaluation mode as well."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base((x - 0.2 * (x.mean() - 0.3)).clamp(0, 1))


# ------------------------------------------------------------------------------------------------------------- trained


class KWTA(nn.Module):
    """k winners take all (Xiao et al., 2020, arXiv:1905.10510): the largest share of a layer's values, the others zero."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, int(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, torch.zeros_like(flat)).view_as(x)


def network(activation: Callable[[], nn.Module] = nn.ReLU, width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        activation(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        activation(),
        nn.Flatten(),
        nn.Linear(32 * width, 64),
        activation(),
        nn.Linear(64, 10),
    )


def trained(module: nn.Module, *, epochs: int = 15, lr: float = 2e-3, eps: float = 0.0, scale: float = 1.0) -> nn.Module:
    """Fit by Adam. eps: take one signed gradient step from the clean image first. scale: of the inputs."""
    bundle = digits().bundle
    x, y = fetch(bundle.train, range(len(bundle.train)))
    optimiser = torch.optim.Adam(module.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(0)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            images, labels = x[rows], y[rows]
            if eps:
                leaf = images.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(module(leaf), labels), leaf)
                images = (images + eps * gradient.sign()).clamp(0, 1)
            optimiser.zero_grad()
            F.cross_entropy(module(scale * images), labels).backward()
            optimiser.step()
    return module.eval()


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


@cache
def overfitted() -> nn.Module:
    """Trained on single steps that are too long, until they no longer stand for the worst point."""
    return seeded(lambda: trained(network(), epochs=40, eps=TOO_LONG))


def winners() -> nn.Module:
    return seeded(lambda: trained(network(lambda: KWTA(0.1))))


def plain() -> nn.Module:
    return seeded(lambda: trained(network()))


def bytes_wanted() -> nn.Module:
    """Trained on images from 0 to 255, and given such from 0 to 1."""
    return seeded(lambda: trained(network(), scale=255.0, lr=5e-4))
