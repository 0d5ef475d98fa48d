"""Images on a device that is not there: everything is on the CPU, and who would mix devices on a GPU is found."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

Place = Literal["there", "cpu"]

# What ``device`` says of tensors that are there. Not cuda, whose name some code takes for leave to call the hardware.
DEVICE = torch.device("privateuseone", 0)
_CPU = torch.device("cpu")

_DEVICE_OF: Any = Tensor.device.__get__  # type: ignore[attr-defined]  # another object each time, but an equal one
_SET_DATA: Any = Tensor.data.__set__  # type: ignore[attr-defined]
_TO_NUMPY = (Tensor.numpy, Tensor.__array__)
_COPYING = (Tensor.to, Tensor.type_as, Tensor.cpu)
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__, Tensor.index_put, Tensor.index_put_, torch.index_put, torch.index_put_)
_FIRST_ALONE = (Tensor.copy_, Tensor.expand_as, Tensor.view_as, Tensor.reshape_as, Tensor.__deepcopy__)

_TORCH, _CORE = Path(torch.__file__).parent, Path(__file__).parents[1]


class MixedDevices(RuntimeError):
    """What a GPU would have refused, and where: file and line."""


class Elsewhere(TorchFunctionMode):
    """While it is entered, tensors that it has ``moved`` count as on ``DEVICE``, and so does what is made of them or for it.

    Raises MixedDevices, and keeps it as ``refused``, where an operation takes a tensor that is there and one that was made on
    the CPU; single numbers and indices may be. Of other tensors from before it was entered nothing is known: they go with both.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places: Any = WeakTensorKeyDictionary()
        self._outside = 0  # frames of the stack
        self.refused: MixedDevices | None = None

    def __enter__(self) -> Elsewhere:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._outside = len(traceback.extract_stack()) - 2  # this frame, and that of the with statement
        return self

    def moved(self, x: Tensor) -> Tensor:
        """A copy that is there."""
        return self._put(x.clone(), "there")

    def move(self, module: nn.Module) -> None:
        """Say of a module what ``module.to`` would do: parameters and buffers are there, other tensors stay on the CPU."""
        for part in module.modules():
            for kept in _tensors([value for name, value in vars(part).items() if name not in ("_parameters", "_buffers")]):
                self._put(kept, "cpu")
        for kept in (*module.parameters(), *module.buffers()):
            self._put(kept, "there")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        tensors = list(_tensors((args, kwargs)))
        if func == _DEVICE_OF:
            return _CPU if self._place(tensors[0]) == "cpu" else DEVICE
        if func in _TO_NUMPY and self._place(tensors[0]) == "there":
            self._refuse(f"{func.__name__}() of a tensor that is not on the CPU")
        if _name(func) == "_parse_to":  # of module.to, which goes on to move one tensor after the other
            return func(*args, **(kwargs or {}))
        if func == _SET_DATA:  # how module.to then moves a parameter
            self._put(args[0], self._place(args[1]))
            return func(*args)
        args, given, wanted = _on_the_cpu(func, args, dict(kwargs or {}))
        if func in _COPYING:
            if len(tensors) > 1:  # like another tensor
                wanted = self._place(tensors[1])
            return self._copied(func(*args, **given), args[0], "cpu" if func is Tensor.cpu else wanted)
        bound = self._bound(func, args, tensors)
        places = {self._place(each) for each in bound}
        if "there" in places and any(each.dim() and self._place(each) == "cpu" for each in bound):
            self._refuse(f"{_name(func)} of a tensor on the CPU and one on the device of the images")
        place = wanted or ("there" if "there" in places else None if None in places else "cpu")
        if place == "there" and isinstance(given.get("generator"), torch.Generator):
            self._refuse(f"{_name(func)} on the device of the images with a generator on the CPU")
        result = func(*args, **given)
        for made in _tensors(result):
            if made not in self._places:
                self._put(made, place)
        return result

    def _bound(self, func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> list[Tensor]:
        """Those that must be on one device: not those that lend their shape or are copied, nor indices on the CPU."""
        if func in _FIRST_ALONE:
            return [args[0]]
        if func in _INDEXING and self._place(args[0]) == "there":
            by_tensors = next(_tensors(args[1]), None) is not None
            return [args[0], *(_tensors(args[2:]) if by_tensors else ())]  # what a slice is set to is copied
        return tensors

    def _copied(self, result: Tensor, source: Tensor, wanted: Place | None) -> Tensor:
        """What ``to`` returns: the same tensor where it need not go anywhere."""
        place = self._place(source)
        if wanted in (None, place):
            return result if result is source else self._put(result, place)
        return self._put(result.clone() if result is source else result, wanted)

    def _place(self, x: Tensor) -> Place | None:
        place: Place | None = self._places.get(x)
        return place

    def _put(self, x: Tensor, place: Place | None) -> Tensor:
        if place is not None:
            self._places[x] = place
        return x

    def _refuse(self, what: str) -> None:
        self.refused = self.refused or MixedDevices(what + self._where())
        raise self.refused

    def _where(self) -> str:
        """``, at my_attack.py:31``: the innermost line of a plugin, or of the core where no plugin is that far in."""
        frames = [f for f in traceback.extract_stack()[self._outside :] if not Path(f.filename).is_relative_to(_TORCH)]
        inner = [f for f in reversed(frames) if f.filename != __file__]
        chosen = next((f for f in inner if not Path(f.filename).is_relative_to(_CORE)), inner[0] if inner else None)
        return "" if chosen is None else f", at {Path(chosen.filename).name}:{chosen.lineno}"


def _tensors(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _on_the_cpu(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], Place | None]:
    """The arguments with the CPU for ``DEVICE``, and which of the two they name; None for neither."""
    wanted: Place | None = None

    def replaced(value: Any) -> Any:
        nonlocal wanted
        device = torch.device(value)
        wanted = "there" if device == DEVICE else "cpu" if device == _CPU else None
        return _CPU if wanted else value

    if kwargs.get("device") is not None:
        kwargs["device"] = replaced(kwargs["device"])
    names = (torch.device, str) if func is Tensor.to else torch.device
    return tuple(replaced(value) if isinstance(value, names) else value for value in args), kwargs, wanted


def _name(func: Any) -> str:
    return str(getattr(func, "__name__", func))
