"""JPEG compression against Pillow's libjpeg, and the gradient that attacks get."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from rbl_defenses import jpeg
from rbl_defenses.jpeg import JPEG, compress
from robustbench_lite import DatasetInfo, UsageError, losses
from robustbench_lite.testing import make_target


def images(n: int, channels: int, height: int, width: int, *, smooth: bool, seed: int = 0) -> Tensor:
    """Noise, or noise averaged over 5x5 pixels, in 256 levels."""
    x = torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))
    if smooth:
        x = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1)
    return (x * 255).round() / 255


def through_pillow(x: Tensor, quality: int) -> Tensor:
    """The same images written to JPEG without chroma subsampling and read again by Pillow."""
    found = []
    for image in x:
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        packed = io.BytesIO()
        Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels).save(packed, "JPEG", quality=quality, subsampling=0)
        read = torch.from_numpy(np.array(Image.open(packed)))
        found.append(read[None] if len(image) == 1 else read.permute(2, 0, 1))
    return torch.stack(found).float()


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("quality", [10, 50, 75, 95])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 19, 27)])
def test_pixels_are_those_of_pillow(channels: int, height: int, width: int, quality: int, smooth: bool) -> None:
    """Equal everywhere, for a Pillow that was built with libjpeg-turbo, as its wheels are."""
    x = images(40, channels, height, width, smooth=smooth)
    difference = (compress(x, quality) * 255).round() - through_pillow(x, quality)
    assert difference.abs().max() == 0


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 100), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]), st.integers(0, 2**31))
def test_every_quality_and_size_agrees_with_pillow(quality: int, height: int, width: int, channels: int, seed: int) -> None:
    x = images(2, channels, height, width, smooth=False, seed=seed)
    out = compress(x, quality)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert torch.equal((out * 255).round(), through_pillow(x, quality))
    assert torch.equal(out, compress(x, quality))


def test_the_tables_are_those_that_pillow_writes() -> None:
    for quality in (1, 10, 49, 50, 75, 90, 100):
        packed = io.BytesIO()
        Image.new("RGB", (8, 8)).save(packed, "JPEG", quality=quality, subsampling=0)
        written = Image.open(packed).quantization  # type: ignore[attr-defined]
        for channel in (0, 1):
            assert jpeg.table(channel, quality, torch.device("cpu")).flatten().tolist() == written[channel], quality


def test_the_transform_is_the_dct_up_to_its_rounding() -> None:
    i = torch.arange(8, dtype=torch.float64)
    basis = (torch.pi * (2 * i[None] + 1) * i[:, None] / 16).cos() * 0.5
    basis[0] *= 0.5**0.5
    assert (jpeg.cosines(torch.device("cpu")) / 2**13 / 8**0.5 - basis).abs().max() < 2**-13
    blocks = torch.randint(-128, 128, (50, 8, 8), generator=torch.Generator().manual_seed(0)).double()
    coefficients = jpeg.transform(blocks) / 8
    assert (coefficients - basis @ blocks @ basis.T).abs().max() < 0.5
    assert (jpeg.inverse_transform(coefficients.round()) - blocks).abs().max() <= 2


def test_flat_images_pass_unchanged_and_others_lose_detail() -> None:
    flat = torch.full((1, 1, 8, 8), 128 / 255)
    assert torch.equal(compress(flat, 1), flat)
    x = images(20, 1, 8, 8, smooth=True)
    errors = [(compress(x, quality) - x).square().mean().item() for quality in (5, 20, 50, 80, 100)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5 < errors[0]


def test_an_image_is_compressed_alike_in_every_batch() -> None:
    x = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    alone = torch.cat([compress(image[None], 50) for image in x])
    assert torch.equal(compress(x, 50), alone)


def base(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(256, 10)).eval()


def info(channels: int = 1) -> DatasetInfo:
    return DatasetInfo(name="mine", classes=tuple("0123456789"), shape=(channels, 8, 8))


@pytest.mark.parametrize("channels", [1, 3])
def test_logits_are_those_of_the_base_on_compressed_images_with_and_without_surrogate(channels: int) -> None:
    model, x = base(channels), torch.rand(5, channels, 8, 8)
    module = JPEG(quality=30)(info(channels), model)
    assert torch.equal(module(x), model(compress(x, 30)))
    assert torch.equal(module.surrogate(x), module(x))  # type: ignore[operator]


def test_autograd_gives_no_gradient_and_the_surrogate_that_of_the_base_at_the_compressed_image() -> None:
    model = base()
    module = JPEG(quality=30)(info(), model)
    x, y = torch.rand(5, 1, 8, 8).requires_grad_(), torch.arange(5)
    (none,) = torch.autograd.grad(F.cross_entropy(module(x), y), x)
    assert none.abs().max() == 0
    (got,) = torch.autograd.grad(F.cross_entropy(module.surrogate(x), y), x)  # type: ignore[operator]
    there = compress(x.detach(), 30).requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(model(there), y), there)
    assert torch.equal(got, expected)
    assert got.abs().max() > 0


def test_the_surrogate_of_a_base_is_used_in_turn() -> None:
    model = base()
    inner, outer = JPEG(quality=40)(info(), model), JPEG(quality=60)
    x = torch.rand(3, 1, 8, 8).requires_grad_()
    (got,) = torch.autograd.grad(outer(info(), inner).surrogate(x).square().sum(), x)  # type: ignore[operator]
    there = compress(compress(x.detach(), 60), 40).requires_grad_()
    (expected,) = torch.autograd.grad(model(there).square().sum(), there)
    assert torch.equal(got, expected)


def test_an_attack_climbs_through_the_surrogate() -> None:
    module = JPEG(quality=50)(info(), base())
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = module(x).argmax(1)
    target, _ = make_target(module, x, y, "linf:0.3", differentiable=False)
    before = losses.cross_entropy(module(x), y)
    x_adv = x
    for _ in range(10):
        _, _, grad = target.loss_and_grad(x_adv, losses.cross_entropy, y)
        x_adv = (x_adv + 0.06 * grad.sign()).clamp(x - 0.3, x + 0.3).clamp(0, 1)
    assert (losses.cross_entropy(module(x_adv), y) > before).all()


def test_images_of_two_channels_are_refused() -> None:
    with pytest.raises(UsageError, match="1 or 3 channels, and mine has 2"):
        JPEG()(info(2), base())
