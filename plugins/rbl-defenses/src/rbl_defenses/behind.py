"""A base defense behind a transformation of its input: what most wrappers are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from robustbench_lite import DatasetInfo
from robustbench_lite.training import Around

Step = Callable[[Tensor], Tensor]


def through(base: nn.Module) -> Step:
    """A defense with a gradient to follow: its surrogate, where it has one."""
    found: Step = getattr(base, "surrogate", base)
    return found


class Behind(nn.Module):
    """The base defense on ``transform(x)``.

    smooth: the same values with a gradient to follow, for a transform that autograd gives none for; None where it does.
    ``surrogate`` goes that way, and through the surrogate of the base.
    """

    def __init__(self, base: nn.Module, transform: Step, smooth: Step | None = None) -> None:
        super().__init__()
        self.base = base
        self._transform = transform
        self._smooth = smooth or transform

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(self._transform(x))
        return logits

    def surrogate(self, x: Tensor) -> Tensor:
        """The same logits, with a gradient to follow."""
        return through(self.base)(self._smooth(x))


class TrainedBehind(Around, ABC):
    """Another method, whose network is behind a wrapper from the start: in training, inner attacks included, and in use."""

    @abstractmethod
    def wrapper(self) -> Callable[[DatasetInfo, nn.Module], nn.Module]:
        """The wrapper with this one's parameters. Raises ValueError for those that it refuses."""

    def __post_init__(self) -> None:
        self.wrapper()

    def architecture(self, info: DatasetInfo) -> nn.Module:
        return self.wrapper()(info, super().architecture(info))


class Through(nn.Module):
    """A defense as its surrogate, for code that wants a module with a gradient."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return through(self.base)(x)
