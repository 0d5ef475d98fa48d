"""Band-limited convolutions against the product of truncated spectra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rbl_defenses.band_limited import BandLimited, low_pass


def by_spectra(layer: nn.Conv2d, x: Tensor, keep: float) -> np.ndarray:
    """As the authors have it: both padded, transformed, cut to the lowest frequencies, multiplied, and transformed back."""
    p, k = int(layer.padding[0]), layer.kernel_size[0]
    maps = np.pad(x.numpy(), ((0, 0), (0, 0), (p, p), (p, p)))
    size = [n + k - 1 for n in maps.shape[2:]]
    kept = [max(1, round(keep * (n // 2 + 1))) for n in size]
    spectra = [np.fft.fft2(a, size) for a in (maps, layer.weight.detach().numpy())]
    truncated = []
    for spectrum in spectra:
        cut = np.zeros_like(spectrum)
        for rows in (slice(0, kept[0]), slice(size[0] - kept[0] + 1, size[0])):
            for columns in (slice(0, kept[1]), slice(size[1] - kept[1] + 1, size[1])):
                cut[..., rows, columns] = spectrum[..., rows, columns]
        truncated.append(cut)
    product = np.einsum("nchw,kchw->nkhw", truncated[0], truncated[1].conj())
    whole = np.fft.ifft2(product)
    assert np.abs(whole.imag).max() < 1e-10
    # Cross-correlation: the answer at position 0 is the first number.
    height, width = (n - k + 1 for n in maps.shape[2:])
    bias = 0 if layer.bias is None else layer.bias.detach().numpy()[:, None, None]
    return np.asarray(whole.real[..., :height, :width][..., :: layer.stride[0], :: layer.stride[1]] + bias)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.75, 1.0])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (5, 1, 0)])
def test_it_is_the_product_of_truncated_spectra(kernel: int, stride: int, padding: int, keep: float) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, kernel, stride, padding, bias=padding == 0).double()
    x = torch.rand(2, 3, 8, 7, dtype=torch.float64)
    found = BandLimited(layer, keep)(x)
    np.testing.assert_allclose(found.detach().numpy(), by_spectra(layer, x, keep), atol=1e-10)
    if keep == 1:
        torch.testing.assert_close(found, layer(x))
    else:
        assert (found - layer(x)).abs().max() > 0.01


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_what_is_kept_is_kept_forward_and_backward(size: int, keep: float) -> None:
    """A projection that is its own adjoint: the gradient has no other frequencies than the answer."""
    p = low_pass(size, keep)
    torch.testing.assert_close(p, p.T)
    torch.testing.assert_close(p @ p, p)
    kept = max(1, round(keep * (size // 2 + 1)))
    bins = [min(f, size - f) for f in range(size)]
    assert round(float(p.trace())) == sum(f < kept for f in bins)
    torch.testing.assert_close(p @ torch.ones(size, dtype=p.dtype), torch.ones(size, dtype=p.dtype))


def test_a_checkerboard_is_hardly_seen_and_hardly_gets_a_gradient() -> None:
    torch.manual_seed(0)
    layer, board = nn.Conv2d(1, 6, 3, padding=1, bias=False), (-1.0) ** torch.arange(16)
    x = (board[:, None] * board)[None, None].requires_grad_()
    limited = BandLimited(layer, 0.75)
    assert limited(x).square().sum() < 0.1 * layer(x).square().sum()
    slopes = [torch.autograd.grad((f(x) * torch.randn(1, 6, 16, 16)).sum(), x)[0] for f in (layer, limited)]
    high = [(slope * x).sum().abs() for slope in slopes]
    assert high[1] < 0.5 * high[0]
