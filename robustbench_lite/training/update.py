"""The optimiser's side of a step: backward, clipping, descent; and the running average of weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustbench_lite.errors import RblError, UsageError
from robustbench_lite.training.recipe import Recipe, schedule

Precision = Literal["float32", "bf16", "fp16"]
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Update:
    """Called with a loss to evaluate, it takes one descent step on it.

    Parameters and their gradients stay float32; with ``bf16`` and ``fp16``, for GPUs only, the loss is evaluated under
    autocast, fp16 with loss scaling.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], recipe: Recipe, device: str, precision: Precision = "float32") -> None:
        if precision != "float32" and not device.startswith("cuda"):
            raise UsageError(f"precision {precision} is for GPUs, not for {device}", hint="--precision float32")
        self.recipe, self._device, self._precision = recipe, torch.device(device).type, precision
        settings: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        given = [{"lr_scale": 1.0} | group for group in groups]
        self.optimiser: torch.optim.Optimizer
        if recipe.optimiser == "sgd":
            self.optimiser = torch.optim.SGD(
                given, momentum=recipe.momentum, nesterov=recipe.nesterov and recipe.momentum > 0, **settings
            )
        else:
            self.optimiser = torch.optim.Adam(given, **settings)
        self.scaler = torch.amp.GradScaler(self._device, enabled=precision == "fp16")
        self.epoch = 0
        self._losses: list[float] = []

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is optimised."""
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def at(self, epoch: float) -> None:
        """Set the learning rates of a moment."""
        self.epoch = int(epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = schedule(self.recipe, epoch) * group["lr_scale"]

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision in which losses are evaluated."""
        return torch.autocast(self._device, _TYPES.get(self._precision), enabled=self._precision != "float32")

    def __call__(self, loss: Callable[[], Tensor]) -> Tensor:
        """Evaluate the loss, and descend; returns the loss, detached. Raises RblError where it is not finite."""
        value = self._evaluated(loss)
        self.optimiser.zero_grad()
        self.scaler.scale(value).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._losses.append(value.item())
        return value.detach()

    def gradients(self, loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of a loss without a step: to look before one leaps. Zero for what the loss does not depend on."""
        found = torch.autograd.grad(self._evaluated(loss), parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, and that of the loss scaling."""
        return {"optimiser": self.optimiser.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with another's state."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])

    def mean_loss(self) -> float:
        """The mean of the losses since this was last asked."""
        losses, self._losses = self._losses, []
        return sum(losses) / max(1, len(losses))

    def _evaluated(self, loss: Callable[[], Tensor]) -> Tensor:
        with self.autocast():
            value = loss()
        if not bool(value.isfinite()):
            raise RblError(f"the loss is {value.item()} in epoch {self.epoch + 1}", hint="lower lr, or raise ramp")
        return value


class Average:
    """A running average of a module's parameters and floating-point buffers: see ``Recipe.ema``."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self._decay, self.updates = copy.deepcopy(module), decay, 0
        self.module.requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """The average, and how many updates are in it."""
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with another's state."""
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Let the module's present weights in."""
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        here, there = (chain(m.parameters(), m.buffers()) for m in (self.module, module))
        for mine, new in zip(here, there, strict=True):
            if mine.is_floating_point():
                mine.lerp_(new, 1 - decay)
            else:
                mine.copy_(new)
