"""What happens inside a defense: the inputs of its convolutions and linear layers.

Those are feature maps behind their activation, whatever the architecture. Of a map that is flattened, the map is meant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rbl_defenses.behind import Step
from robustbench_lite import DatasetInfo, UsageError


class Features:
    """Inputs of some layers of a defense.

    layers: how many, evenly spread over all but the first in the order in which they run; the last is always one of them.
    Raises UsageError where there are none.
    """

    def __init__(self, base: nn.Module, info: DatasetInfo, layers: int) -> None:
        kinds = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.Flatten)
        watched = [module for module in base.modules() if isinstance(module, kinds)]
        device = next((p.device for p in base.parameters()), torch.device("cpu"))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            _, seen = _watched(watched, torch.full((2, *info.shape), 0.5, device=device), base)
        flat = {seen[module].data_ptr() for module in seen if isinstance(module, nn.Flatten)}
        inner = [m for m in seen if isinstance(m, nn.Flatten) or seen[m].data_ptr() not in flat][1:]
        if not inner:
            raise UsageError(f"{type(base).__name__} has no convolutions or linear layers whose inputs could be looked at")
        count = min(layers, len(inner))
        self.modules = [inner[len(inner) - 1 - (len(inner) * k) // count] for k in reversed(range(count))]
        self.image = tuple(info.shape)
        self.shapes = [tuple(seen[module].shape[1:]) for module in self.modules]

    def __call__(self, x: Tensor, base: Step) -> tuple[Tensor, list[Tensor]]:
        """What ``base`` answers to images (n, C, H, W), and each layer's features (n, ...).

        Where the base looks at several copies of an image, the mean of their features.
        """
        logits, seen = _watched(self.modules, x, base)
        return logits, [_once(seen[module], len(x)) for module in self.modules]


def pooled(features: Tensor) -> Tensor:
    """The mean over positions of feature maps (n, channels, ...): (n, channels)."""
    return features.flatten(2).mean(2) if features.dim() > 2 else features


def _watched(modules: Sequence[nn.Module], x: Tensor, base: Step) -> tuple[Tensor, dict[nn.Module, Tensor]]:
    """What ``base`` answers, and what each module was given meanwhile, one call after the other, by first call."""
    seen: dict[nn.Module, list[Tensor]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.setdefault(module, []).append(inputs[0])

    hooks = [module.register_forward_pre_hook(note) for module in modules]
    try:
        answer = base(x)
    finally:
        for hook in hooks:
            hook.remove()
    return answer, {module: found[0] if len(found) == 1 else torch.cat(found) for module, found in seen.items()}


def _once(features: Tensor, n: int) -> Tensor:
    return features if len(features) == n else features.reshape(-1, n, *features.shape[1:]).mean(0)
