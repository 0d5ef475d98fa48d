"""f-mixup: what is mixed, what stays, and what training with it changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rbl_defenses
from rbl_defenses.f_mixup import FMixup, mix_high
from rbl_defenses.standard import Standard
from robustbench_lite import DatasetBundle
from robustbench_lite.data import fetch
from robustbench_lite.training import Context, keeping_buffers

SHIPPED = Path(rbl_defenses.__file__).parent / "weights" / "digits"


def pair(height: int = 8, width: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return tuple(torch.rand(5, 2, height, width, generator=g, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 8), (6, 9)])
@pytest.mark.parametrize("cutoff", [0.0, 2.0, 3.5])
def test_high_frequencies_are_mixed_and_low_ones_stay(height: int, width: int, cutoff: float) -> None:
    """Against the centred transform of the whole plane, and Parseval's theorem."""
    x, other = pair(height, width)
    share = torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    found = mix_high(x, other, share, cutoff)
    spectra = [np.fft.fftshift(np.fft.fft2(image.numpy()), axes=(2, 3)) for image in (x, other, found)]
    down, right = (np.arange(n) - n // 2 for n in (height, width))
    mask = np.hypot(down[:, None], right) > cutoff
    weight = mask * share.numpy()[:, None, None, None]
    expected = spectra[0] * (1 - weight) + spectra[1] * weight
    np.testing.assert_allclose(spectra[2], expected, atol=1e-9)
    np.testing.assert_allclose(spectra[2][..., ~mask], spectra[0][..., ~mask], atol=1e-9)
    power = (np.abs(weight * (spectra[1] - spectra[0])) ** 2).sum((1, 2, 3)) / (height * width)
    np.testing.assert_allclose(((found - x) ** 2).sum((1, 2, 3)).numpy(), power, atol=1e-9)


def test_nothing_is_mixed_at_share_0_or_beyond_all_frequencies_and_all_but_the_mean_at_cutoff_0() -> None:
    x, other = pair()
    one = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(mix_high(x, other, 0 * one, 1.0), x)
    torch.testing.assert_close(mix_high(x, other, one, 6.0), x)
    means = [image.mean((2, 3), keepdim=True) for image in (x, other)]
    torch.testing.assert_close(mix_high(x, other, one, 0.0), other - means[1] + means[0])


def test_images_are_mixed_inside_the_box_with_a_share_of_their_own(digits: DatasetBundle, batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    x, _ = batch
    found = FMixup().mixed(x, digits.info)
    assert 0 <= found.min() <= found.max() <= 1
    assert (found - x).flatten(1).norm(dim=1).gt(0.01).float().mean() > 0.9
    torch.manual_seed(0)
    partner, share = torch.randperm(len(x)), torch.rand(len(x))
    torch.testing.assert_close(found, mix_high(x, x[partner], share, 2.0).clamp(0, 1))
    torch.manual_seed(0)
    torch.testing.assert_close(
        FMixup(share=0.4, cutoff=1.0).mixed(x, digits.info), mix_high(x, x[partner], 0.4 * share, 1.0).clamp(0, 1)
    )
    torch.manual_seed(0)
    other = replace(digits.info, name="mine")
    torch.testing.assert_close(FMixup().mixed(x, other), mix_high(x, x[partner], share, 1.0).clamp(0, 1))  # an eighth of 8


def test_the_loss_is_the_sum_of_both(
    small: nn.Module, batch: tuple[Tensor, Tensor], context_of: Callable[..., Context]
) -> None:
    x, y = batch
    defense = FMixup(weight=0.7)
    context = context_of(defense, small)
    with keeping_buffers(small):
        found = defense.loss(small, x, y, context)
    mixed = context.once("mixed", lambda: x)
    with keeping_buffers(small):
        clean, other = small(torch.cat([x, mixed])).chunk(2)
    torch.testing.assert_close(found, F.cross_entropy(clean, y) + 0.7 * F.cross_entropy(other, y))


def test_the_shipped_weights_see_through_mixed_images_better_than_standard_training(digits: DatasetBundle) -> None:
    x, y = fetch(digits.test, range(500))
    torch.manual_seed(0)
    one = torch.ones(len(x))
    mixed = mix_high(x, x[torch.randperm(len(x))], one, 2.0).clamp(0, 1)
    with torch.no_grad():
        right = [
            float((defense(digits.info, SHIPPED / f"{name}.safetensors")(mixed).argmax(1) == y).float().mean())
            for name, defense in (("standard", Standard()), ("f-mixup", FMixup()))
        ]
    assert right == [pytest.approx(0.37, abs=0.02), pytest.approx(0.85, abs=0.02)]
