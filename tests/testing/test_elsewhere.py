"""Tensors that say they are on another device are refused where torch refuses those of a GPU, and compute as ever."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from robustbench_lite.testing.elsewhere import DEVICE, Elsewhere, MixedDevices

Operation = Callable[[Tensor, Tensor], object]

# x (3, 4) is on the other device and c (3, 4) on the CPU.
OPERATIONS: dict[str, Operation] = {
    "add": lambda x, c: x + c,
    "add to the CPU's": lambda x, c: c + x,
    "add in place": lambda x, c: c.clone().add_(x),
    "where": lambda x, c: torch.where(x > 0, x, c),
    "clamp": lambda x, c: x.clamp(c - 1, c),
    "minimum": lambda x, c: torch.minimum(x, c),
    "matmul": lambda x, c: x @ c.T,
    "cdist": lambda x, c: torch.cdist(x, c),
    "cat": lambda x, c: torch.cat([x, c]),
    "stack": lambda x, c: torch.stack([x, c]),
    "index_select": lambda x, c: x.index_select(0, torch.arange(2)),
    "index_select there": lambda x, c: x.index_select(0, torch.arange(2, device=x.device)),
    "gather": lambda x, c: x.gather(1, torch.zeros((3, 1), dtype=torch.int64)),
    "scatter": lambda x, c: x.scatter(1, torch.zeros((3, 1), dtype=torch.int64), 0.0),
    "masked_fill": lambda x, c: x.masked_fill(c > 0, 0.0),
    "a number of the CPU": lambda x, c: x + c.sum(),
    "a number": lambda x, c: x * torch.tensor(2.0),
    "its number": lambda x, c: c + x.sum(),
    "to the device": lambda x, c: x + c.to(x.device),
    "to the device by name": lambda x, c: x + c.to(device=x.device, dtype=torch.float64),
    "to the other's": lambda x, c: x + c.to(x),
    "to the CPU": lambda x, c: x.cpu() + c,
    "to the CPU by name": lambda x, c: x.to("cpu") + c,
    "to another type": lambda x, c: x.to(torch.float64) + c,
    "type_as": lambda x, c: x + c.type_as(x),
    "expand_as": lambda x, c: x.expand_as(c) + x,
    "view_as": lambda x, c: x.view_as(c) + x,
    "zeros_like": lambda x, c: torch.zeros_like(c) + x,
    "new_zeros": lambda x, c: x.new_zeros((3, 4)) + x,
    "made there": lambda x, c: torch.arange(4, device=x.device) + x,
    "made nowhere": lambda x, c: torch.arange(4) + x,
    "made like it": lambda x, c: torch.zeros_like(x).flatten(1).amax(1) + x.detach().sum(1),
}


def refused(operation: Operation) -> bool:
    elsewhere = Elsewhere()
    x = elsewhere.moved(torch.rand(3, 4))
    with elsewhere, suppress(MixedDevices):
        operation(x, torch.rand(3, 4))
    return elsewhere.refused is not None


@pytest.mark.parametrize("name", OPERATIONS)
def test_refuses_what_torch_refuses_of_a_gpu(name: str) -> None:
    """Torch's own rules are those of its tensors without values, which may be on a GPU that is not there."""
    operation, said = OPERATIONS[name], ""
    with FakeTensorMode():
        x, c = torch.empty((3, 4), device="cuda"), torch.empty((3, 4))
        try:
            operation(x, c)
        except RuntimeError as error:
            said = str(error)
    assert refused(operation) == ("same device" in said), said


