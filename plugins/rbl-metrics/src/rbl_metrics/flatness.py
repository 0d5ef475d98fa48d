"""How much the robust loss rises when weights move a little (Stutz et al., ICCV 2021, arXiv:2104.04448)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from rbl_metrics.activations import batches
from rbl_metrics.ascent import STEP, cross_entropies, sign_ascent
from rbl_metrics.checks import average
from robustbench_lite import MeasuredModel, MetricValue, Threat

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Flatness:
    """What both flatnesses have in common.

    examples: the first so many; batch: how many see the same perturbation of the weights. xi: radius, relative to the norm of
    each tensor of weights; those of batch normalisation are left alone, and so are its statistics. clean: of the clean loss,
    without an attack. steps, step (in units of eps): of the inner attack, sign ascent on the cross-entropy. restarts: of the
    reference, which is the largest loss of an example over them.
    """

    examples: Annotated[int, Field(ge=1)] = 1000
    batch: Annotated[int, Field(ge=1)] = 128
    clean: bool = False
    steps: Annotated[int, Field(ge=1)] = 20
    step: Annotated[float, Field(gt=0)] = STEP
    restarts: Annotated[int, Field(ge=1)] = 10

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> MetricValue:
        """Mean over examples and draws of the loss with perturbed weights, minus the reference."""
        return average(arrays["perturbed"].mean(1) - arrays["reference"])

    def _batches(self, model: MeasuredModel, eps: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows of each batch, the starts of the first restart, and the reference loss."""
        for rows in batches(len(model.x), model.device, self.batch):
            yield rows, self._starts(model, rows, eps, 0), self._reference(model, rows, eps)

    def _starts(self, model: MeasuredModel, rows: Tensor, eps: float, restart: int) -> Tensor:
        return model.rng.uniform(rows, model.x.shape[1:], low=-eps, high=eps, draw=restart).to(model.device)

    def _reference(self, model: MeasuredModel, rows: Tensor, eps: float) -> Tensor:
        losses = [
            self._loss(model.module, model, rows, self._starts(model, rows, eps, restart), eps)
            for restart in range(1 if self.clean else self.restarts)
        ]
        return torch.stack(losses).amax(0)

    def _loss(self, module: nn.Module, model: MeasuredModel, rows: Tensor, start: Tensor, eps: float) -> Tensor:
        """(n,) loss of a batch, with an attack unless ``clean``."""
        x, y = model.x[rows], model.y[rows]
        if self.clean:
            with torch.no_grad():
                return cross_entropies(module(x), y)
        return sign_ascent(module, x, y, start, eps=eps, steps=self.steps, step=self.step)[1]


@dataclass(frozen=True, kw_only=True)
class AverageFlatness(Flatness):
    """Mean rise of the robust cross-entropy over random perturbations of the weights, in nats; small is flat.

    draws: perturbations per batch, each attacked with one restart. sampling: on the ``sphere`` of radius xi, as the authors'
    program does, or uniformly in the ``ball``, as the paper says.
    """

    xi: Annotated[float, Field(ge=0)] = 0.5
    draws: Annotated[int, Field(ge=1)] = 10
    sampling: Literal["sphere", "ball"] = "sphere"

    def measure(self, model: MeasuredModel, threat: Threat) -> dict[str, np.ndarray]:
        """Per example: the reference loss (n,), and that of each draw (n, draws)."""
        module = copy.deepcopy(model.module)
        weights = perturbable(module)
        kept = {name: value.detach().clone() for name, value in weights.items()}
        references, perturbed = [], []
        for rows, start, reference in self._batches(model, threat.eps):
            losses = []
            for draw in range(self.draws):
                seed = model.rng.seed_for("weights", int(model.ids[rows[0]]), draw)
                directions = random_directions(kept, seed, ball=self.sampling == "ball")
                set_weights(weights, {name: kept[name] + self.xi * directions[name] for name in kept})
                losses.append(self._loss(module, model, rows, start, threat.eps))
            set_weights(weights, kept)
            references.append(reference)
            perturbed.append(torch.stack(losses, 1))
        return {"reference": torch.cat(references).cpu().numpy(), "perturbed": torch.cat(perturbed).cpu().numpy()}


