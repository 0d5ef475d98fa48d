"""Filters against scipy and against their definitions; feature squeezing, which is made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from rbl_defenses import filters
from rbl_defenses.feature_squeezing import FeatureSqueezing
from robustbench_lite import DatasetInfo, InvalidParameter
from robustbench_lite.parameters import build


def images(n: int = 4, channels: int = 2, height: int = 9, width: int = 7, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_median_and_mean_are_those_of_scipy(size: int, height: int, width: int, seed: int) -> None:
    x = images(2, 2, height, width, seed)
    window = (1, 1, size, size)
    assert torch.equal(filters.median(x, size), torch.from_numpy(ndimage.median_filter(x.numpy(), window, mode="reflect")))
    expected = ndimage.uniform_filter(x.double().numpy(), window, mode="reflect")
    np.testing.assert_allclose(filters.mean(x, size), expected, atol=1e-6)


@pytest.mark.parametrize("reach", [1, 3, 12])
def test_each_image_is_blurred_by_a_gaussian_of_its_own(reach: int) -> None:
    x, sigma = images(3), torch.tensor([0.3, 0.9, 2.0])
    found = filters.gaussian(x, sigma.view(-1, 1, 1, 1), reach)
    for image, blurred, s in zip(x, found, sigma, strict=True):
        expected = ndimage.gaussian_filter(
            image.double().numpy(), (0, float(s), float(s)), mode="reflect", radius=(0, reach, reach)
        )
        np.testing.assert_allclose(blurred, expected, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_bit_depth_is_numpys_rint(bits: int) -> None:
    x = torch.cat([images().flatten(), torch.linspace(0, 1, 1 + 2 * (2**bits - 1))])  # with every tie
    levels = 2**bits - 1
    expected = (np.rint(x.numpy() * levels) / levels).astype(np.float32)
    np.testing.assert_array_equal(filters.quantise(x, 2**bits), expected)
    assert len(np.unique(expected)) <= 2**bits


def by_hand(image: np.ndarray, search: int, patch: int, strength: float) -> np.ndarray:
    """Non-local means pixel by pixel, as defined."""
    reach, half = search // 2, patch // 2
    padded = np.pad(image, ((0, 0), *[(reach + half, reach + half)] * 2), mode="symmetric")
    out = np.zeros_like(image)

    def around(row: int, column: int) -> np.ndarray:
        row, column = row + reach + half, column + reach + half
        return padded[:, row - half : row + half + 1, column - half : column + half + 1]

    for i, j in np.ndindex(image.shape[1:]):
        weights = 0.0
        for k in range(i - reach, i + reach + 1):
            for m in range(j - reach, j + reach + 1):
                weight = np.exp(-np.mean((around(i, j) - around(k, m)) ** 2) * (255 / strength) ** 2)
                out[:, i, j] += weight * around(k, m)[:, half, half]
                weights += weight
        out[:, i, j] /= weights
    return out


@pytest.mark.parametrize(("search", "patch", "strength"), [(3, 1, 30.0), (5, 3, 60.0), (13, 3, 20.0)])
def test_non_local_means_are_what_they_are_defined_to_be(search: int, patch: int, strength: float) -> None:
    x = images(2, 3, 8, 7)
    found = filters.non_local_means(x, search, patch, strength)
    for image, smoothed in zip(x, found, strict=True):
        np.testing.assert_allclose(smoothed, by_hand(image.double().numpy(), search, patch, strength), atol=2e-6)


def test_non_local_means_smooth_what_is_alike_and_keep_edges() -> None:
    step = torch.zeros(1, 1, 12, 12)
    step[..., 6:] = 1.0
    noisy = step + 0.02 * torch.randn(step.shape, generator=torch.Generator().manual_seed(0))
    smoothed = filters.non_local_means(noisy, 9, 3, 10.0)
    assert (smoothed - step).square().mean() < 0.3 * (noisy - step).square().mean()
    assert (smoothed[..., 6:] - smoothed[..., :6]).mean() > 0.98
    assert torch.equal(filters.non_local_means(noisy, 1, 3, 10.0), noisy)


@pytest.mark.parametrize("function", [lambda x: filters.median(x, 2), lambda x: filters.non_local_means(x, 5, 3, 60.0)])
def test_gradients_are_true(function: object) -> None:
    x = images(1, 1, 4, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(function, x)


# -------------------------------------------------------------------------------------------------------- feature squeezing


class Pixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def info(channels: int = 1) -> DatasetInfo:
    return DatasetInfo(name="mine", classes=tuple("0123456789"), shape=(channels, 9, 7))


def test_squeezing_is_rounding_then_medians_then_non_local_means() -> None:
    x = images()
    module = FeatureSqueezing(bits=2, median=3, non_local_means=(5, 3, 20.0))(info(2), Pixels())
    expected = filters.non_local_means(filters.median(filters.quantise(x, 4), 3), 5, 3, 20.0)
    assert torch.equal(module(x), expected.flatten(1))
    assert torch.equal(module.surrogate(x), module(x))  # type: ignore[operator]
    rounded = FeatureSqueezing(bits=3, median=1)(info(2), Pixels())
    assert torch.equal(rounded(x), filters.quantise(x, 8).flatten(1))


def test_grey_images_keep_one_bit_and_others_five() -> None:
    for channels, levels in ((1, 2), (3, 32)):
        seen = FeatureSqueezing(median=1)(info(channels), Pixels())(images(50, channels))
        assert len(seen.unique()) == levels


def test_gradients_pass_through_the_rounding_and_truly_through_the_median() -> None:
    x = images(2, 1).requires_grad_()
    module = FeatureSqueezing(bits=4, median=3)(info(), Pixels())
    weights = torch.randn(2, 63, generator=torch.Generator().manual_seed(1))
    (none,) = torch.autograd.grad((module(x) * weights).sum(), x)
    assert none.abs().max() == 0
    (got,) = torch.autograd.grad((module.surrogate(x) * weights).sum(), x)  # type: ignore[operator]
    leaf = filters.quantise(x.detach(), 16).requires_grad_()
    (expected,) = torch.autograd.grad((filters.median(leaf, 3).flatten(1) * weights).sum(), leaf)
    assert torch.equal(got, expected)
    assert got.abs().max() > 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"bits": "9"}, "bits"), ({"median": "0"}, "median"), ({"non_local_means": [4, 3, 2]}, "4 is even")],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        build(FeatureSqueezing, fields, where="feature-squeezing")
