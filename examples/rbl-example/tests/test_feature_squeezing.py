"""What is particular to this plugin is tested as in any other project."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rbl_example.feature_squeezing import Squeezed


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_keeps_as_many_grey_levels_as_bits_allow(bits: int) -> None:
    x = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    squeezed = Squeezed(nn.Identity(), bits, 1).squeeze(x)
    assert len(squeezed.unique()) == 2**bits
    assert (squeezed - x).abs().max() <= 0.5 / (2**bits - 1) + 1e-6


def test_the_median_filter_takes_out_a_single_pixel() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 3, 4] = 1.0
    assert Squeezed(nn.Identity(), 8, 3).squeeze(x).max() == 0


def test_the_surrogate_has_the_logits_of_the_module_and_the_gradient_of_the_base() -> None:
    base = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    module = Squeezed(base, 3, 3)
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    soft = module.surrogate(x)
    assert torch.equal(soft, module(x))
    (gradient,) = torch.autograd.grad(soft[:, 0].sum(), x)
    assert torch.allclose(gradient.flatten(1), base[1].weight[0].expand(4, -1))
