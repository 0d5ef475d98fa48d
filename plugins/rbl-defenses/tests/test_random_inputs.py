"""Random resizing and padding, and the barrage of transforms: what they may do to an image, to whose numbers, and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rbl_defenses import weak_transforms
from rbl_defenses.bart import GREY, BaRT, scrambled
from rbl_defenses.random_resize_pad import RandomResizePad, resize_and_pad
from robustbench_lite import DatasetInfo, InvalidParameter, Randomness, UsageError
from robustbench_lite.deployed import Deployed
from robustbench_lite.parameters import build
from robustbench_lite.randomness import keyed_draws


class Pixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def info(channels: int = 1, side: int = 8) -> DatasetInfo:
    return DatasetInfo(name="mine", classes=tuple("0123456789"), shape=(channels, side, side))


def images(n: int = 4, channels: int = 1, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("defense", [RandomResizePad(flip=True), BaRT(), BaRT(transforms=("jpeg", "swirl", "speckle"))])
def test_an_image_gets_its_own_numbers_whoever_else_is_in_the_batch(defense: RandomResizePad | BaRT) -> None:
    x, ids = images(10), torch.arange(10)
    deployed = [Deployed(defense(info(), Pixels()), num_classes=64, stochastic=True, micro_batch=m) for m in (1, 3, 10)]
    found = [d.stack(x, passes=3, key="cell", ids=ids, draw=torch.zeros_like(ids)) for d in deployed]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], found[2], rtol=0, atol=1e-5)
    assert ((found[0][:, 0] - found[0][:, 1]).abs().amax(1) > 1e-3).float().mean() > 0.5, "each pass draws anew"


# ---------------------------------------------------------------------------------------------------------- resize and pad


def every_outcome(image: Tensor, padded: tuple[int, int], mirror: bool) -> list[Tensor]:
    """All images (C, *padded) that one (C, H, W) can become; both sides grow by the same share."""
    height, width = image.shape[1:]
    found = []
    shares = torch.linspace(0, 1, 2001)[:-1]
    sizes = {(height + int(s * (padded[0] - height + 1)), width + int(s * (padded[1] - width + 1))) for s in shares.tolist()}
    for size in sizes:
        resized = F.interpolate(image[None], size, mode="nearest")[0]
        for top in range(padded[0] - size[0] + 1):
            for left in range(padded[1] - size[1] + 1):
                placed = F.pad(resized, (left, padded[1] - size[1] - left, top, padded[0] - size[0] - top))
                found += [placed, placed.flip(2)] if mirror else [placed]
    return found


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("shape", "ratio", "padded"), [((1, 8, 8), 1.25, (10, 10)), ((2, 6, 9), 1.34, (8, 12))])
def test_every_outcome_is_a_resized_image_at_some_place_and_all_of_them_occur(
    shape: tuple[int, int, int], ratio: float, padded: tuple[int, int], mirror: bool
) -> None:
    image = images(1, *shape)[0]
    possible = torch.stack(every_outcome(image, padded, mirror)).flatten(1)
    torch.manual_seed(0)
    found = resize_and_pad(image.expand(3000, *shape), ratio, restore=False, flip=mirror)
    assert found.shape[2:] == padded
    same = (found.flatten(1)[:, None] == possible).all(2)
    assert same.any(1).all(), "nothing else"
    assert same.any(0).all(), "all of them"


def test_the_size_is_uniform_and_so_is_the_place() -> None:
    torch.manual_seed(0)
    n = 9000
    found = resize_and_pad(torch.ones(n, 1, 8, 8), 1.25, restore=False, flip=False)
    sides = (found[:, 0].amax(1) > 0).sum(1)
    counts = torch.stack([(sides == side).sum() for side in (8, 9, 10)]).double()
    assert (counts / n - 1 / 3).abs().max() < 5 * (2 / 9 / n) ** 0.5
    left = (found[sides == 8][:, 0].amax(1) > 0).long().argmax(1)
    m = len(left)
    assert (left.bincount(minlength=3).double() / m - 1 / 3).abs().max() < 5 * (2 / 9 / m) ** 0.5


def test_restored_images_have_their_size_back_and_gradients_reach_the_pixels_that_are_shown() -> None:
    x = images(20).requires_grad_()
    torch.manual_seed(0)
    found = resize_and_pad(x, 1.25, restore=True, flip=False)
    assert found.shape == x.shape
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert (grad >= 0).all()
    assert (grad > 0).float().mean() > 0.9
    torch.manual_seed(0)
    padded = resize_and_pad(x.detach(), 1.25, restore=False, flip=False)
    torch.testing.assert_close(found, F.interpolate(padded, (8, 8), mode="bilinear"))


def test_small_images_grow_by_a_quarter_and_others_by_an_eighth() -> None:
    for side, padded in ((8, 10), (16, 20), (28, 32), (32, 36)):
        seen = RandomResizePad(restore=False)(info(side=side), Pixels())(torch.ones(2, 1, side, side))
        assert seen.shape[1] == padded**2


# ------------------------------------------------------------------------------------------------------------------- bart


def numbers(x: Tensor) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.rand(len(x), 4, generator=g), torch.randn(x.shape, generator=g)


@pytest.mark.parametrize("name", list(weak_transforms.EVERY))
@pytest.mark.parametrize("side", [8, 32])
def test_a_transform_changes_images_a_little_each_by_itself_and_passes_gradients(name: str, side: int) -> None:
    smooth = F.interpolate(images(12, 3, 4, 4), (side, side), mode="bilinear")
    x = (smooth + 0.02 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1).requires_grad_()
    u, z = numbers(x)
    transform = weak_transforms.EVERY[name]
    found = transform(x, u, z)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    assert found.isfinite().all()
    moved = (found - x).abs().mean().item()
    assert 1e-4 < moved < 0.2
    alone = torch.cat([transform(x[i : i + 1], u[i : i + 1], z[i : i + 1]) for i in range(12)])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
    (grad,) = torch.autograd.grad(found.square().sum(), x)
    assert grad.isfinite().all()
    assert (grad != 0).flatten(1).float().mean(1).min() > 0.2


@pytest.mark.parametrize("name", list(weak_transforms.EVERY))
def test_a_transform_is_finite_on_plain_images_and_so_is_its_gradient(name: str) -> None:
    x = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 8, 8).clone().requires_grad_()
    found = weak_transforms.EVERY[name](x, *numbers(x))
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert found.isfinite().all()
    assert grad.isfinite().all()


def test_noises_have_the_variance_that_they_are_drawn_with() -> None:
    x = torch.full((1, 1, 200, 200), 0.4)
    u, z = torch.full((1, 4), 0.5), torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for name, variance in {"gaussian-noise": 0.05**2, "speckle": (0.15 * 0.4) ** 2, "shot-noise": 0.005 * 0.4}.items():
        noise = weak_transforms.EVERY[name](x, u, z) - x
        assert noise.var().item() == pytest.approx(variance, rel=5 * (2 / 40000) ** 0.5), name
    replaced = weak_transforms.salt_and_pepper(x, u, z)
    for value in (0.0, 1.0):  # an amount of 2.5 %, half of it each
        share = (replaced == value).float().mean().item()
        assert abs(share - 0.0125) < 5 * (0.0125 / 40000) ** 0.5


def test_hues_turn_and_tints_are_constant_and_grey_is_grey() -> None:
    x = images(6, 3)
    u, z = numbers(x)
    luminance = torch.tensor(weak_transforms.TO_YIQ[0])
    turned = weak_transforms.hue(x, u, z)
    torch.testing.assert_close(torch.einsum("c,nchw->nhw", luminance, turned), torch.einsum("c,nchw->nhw", luminance, x))
    still = torch.tensor([[0.5, 0.5, 0, 0]]).expand(6, 4)  # no angle, saturation times 1
    torch.testing.assert_close(weak_transforms.hue(x, still, z), x)
    shift = weak_transforms.tint(x, u, z) - x
    torch.testing.assert_close(shift, shift.mean((2, 3), keepdim=True).expand_as(shift), atol=1e-6, rtol=0)
    grey = weak_transforms.grey(x, u, z)
    assert torch.equal(grey[:, :1].expand_as(grey), grey)
    assert (grey <= x.amax(1, keepdim=True) + 1e-6).all()
    assert (grey >= x.amin(1, keepdim=True) - 1e-6).all()


def test_dropped_frequencies_leave_the_mean_and_zoom_shows_a_part() -> None:
    x = images(6, 1, 16, 16)
    u, z = numbers(x)
    torch.testing.assert_close(weak_transforms.frequencies(x, u, z).mean((2, 3)), x.mean((2, 3)))
    none = torch.zeros_like(u)
    torch.testing.assert_close(weak_transforms.frequencies(x, none, z), x)
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 16, 16)
    zoomed = weak_transforms.zoom(ramp, torch.tensor([[0.0, 0.0, 0.0, 0.0]]), z)[0, 0]
    # 85 % of the width from the left end: places (i + 1/2) 0.85 - 1/2, the first of them beyond the edge.
    expected = ((torch.arange(16) + 0.5) * 0.85 - 0.5).clamp(min=0)
    torch.testing.assert_close(zoomed, expected.expand(16, 16), atol=1e-4, rtol=0)


def test_each_image_gets_its_own_choice_in_its_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """With transforms that write down that they were called, one digit each."""

    def writes(digit: int) -> weak_transforms.Transform:
        return lambda x, u, z: x / 10 + digit / 10

    names = tuple("abcd")
    monkeypatch.setattr(weak_transforms, "EVERY", {name: writes(k + 1) for k, name in enumerate(names)})
    torch.manual_seed(0)
    n = 6000
    found = scrambled(torch.zeros(n, 1, 1, 1).double(), names, 2).flatten()
    pairs = (found * 100).round().long()
    digits = torch.stack([pairs // 10, pairs % 10], 1)
    assert set(digits.flatten().tolist()) == {1, 2, 3, 4}
    assert (digits[:, 0] != digits[:, 1]).all(), "none twice"
    counts = pairs.bincount()
    assert (counts > 0).sum() == 12, "every ordered pair"
    chance = 1 / 12
    assert (counts[counts > 0] / n - chance).abs().max() < 5 * math.sqrt(chance * (1 - chance) / n)


def test_every_pass_is_clipped_to_the_box() -> None:
    torch.manual_seed(0)
    found = scrambled(images(40, 3, 16, 16), tuple(weak_transforms.EVERY), 6)
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_surrogate_has_the_same_values_and_numbers() -> None:
    x, ids = images(5), torch.arange(5)
    module = BaRT(transforms=GREY)(info(), Pixels())
    values = []
    for run in (module, module.surrogate):
        with keyed_draws(Randomness("cell", ids), torch.zeros_like(ids)):
            values.append(run(x))  # type: ignore[operator]
    assert torch.equal(*values)


def test_what_cannot_be_chosen_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="unknown transforms blurr"):
        build(BaRT, {"transforms": ["blurr"]}, where="bart")
    with pytest.raises(InvalidParameter, match="named twice"):
        build(BaRT, {"transforms": ["blur", "blur"]}, where="bart")
    with pytest.raises(UsageError, match="hue cannot be used on images of 1 channels"):
        BaRT(transforms=("hue",))(info(), Pixels())
    with pytest.raises(UsageError, match="9 transforms are to be chosen from 8"):
        BaRT(count=9)(info(), Pixels())
    assert BaRT()(info(2), Pixels())(images(2, 2)).shape == (2, 128)
