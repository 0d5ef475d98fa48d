"""Defenses that are fitted once to a trained base: detectors and their thresholds, purifiers, calibrations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_lite.data import DatasetBundle, DatasetInfo
from robustbench_lite.errors import PluginError
from robustbench_lite.training.recipe import Context, Recipe, Run
from robustbench_lite.training.result import TrainingResult
from robustbench_lite.training.split import Split, training_split
from robustbench_lite.training.watch import accuracy
from robustbench_lite.weights import load_state


class FittedDefense(ABC):
    """Base of defenses that are fitted: subclass it as ``@dataclass(frozen=True, kw_only=True)``, declare ``kind="fitted"``.

    A field ``base: str`` names the defense that it wraps, as a wrapper's does. Only what ``fit`` made is kept as its weights,
    which belong to the base's: they are refused in front of other ones.
    """

    @abstractmethod
    def architecture(self, info: DatasetInfo, base: nn.Module) -> nn.Module:
        """The module around the base, with parameters and buffers that wait for ``fit``."""

    @abstractmethod
    def fit(self, module: nn.Module, context: Context) -> Mapping[str, float]:
        """Fill the module's parameters and buffers in place; returns figures for the model card.

        The module is in evaluation mode and on the device of ``context.examples(n)``, the first n training examples, and
        ``context.held_out``, examples that a threshold may be set on. Draw from torch's global generators.
        """

    def __call__(self, info: DatasetInfo, base: nn.Module, weights: Path | None) -> nn.Module:
        """Build the module around a base and load what was fitted, where given; in evaluation mode."""
        module = self.architecture(info, base)
        if weights is not None:
            state, own = load_state(weights), own_state(module, base)
            if state.keys() != own.keys():
                differing = ", ".join(sorted(state.keys() ^ own.keys()))
                raise PluginError(f"the weights in {weights} do not fit {type(self).__name__}: {differing}")
            try:
                module.load_state_dict(state, strict=False)
            except RuntimeError as error:
                said = str(error).splitlines()[-1].strip()
                raise PluginError(f"the weights in {weights} do not fit {type(self).__name__}: {said}") from None
        return module.eval()


def own_state(module: nn.Module, base: nn.Module) -> dict[str, Tensor]:
    """The state of a module without that of the base inside it."""
    of_base = {id(value) for value in base.state_dict(keep_vars=True).values()}
    return {name: value for name, value in module.state_dict(keep_vars=True).items() if id(value) not in of_base}


def fit(
    defense: FittedDefense, bundle: DatasetBundle, base: nn.Module, *, seed: int = 0, device: str = "cpu"
) -> tuple[TrainingResult, dict[str, Any]]:
    """Fit a defense around a base; returns the result, and the state to keep.

    Raises MissingData where the data set has no training split, or one of fewer than ten examples.
    """
    training_split(bundle)
    with torch.random.fork_rng(devices=[torch.device(device)] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        base = base.to(device).eval().requires_grad_(False)
        module = defense.architecture(bundle.info, base).to(device).eval()
        split = Split(bundle, device)
        context = Context(0.0, Recipe(epochs=1), bundle.info, run=Run(None, None, split.examples, split.held_out))
        figures = dict(defense.fit(module, context))
        module.eval()
        history = [{"epoch": 1, **figures, "clean": accuracy(module, *split.held_out)}]
    result = TrainingResult(module, None, len(split.held_out[1]), history, 1)
    return result, {name: value.detach() for name, value in own_state(module, base).items()}
