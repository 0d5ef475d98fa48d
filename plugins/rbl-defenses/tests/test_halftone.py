"""Halftoning against a second implementation, and what every halftone keeps."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rbl_defenses.halftone import KERNELS, Halftone, HalftoneTraining, Method, density
from rbl_defenses.pgd_at import PGDTraining
from rbl_defenses.standard import Standard
from robustbench_lite import DatasetInfo, InvalidParameter, losses
from robustbench_lite.data import DatasetBundle
from robustbench_lite.parameters import build
from robustbench_lite.registry import load
from robustbench_lite.resolve import ResolvedDefense, inner_method, resolve
from robustbench_lite.training import craft

METHODS = get_args(Method)

# The matrices of the literature: the first row begins at the pixel itself.
MATRICES = {
    "floyd-steinberg": ([[0, 0, 7], [3, 5, 1]], 16, 1),
    "jarvis": ([[0, 0, 0, 7, 5], [3, 5, 7, 5, 3], [1, 3, 5, 3, 1]], 48, 2),
    "stucki": ([[0, 0, 0, 8, 4], [2, 4, 8, 4, 2], [1, 2, 4, 2, 1]], 42, 2),
}


def images(n: int = 3, channels: int = 2, height: int = 10, width: int = 7) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))


def by_hand(plane: np.ndarray, method: str, serpentine: bool) -> np.ndarray:
    """Error diffusion of one plane (H, W) with a matrix added to a padded array."""
    matrix, divisor, centre = MATRICES[method]
    shares = np.array(matrix) / divisor
    down, height, width = len(shares), *plane.shape
    rest = np.pad(plane.astype(np.float64), ((0, down), (2, 2)))
    for i in range(height):
        backwards = serpentine and i % 2 == 1
        for j in range(width - 1, -1, -1) if backwards else range(width):
            dot = float(rest[i, j + 2] >= 0.5)
            error, rest[i, j + 2] = rest[i, j + 2] - dot, dot
            left = j + 2 - centre
            rest[i : i + down, left : left + shares.shape[1]] += error * (shares[:, ::-1] if backwards else shares)
            rest[i + 1 :, :2] = rest[i + 1 :, width + 2 :] = rest[i, :2] = rest[i, width + 2 :] = 0
    return rest[:height, 2 : width + 2]


@pytest.mark.parametrize("serpentine", [False, True])
@pytest.mark.parametrize("method", list(KERNELS))
def test_error_diffusion_is_that_of_the_literature(method: Method, serpentine: bool) -> None:
    x = images()
    found = density(x.double(), method, serpentine, 1)
    for image, dots in zip(x, found, strict=True):
        for plane, pattern in zip(image, dots, strict=True):
            np.testing.assert_array_equal(pattern, by_hand(plane.numpy(), method, serpentine))


@pytest.mark.parametrize("method", list(KERNELS))
def test_all_of_the_error_is_shared_out(method: str) -> None:
    shares, kernel = KERNELS[method]
    assert sum(weight for _, _, weight in kernel) == shares


def test_ordered_dither_shows_seventeen_densities() -> None:
    levels = (torch.arange(17) / 16).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    found = density(levels, "bayer", False, 1)
    torch.testing.assert_close(found.mean((1, 2, 3)), levels[:, 0, 0, 0])
    assert torch.equal(found[:, :, :4, :4], found[:, :, 4:, 4:])
    # Each brighter one has all the dots of the darker: the pattern of Bayer's matrix.
    order = (16 - found[1:, 0, :4, :4].sum(0)).long()
    assert order.tolist() == [[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]


@pytest.mark.parametrize("method", METHODS)
def test_dots_are_black_or_white_and_as_dense_as_the_image_is_bright(method: Method) -> None:
    smooth = torch.linspace(0.05, 0.95, 64).view(1, 1, 1, 64).expand(1, 1, 64, 64)
    found = density(smooth, method, False, 1)
    assert found.unique().tolist() == [0.0, 1.0]
    blocks = [nn.functional.avg_pool2d(t, 16) for t in (smooth, found)]
    assert (blocks[0] - blocks[1]).abs().max() < 0.06
    for plain in (0.0, 1.0):
        assert torch.equal(density(torch.full((1, 1, 5, 5), plain), method, False, 1), torch.full((1, 1, 5, 5), plain))


@pytest.mark.parametrize("method", METHODS)
def test_several_dots_per_pixel_show_more_levels_in_the_same_size(method: Method) -> None:
    x = images(2, 1, 8, 8)
    found = density(x, method, False, 4)
    assert found.shape == x.shape
    assert torch.equal(found * 16, (found * 16).round())
    assert (found - x).abs().mean() < (density(x, method, False, 1) - x).abs().mean()


def test_an_image_and_a_channel_are_halftoned_by_themselves() -> None:
    x = images(5, 3)
    whole = density(x, "jarvis", True, 1)
    alone = torch.stack(
        [torch.cat([density(x[i : i + 1, c : c + 1], "jarvis", True, 1)[0] for c in range(3)]) for i in range(5)]
    )
    assert torch.equal(whole, alone)


# ------------------------------------------------------------------------------------------------------------- the defense


def info() -> DatasetInfo:
    return DatasetInfo(name="mine", classes=tuple("0123456789"), shape=(1, 8, 8))


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10)).eval()


@pytest.mark.parametrize("method", METHODS)
def test_gradients_pass_straight_through_the_dots(method: Method) -> None:
    model, x = base(), images(3, 1, 8, 8).requires_grad_()
    module = Halftone(method=method)(info(), model)
    there = density(x.detach(), method, False, 1).requires_grad_()
    assert torch.equal(module(x), model(there))
    (none,) = torch.autograd.grad(module(x).sum(), x, allow_unused=True)
    assert none is None or none.abs().max() == 0
    (got,) = torch.autograd.grad(module.surrogate(x).square().sum(), x)  # type: ignore[operator]
    (expected,) = torch.autograd.grad(model(there).square().sum(), there)
    assert torch.equal(got, expected)


def test_the_hybrid_sees_both_images() -> None:
    model, x = base(), images(3, 1, 8, 8).requires_grad_()
    module = Halftone(hybrid=True, dots=2)(info(), model)
    dots = density(x.detach(), "floyd-steinberg", False, 2)
    torch.testing.assert_close(module(x), (model(x) + model(dots)) / 2)
    assert torch.equal(module.surrogate(x), module(x))  # type: ignore[operator]
    (got,) = torch.autograd.grad(module.surrogate(x)[:, 0].sum(), x)  # type: ignore[operator]
    expected = []
    for point in (x.detach().clone(), dots):
        leaf = point.requires_grad_()
        expected += torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    torch.testing.assert_close(got, (expected[0] + expected[1]) / 2)


def test_going_backwards_is_for_error_diffusion() -> None:
    with pytest.raises(InvalidParameter, match="serpentine=true is for error diffusion"):
        build(Halftone, {"method": "bayer", "serpentine": "true"}, where="halftone")


@pytest.mark.parametrize("hybrid", [False, True])
def test_training_on_halftones_wraps_the_network_of_its_method(hybrid: bool, digits: DatasetBundle) -> None:
    torch.manual_seed(0)
    defense = HalftoneTraining(hybrid=hybrid).around(Standard())
    module, x = defense(digits.info, None), images(4, 1, 8, 8)
    net = module.base
    dots = net(density(x, "floyd-steinberg", False, 1))
    torch.testing.assert_close(module(x), (dots + net(x)) / 2 if hybrid else dots)
    with pytest.raises(InvalidParameter, match="serpentine=true is for error diffusion"):
        build(HalftoneTraining, {"pattern": "bayer", "serpentine": "true"}, where="halftone-training")


def test_adversarial_training_on_halftones_goes_by_the_surrogate(digits: DatasetBundle) -> None:
    torch.manual_seed(0)
    module, x = HalftoneTraining().around(PGDTraining())(digits.info, None), images(64, 1, 8, 8)
    y = module(x).argmax(1)

    def ce(logits: Tensor) -> Tensor:
        return losses.cross_entropy(logits, y)

    found = craft(module, x, ce, eps=0.3, step=0.1, steps=5, start="zero")
    assert (found - x).abs().amax() == pytest.approx(0.3)
    assert ce(module(found)).mean() > ce(module(x)).mean()


def test_a_method_around_another_adds_to_what_that_one_declares(digits: DatasetBundle) -> None:
    registry, info = load(), digits.info

    def flags(selector: str) -> tuple[bool, bool]:
        found = resolve(registry, "defense", selector)
        made = ResolvedDefense(found.entry, found.instance, found.label, info, None, (), inner_method(registry, found))
        return made.stochastic, made.differentiable

    assert flags("halftone-training") == (False, False)
    assert flags("halftone-training[method=pni]") == (True, False)
    assert flags("awp[method=pni]") == (True, True)
