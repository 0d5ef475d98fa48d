"""Layers of a network, whatever its architecture, put inside modules that do something more."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from robustbench_lite import UsageError


class Wrapped(nn.Module):
    """A module around another one, ``wrapped``."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped


def wrap(
    model: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...], make: Callable[[nn.Module], nn.Module]
) -> None:
    """Put ``make(layer)`` in the place of every layer of some kinds inside a model."""
    for name, child in model.named_children():
        if isinstance(child, kinds):
            setattr(model, name, make(child))
        else:
            wrap(child, kinds, make)


def plain_convolutions(model: nn.Module, whose: str) -> list[nn.Conv2d]:
    """All convolutions of a model. Raises UsageError where one is inside a module that does more: its noise, say, is on the
    filters as they are there. whose: the model's method, for the error.
    """
    if any(isinstance(module, Wrapped) and isinstance(module.wrapped, nn.Conv2d) for module in model.modules()):
        raise UsageError(f"{whose} has changed its convolutions already", hint="name a method with plain ones, such as trades")
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def plain_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """How each entry of a state is called in the model without ``Wrapped`` layers; what the wrappers themselves own keeps a
    name that model does not have.
    """
    return {name: name.replace("wrapped.", "") for name in state}