@dataclass(frozen=True, kw_only=True)
class WorstFlatness(Flatness):
    """Largest rise of the robust cross-entropy over perturbations of the weights that were found by ascent, in nats.

    Images and weights ascend together, weights by ``lr`` along the normalised gradient of each tensor, relative to its norm.
    Of each batch the best iterate of the best of ``weight_restarts`` counts, by the mean over the batch: a lower bound.
    """

    xi: Annotated[float, Field(ge=0)] = 0.003
    lr: Annotated[float, Field(gt=0)] = 0.001
    weight_restarts: Annotated[int, Field(ge=1)] = 10

    def measure(self, model: MeasuredModel, threat: Threat) -> dict[str, np.ndarray]:
        """Per example: the reference loss (n,), and that with the worst weights that were found (n, 1)."""
        module = copy.deepcopy(model.module).requires_grad_(True)
        weights = perturbable(module)
        kept = {name: value.detach().clone() for name, value in weights.items()}
        references, perturbed = [], []
        for rows, _, reference in self._batches(model, threat.eps):
            found = []
            for restart in range(self.weight_restarts):
                seed = model.rng.seed_for("weights", int(model.ids[rows[0]]), restart)
                start = random_directions(kept, seed, ball=True)
                begin = {name: self.xi * direction for name, direction in start.items()}
                found.append(self._ascend(module, model, rows, kept, begin, restart, threat.eps))
            set_weights(weights, kept)
            references.append(reference)
            perturbed.append(max(found, key=lambda losses: float(losses.mean())))
        return {
            "reference": torch.cat(references).cpu().numpy(),
            "perturbed": torch.cat(perturbed)[:, None].cpu().numpy(),
        }

    def _ascend(
        self,
        module: nn.Module,
        model: MeasuredModel,
        rows: Tensor,
        kept: Tensors,
        nu: Tensors,
        restart: int,
        eps: float,
    ) -> Tensor:
        """(n,) losses of the iterate with the largest mean. nu: where the weights' perturbation starts."""
        weights = perturbable(module)
        x, y = model.x[rows], model.y[rows]
        low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
        point = x if self.clean else (x + self._starts(model, rows, eps, restart)).clamp(low, high)
        best: Tensor | None = None
        for number in range(self.steps + 1):
            set_weights(weights, {name: kept[name] + nu[name] for name in kept})
            leaf = point.detach().requires_grad_()
            losses = cross_entropies(module(leaf), y)
            if best is None or losses.mean() > best.mean():
                best = losses.detach()
            if number == self.steps:
                break
            of_point, *of_weights = torch.autograd.grad(losses.mean(), [leaf, *weights.values()], allow_unused=True)
            if not self.clean and of_point is not None:
                point = (leaf.detach() + self.step * eps * of_point.sign()).clamp(low, high)
            for (name, value), grad in zip(kept.items(), of_weights, strict=True):
                if grad is not None and grad.norm() > 0:
                    nu[name] = nu[name] + self.lr * value.norm() * grad / grad.norm()
                    nu[name] = nu[name] * min(1.0, float(self.xi * value.norm() / nu[name].norm().clamp(min=1e-30)))
        if best is None:
            raise ValueError("steps must be at least 0")
        return best


def perturbable(module: nn.Module) -> Tensors:
    """The parameters of a module by name, but for those of batch normalisation."""
    normal = {
        id(parameter)
        for each in module.modules()
        if isinstance(each, nn.modules.batchnorm._BatchNorm)
        for parameter in each.parameters(recurse=False)
    }
    return {name: parameter for name, parameter in module.named_parameters() if id(parameter) not in normal}


def random_directions(weights: Mapping[str, Tensor], seed: int, *, ball: bool = False) -> Tensors:
    """A random direction for each tensor of the norm of that tensor; in the ball, of a length that makes points uniform."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in weights.items():
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        length = float(torch.rand((), generator=generator, dtype=torch.float64)) ** (1 / max(1, value.numel())) if ball else 1.0
        scaled = direction * (length * float(value.double().norm()) / max(float(direction.norm()), 1e-30))
        found[name] = scaled.to(value.device, value.dtype)
    return found


def set_weights(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into parameters in place."""
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