# Where tensors without values have no answer; of a GPU it is known.
ALLOWED: dict[str, Operation] = {
    "an index of the CPU": lambda x, c: x[torch.arange(2)] + x[:2],
    "a mask of the CPU": lambda x, c: x[c[:, 0] > 2],
    "copy": lambda x, c: x.clone().copy_(c),
    "set a slice": lambda x, c: x.__setitem__(slice(0, 2), c[:2]),
    "set by an index of the CPU": lambda x, c: x.__setitem__(torch.arange(2), 2 * x[:2]),
    "numbers of it": lambda x, c: (float(x.sum()), x.tolist(), len(x), bool((x > 0).all())),
    "numpy by the CPU": lambda x, c: torch.from_numpy(x.cpu().numpy()) + c,
    "numpy and back": lambda x, c: torch.from_numpy(np.asarray(x.cpu())).to(x.device) + x,
}
FORBIDDEN: dict[str, Operation] = {
    "an index of the device": lambda x, c: c[(x[:, 0] * 0).long()],
    "set by an index, of the CPU": lambda x, c: x.__setitem__(torch.arange(2, device=x.device), c[:2]),
    "equal": lambda x, c: torch.equal(x, c),
    "numpy": lambda x, c: x.numpy(),
    "an array": lambda x, c: np.asarray(x),
    "a generator of the CPU": lambda x, c: torch.rand((3, 4), device=x.device, generator=torch.Generator()),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_lets_through_what_a_gpu_does(name: str) -> None:
    assert not refused(ALLOWED[name])


@pytest.mark.parametrize("name", FORBIDDEN)
def test_refuses_what_a_gpu_does_not(name: str) -> None:
    assert refused(FORBIDDEN[name])


def test_says_where_things_are() -> None:
    elsewhere = Elsewhere()
    x = elsewhere.moved(torch.rand(3))
    with elsewhere:
        assert x.device == (x + 1).device == torch.zeros(2, device=x.device).device == DEVICE
        assert torch.zeros(2).device == x.cpu().device == torch.device("cpu")
    assert x.device == torch.device("cpu")  # it is over


def test_a_copy_on_the_cpu_leaves_the_tensor_where_it_is() -> None:
    elsewhere = Elsewhere()
    x = elsewhere.moved(torch.rand(3))
    with elsewhere:
        copied, same = x.cpu(), x.to(x.device)
        copied.zero_()
        assert same is x
        assert x.device == DEVICE
    assert bool((x > 0).any())


def test_says_what_was_mixed_and_in_which_line() -> None:
    elsewhere = Elsewhere()
    x = elsewhere.moved(torch.rand(3))
    with elsewhere, pytest.raises(MixedDevices) as refusal:
        x.index_select(0, torch.arange(2))
    said, line = "index_select of a tensor on the CPU and one on the device of the images", refusal.tb.tb_lineno
    assert str(refusal.value) == f"{said}, at {Path(__file__).name}:{line}"


def test_a_network_computes_what_it_computes() -> None:
    """Of weights nothing is known: they go with the images. Gradients are where the images are."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    x, elsewhere = torch.rand(2, 1, 8, 8), Elsewhere()
    expected = torch.autograd.grad(network(leaf := x.clone().requires_grad_()).amax(), leaf)[0]
    moved = elsewhere.moved(x)
    with elsewhere:
        leaf = moved.detach().requires_grad_()
        logits = network(leaf)
        (gradient,) = torch.autograd.grad(logits.amax(), leaf)
        assert logits.device == gradient.device == DEVICE
    assert torch.equal(gradient, expected)


def test_a_module_takes_its_parameters_and_buffers_along_and_nothing_else() -> None:
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("taken", torch.ones(3))
            self.left = [torch.ones(3)]

    module, elsewhere = Shift(), Elsewhere()
    elsewhere.move(module)
    x = elsewhere.moved(torch.rand(2, 3))
    with elsewhere:
        assert (x + module.get_buffer("taken")).device == DEVICE
        with pytest.raises(MixedDevices):
            x + module.left[0]


def test_a_module_that_is_made_meanwhile_can_be_moved() -> None:
    elsewhere = Elsewhere()
    x = elsewhere.moved(torch.rand(2, 3))
    with elsewhere:
        layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
        with pytest.raises(MixedDevices):
            layer(x)
        assert layer.to(x.device)(x).device == DEVICE
