"""Toy targets with known answers: what attacks, defenses and the core itself are tested on.

Each is a real ``nn.Module``: [0, 1] NCHW in, logits out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustbench_lite.deployed import Deployed
from robustbench_lite.ledger import Ledger
from robustbench_lite.member import members_of
from robustbench_lite.randomness import Randomness, randn_like
from robustbench_lite.target import Target, surrogate_targets
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robustbench_lite.resolve import ResolvedAttack


class Linear(nn.Module):
    """Logits W x + b over flattened images; with two classes the minimal perturbation has a closed form.

    weight: (K, D), bias: (K,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias

    @classmethod
    def binary(cls, shape: Sequence[int] = (3, 8, 8), seed: int = 0) -> Linear:
        """Two classes; the margin z_1 - z_0 is w.x + b with w drawn from N(0, 1) and the boundary through the grey image."""
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(int(torch.tensor(list(shape)).prod()), generator=generator)
        return cls(torch.stack([-w / 2, w / 2]), torch.tensor([w.sum() / 4, -w.sum() / 4]))


class Masked(nn.Module):
    """A staircase: the image is rounded down to ``levels`` grey values first, so that every gradient is exactly zero."""

    def __init__(self, base: nn.Module, levels: int = 8) -> None:
        super().__init__()
        self.base = base
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(torch.floor(x * self.levels) / self.levels)
        return logits


class CoinFlip(nn.Module):
    """A stochastic defense: adds N(0, sigma^2) to each logit, keyed by example when the core runs it."""

    def __init__(self, base: nn.Module, sigma: float = 1.0) -> None:
        super().__init__()
        self.base = base
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(x)
        return logits + self.sigma * randn_like(logits)


class Constant(nn.Module):
    """The same logits for every image, with zero gradients: nothing to beat."""

    def __init__(self, num_classes: int = 10, answer: int = 0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        logits = x.new_zeros((len(x), self.num_classes))
        logits[:, self.answer] = 1.0
        return logits + 0.0 * x.flatten(1).sum(1, keepdim=True)


class NotANumber(nn.Module):
    """Answers like its base on the images that it is given, and NaN everywhere else, with gradients of NaN."""

    def __init__(self, base: nn.Module, known: Tensor) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("known", known.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(x)
        same = torch.cdist(x.detach().flatten(1), self.get_buffer("known")).amin(1) == 0
        return logits * torch.where(same[:, None], 1.0, torch.nan)


def make_target(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat | str,
    *,
    access: str = "gradient",
    seed: int = 0,
    micro_batch: int | None = None,
    eot: int = 1,
    confirm: int = 0,
    stochastic: bool = False,
    differentiable: bool = True,
    rejects: bool = False,
    budget: int | None = None,
    goal: str = "fixed-budget",
    ids: Tensor | None = None,
    members: Sequence[ResolvedAttack] = (),
    surrogates: Sequence[nn.Module] = (),
) -> tuple[Target, Randomness]:
    """A target on ``model`` as the core would make it, and the random numbers that an attack would be given.

    x: (N, C, H, W) in [0, 1], y: (N,). ids (N,) number the examples for the random numbers: 0 to N - 1 where None. members:
    of an attack made of others (``composition.resolve_members``). surrogates: models of the same kind that it is crafted on.
    """
    with torch.no_grad():
        columns = model.eval()(x[:1]).shape[1]
    numbers = torch.arange(len(x), device=x.device) if ids is None else ids

    def deploy(module: nn.Module) -> Deployed:
        return Deployed(
            module,
            num_classes=columns - rejects,
            stochastic=stochastic,
            differentiable=differentiable,
            rejects=rejects,
            micro_batch=micro_batch,
        )

    limits = Threat.parse(threat) if isinstance(threat, str) else threat
    ledger = Ledger(x, y, limits, minimal=goal == "minimal-norm", rejects=rejects, budget=budget)
    target = Target(
        deploy(model),
        ledger,
        access=access,
        key=f"{seed}|defense",
        ids=numbers,
        eot=eot,
        confirm=confirm,
        members=members_of(members),
        surrogates=surrogate_targets([deploy(s) for s in surrogates], ledger, key=str(seed), ids=numbers, eot=eot),
    )
    return target, Randomness(f"{seed}|attack", numbers)
