"""Corruptions against the formulas of the published sets, computed by other means: scipy, Pillow, loops over pixels."""

from __future__ import annotations

import colorsys
import io
import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_networks import network
from PIL import Image
from scipy import ndimage, stats
from sklearn.datasets import load_sample_images
from torch import Tensor

from rbl_attacks import degrade
from rbl_attacks.corruption import CORRUPTIONS, Corruption, Name
from robustbench_lite import Randomness, Threat
from robustbench_lite.request import load_request
from robustbench_lite.selectors import parse_selector
from robustbench_lite.testing import Constant, make_target

UNRESTRICTED = Threat.parse("unrestricted")
NAMES = get_args(Name)
EXTRA = ("speckle-noise", "gaussian-blur")
SUITE = Path(__file__).parents[1] / "corruptions.yaml"


@cache
def photographs(side: int) -> Tensor:
    """(8, 3, side, side): two photographs that come with scikit-learn, shrunk to two by three sides, four pieces of each."""
    found = []
    for image in load_sample_images().images:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        small = F.interpolate(pixels, size=(2 * side, 3 * side), mode="area")
        found += [small[:, :, top : top + side, left : left + side] for top in (0, side) for left in (0, side)]
    return torch.cat(found)


@cache
def digits() -> Tensor:
    return network("std")[1][:100]


def stream(x: Tensor) -> Randomness:
    return Randomness("0", torch.arange(len(x)))


def corrupt(x: Tensor, name: str, severity: int, table: str = "auto") -> Tensor:
    y = torch.zeros(len(x), dtype=torch.int64)
    target, rng = make_target(Constant(2), x, y, UNRESTRICTED, access="none")
    return Corruption(name=name, severity=severity, table=table)(target, x, y, UNRESTRICTED, rng)  # type: ignore[arg-type]


def psnr(x: Tensor, corrupted: Tensor) -> float:
    """The mean over images of the peak signal-to-noise ratio, in dB."""
    return float((-20 * torch.log10(UNRESTRICTED.size(x, corrupted).clamp(min=1e-6))).mean())


# ------------------------------------------------------------------------------------------------------------ the suite

# Where the published parameters themselves do not get worse from one severity to the next (dB by which they may get better).
# Glass blur at severity 3 and 5 differs from the one before by more smoothing after the same shuffling; fog of the ImageNet
# table by its texture alone.
SLACK = {("glass-blur", "cifar"): 1.5, ("glass-blur", "imagenet"): 1.0, ("fog", "imagenet"): 0.2}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("side", "table"), [(32, "cifar"), (28, "cifar"), (96, "imagenet")])
def test_images_get_worse_with_severity(name: str, side: int, table: str) -> None:
    x = photographs(side)
    found = [psnr(x, corrupt(x, name, severity, table)) for severity in range(1, 6)]
    assert all(later <= earlier + SLACK.get((name, table), 0.01) for earlier, later in pairwise(found)), found
    assert found[4] < found[0] - 0.1
    assert found[0] < 60, "the mildest one does something, too"


@pytest.mark.parametrize("name", NAMES)
def test_images_of_eight_pixels_are_corrupted_too(name: str) -> None:
    """Lengths in pixels shrink with the image; how many pixels pixelate leaves does not go down evenly."""
    x = digits()
    found = [psnr(x, corrupt(x, name, severity)) for severity in range(1, 6)]
    slack = {"glass-blur": 0.5, "pixelate": 1.0}.get(name, 0.01)
    assert all(later <= earlier + slack for earlier, later in pairwise(found)), found
    assert found[4] < found[0] - 1


@pytest.mark.parametrize("table", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", NAMES)
def test_any_shape_goes_and_stays_in_the_box(name: str, table: str) -> None:
    for shape in ((2, 3, 6, 9), (3, 1, 2, 17), (1, 2, 1, 1), (2, 3, 40, 3)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).round(decimals=1)
        for severity in (1, 5):
            corrupted = corrupt(x, name, severity, table)
            assert corrupted.shape == x.shape
            assert corrupted.dtype == x.dtype
            assert UNRESTRICTED.in_box(corrupted).all()


def test_an_image_gets_the_same_corruption_in_other_company(monkeypatch: pytest.MonkeyPatch) -> None:
    x = photographs(32)
    whole = {name: corrupt(x, name, 4) for name in NAMES}
    monkeypatch.setattr("rbl_attacks.corruption.PIECE", 3 * 32 * 32 * 3)  # three images at once
    for name in NAMES:
        assert torch.allclose(corrupt(x, name, 4), whole[name], atol=1e-6), name
        if "noise" in name or name in ("glass-blur", "motion-blur", "fog"):
            same = corrupt(x[:1].expand(2, -1, -1, -1), name, 4)
            assert not torch.equal(same[0], same[1]), f"{name} is random, each image its own"


def test_the_table_goes_by_the_shorter_side() -> None:
    for side, expected in ((63, 0.75), (64, 0.4)):
        x = torch.rand(1, 1, side, 80)
        assert torch.equal(corrupt(x, "contrast", 1), degrade.contrast(x, stream(x), 1.0, expected))
    assert torch.equal(corrupt(x, "contrast", 1, "cifar"), degrade.contrast(x, stream(x), 1.0, 0.75))


def test_the_ready_made_request_names_the_twelve_at_five_severities() -> None:
    request = load_request(SUITE, {})
    named = [dict(parse_selector(text).parameters) for text in request.attack]
    assert {parse_selector(text).name for text in request.attack} == {"corruption"}
    expected = [{"name": name, "severity": str(severity)} for name in NAMES if name not in EXTRA for severity in range(1, 6)]
    assert [{key: str(value) for key, value in parameters.items()} for parameters in named] == expected
    assert request.threat == ("unrestricted",)


# ---------------------------------------------------------------------------------------------------------------- noises


@pytest.mark.parametrize(
    ("corrupted", "sigma"),
    [
        (lambda x, rng: degrade.gaussian_noise(x, rng, 1.0, 0.08), 0.08),
        (lambda x, rng: degrade.speckle_noise(x, rng, 1.0, 0.12), 0.06),
        (lambda x, rng: degrade.shot_noise(x, rng, 1.0, 100), math.sqrt(0.5 / 100)),
        (lambda x, rng: degrade.shot_noise(x, rng, 1.0, 500), math.sqrt(0.5 / 500)),
    ],
    ids=["gaussian", "speckle", "shot 100", "shot 500"],
)
def test_noise_is_as_strong_as_it_says(corrupted, sigma: float) -> None:
    x = torch.full((8, 3, 64, 64), 0.5)
    change = corrupted(x, stream(x)) - x
    assert change.std().item() == pytest.approx(sigma, rel=0.02)
    assert change.mean().item() == pytest.approx(0, abs=4 * sigma / math.sqrt(x.numel()))


def test_impulses_are_black_and_white_alike() -> None:
    x = torch.full((8, 3, 64, 64), 0.5)
    corrupted = degrade.impulse_noise(x, stream(x), 1.0, 0.1)
    for value in (0.0, 1.0):
        hits = int((corrupted == value).sum())
        assert abs(hits - 0.05 * x.numel()) < 4 * math.sqrt(0.05 * 0.95 * x.numel())
    assert set(corrupted.unique().tolist()) == {0.0, 0.5, 1.0}


def test_poisson_variables_are_the_inverse_of_their_distribution() -> None:
    """Against scipy's quantile function, everywhere: also where rates and chances are extreme."""
    rates = torch.tensor([0.0, 1e-6, 1e-3, 0.1, 0.7, 3.0, 12.0, 60.0, 255.0, 500.0], dtype=torch.float64)
    steps = torch.cat([torch.tensor([0, 1, 2**23, 2**24 - 2, 2**24 - 1]), torch.randint(0, 2**24, (3000,))])
    u = (steps.double() / 2**24).repeat(len(rates))
    rate = rates.repeat_interleave(len(steps))
    found = degrade.poisson(rate, u)
    expected = np.where(rate == 0, 0, stats.poisson.ppf(u.numpy() + 2.0**-25, rate.numpy()))
    assert (found.numpy() == expected).all()


# ----------------------------------------------------------------------------------------------------------------- blurs


def per_channel(x: Tensor, function) -> Tensor:
    """A function of one channel (H, W), in float64, on all of them."""
    planes = [function(plane) for plane in x.flatten(0, 1).double().numpy()]
    return torch.from_numpy(np.stack(planes)).view(x.shape).float()


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.0, 2.5])
def test_gaussian_blur_is_scipys(sigma: float) -> None:
    x = photographs(32)
    expected = per_channel(x, lambda plane: ndimage.gaussian_filter(plane, sigma, mode="nearest", truncate=4))
    assert (degrade.gaussian_blur(x, stream(x), 1.0, sigma) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("setting", [*CORRUPTIONS["defocus-blur"][1], *CORRUPTIONS["defocus-blur"][2]])
def test_defocus_blur_is_a_smoothed_disk(setting: tuple[float, float]) -> None:
    radius, alias = setting
    reach = 8 if radius <= 8 else int(radius)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    sharp = (rows**2 + columns**2 <= radius**2).astype(float)
    soft = np.exp(-(np.arange(-2, 3) ** 2) / (2 * alias**2))[slice(1, 4) if radius <= 8 else slice(None)]
    kernel = ndimage.correlate(sharp / sharp.sum(), np.outer(soft, soft) / soft.sum() ** 2, mode="mirror")
    x = photographs(32)
    expected = per_channel(x, lambda plane: ndimage.correlate(plane, kernel, mode="mirror")).clamp(0, 1)
    assert (degrade.defocus_blur(x, stream(x), 1.0, *setting) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("setting", [*CORRUPTIONS["motion-blur"][1], *CORRUPTIONS["motion-blur"][2]])
def test_motion_blur_is_a_fading_trail(setting: tuple[int, float]) -> None:
    radius, sigma = setting
    x = photographs(32)
    angles = np.deg2rad(stream(x).uniform(None, (1,), low=-45, high=45).double().numpy()[:, 0])
    fading = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    expected = np.zeros(x.shape)
    place = np.arange(32)
    for image, angle in enumerate(angles):
        for i, weight in enumerate(fading / fading.sum()):
            rows = (place + math.ceil(i * math.sin(angle) - 0.5)).clip(0, 31)
            columns = (place + math.ceil(i * math.cos(angle) - 0.5)).clip(0, 31)
            expected[image] += weight * x[image].double().numpy()[:, rows][:, :, columns]
    assert np.abs(degrade.motion_blur(x, stream(x), 1.0, *setting).numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("side", [32, 45])
@pytest.mark.parametrize("setting", [CORRUPTIONS["zoom-blur"][1][4], *CORRUPTIONS["zoom-blur"][2]])
def test_zoom_blur_is_scipys_zoom_cut_to_size(setting: tuple[float, float], side: int) -> None:
    def blurred(plane: np.ndarray) -> np.ndarray:
        total = plane.copy()
        for factor in (factors := np.arange(1, *setting)):
            cut = math.ceil(side / factor)
            top = (side - cut) // 2
            large = ndimage.zoom(plane[top : top + cut, top : top + cut], factor, order=1)
            trim = (len(large) - side) // 2
            total += large[trim : trim + side, trim : trim + side]
        return total / (len(factors) + 1)

    x = photographs(side)
    assert (degrade.zoom_blur(x, stream(x), 1.0, *setting) - per_channel(x, blurred)).abs().max() < 1e-5


@pytest.mark.parametrize("setting", [(0.25, 1, 2), (0.9, 2, 1), (1.5, 4, 2)])
def test_glass_blur_copies_pixels_in_the_published_order(setting: tuple[float, int, int]) -> None:
    sigma, reach, iterations = setting
    x, side = photographs(32)[:3], 32
    rng = stream(x)
    smooth = per_channel(x, lambda plane: ndimage.gaussian_filter(plane, sigma, mode="nearest", truncate=4))
    expected = smooth.clone()
    for number in range(iterations):
        step = rng.integers(None, (2, side * side), -reach, reach, draw=number).view(len(x), 2, side, side)
        for image in range(len(x)):
            for h in range(side - reach, reach, -1):
                for w in range(side - reach, reach, -1):
                    down, right = step[image, :, h, w].tolist()
                    expected[image, :, h, w] = expected[image, :, h + down, w + right]
    expected = per_channel(expected, lambda plane: ndimage.gaussian_filter(plane, sigma, mode="nearest", truncate=4))
    assert (degrade.glass_blur(x, rng, 1.0, *setting) - expected).abs().max() < 1e-5


def test_a_shrunk_kernel_keeps_its_weight_and_its_spread() -> None:
    """Sharing between neighbours keeps sum and mean, and adds to the variance less than a quarter of a squared pixel."""
    kernel = torch.rand(13, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    place = torch.arange(-6, 7, dtype=torch.float64)
    kernel /= kernel.sum()
    mean, variance = float(place @ kernel), float(place.square() @ kernel)
    for scale in (0.25, 0.6, 28 / 32, 1.0):
        small = degrade.shrink(kernel, scale)
        near = torch.arange(len(small), dtype=torch.float64) - len(small) // 2
        assert small.sum().item() == pytest.approx(1)
        assert float(near @ small) == pytest.approx(scale * mean)
        assert 0 <= float(near.square() @ small) - scale**2 * variance + 1e-12 <= 0.25
    assert torch.equal(degrade.shrink(kernel, 1.0), kernel)


@pytest.mark.parametrize("name", ["motion-blur", "zoom-blur"])
def test_a_small_slope_moves_as_the_large_slope_that_it_shows(name: str) -> None:
    """Interpolating and shrinking are exact on slopes: blurred first or shrunk first is the same, but for the edges."""
    rows, columns = torch.arange(32.0)[:, None] / 64, torch.arange(32.0)[None] / 64
    large = torch.stack([rows + columns, rows + columns.flip(1), rows.flip(0) + columns])[:, None]
    small = F.avg_pool2d(large, 4)
    for severity in range(1, 6):
        wanted, got = F.avg_pool2d(corrupt(large, name, severity), 4), corrupt(small, name, severity)
        inner = slice(1, None) if name == "zoom-blur" else slice(3, -3)
        assert (wanted - got)[..., inner, inner].abs().max() < 1e-5
        assert (wanted - small)[..., inner, inner].abs().max() > 1e-3


# -------------------------------------------------------------------------------------------- weather, colour, compression


@pytest.mark.parametrize("side", [8, 32])
def test_fog_is_a_cloud_by_diamonds_and_squares(side: int) -> None:
    """The published loops, with the same random numbers."""
    rng, decay, draws = stream(photographs(32)[:2]), 2.5, iter(range(1, 100))
    heights = np.zeros((2, side, side))

    def around(total: np.ndarray) -> np.ndarray:
        noise = rng.uniform(None, total.shape[1:], draw=next(draws), low=-1.0, high=1.0).double().numpy()
        return total / 4 + wobble**2 * noise

    step, wobble = side, 1.0
    while step >= 2:
        half, n = step // 2, side // step
        squares, level, upright = (np.zeros((2, n, n)) for _ in range(3))
        for i in range(n):
            for j in range(n):
                a, b = i * step, j * step
                following = (i + 1) % n * step, (j + 1) % n * step
                squares[:, i, j] = sum(heights[:, p, q] for p in (a, following[0]) for q in (b, following[1]))
        heights[:, half::step, half::step] = around(squares)
        for i in range(n):
            for j in range(n):
                a, b, middle = i * step, j * step, heights[:, half::step, half::step]
                across = heights[:, a, b] + heights[:, a, (j + 1) % n * step]  # on the same row for both, as published
                level[:, i, j] = middle[:, i, j] + middle[:, i - 1, j] + across
                upright[:, i, j] = middle[:, i, j] + middle[:, i, j - 1] + across
        heights[:, ::step, half::step] = around(level)
        heights[:, half::step, ::step] = around(upright)
        step, wobble = half, wobble / decay
    heights -= heights.min((1, 2), keepdims=True)
    cloud = heights / heights.max((1, 2), keepdims=True)
    assert np.abs(degrade.plasma(rng, side, decay).numpy() - cloud).max() < 1e-12
    x = photographs(32)[:2, :, :side, : side - 2]
    brightest = x.amax((1, 2, 3), keepdim=True).numpy()
    expected = (x.numpy() + 0.75 * cloud[:, None, :, : side - 2]) * brightest / (brightest + 0.75)
    assert np.abs(degrade.fog(x, rng, 1.0, 0.75, decay).numpy() - expected).max() < 1e-6


def test_brightness_raises_the_value_of_hsv() -> None:
    x = photographs(32)[:2, :, ::3, ::3].clone()
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 0, 2] = 0.0, 1.0, torch.tensor([0.0, 0.5, 0.0])
    found = degrade.brightness(x, stream(x), 1.0, 0.15).permute(0, 2, 3, 1).flatten(0, 2)
    for pixel, brighter in zip(x.permute(0, 2, 3, 1).flatten(0, 2).tolist(), found.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        assert brighter == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.15, 1)), abs=1e-5)
    grey = x[:, :1]
    assert torch.allclose(degrade.brightness(grey, stream(x), 1.0, 0.15), (grey + 0.15).clamp(max=1), atol=1e-6)


def test_contrast_keeps_the_mean_of_each_channel() -> None:
    x = photographs(32)
    found = degrade.contrast(x, stream(x), 1.0, 0.4)
    assert torch.allclose(found.mean((2, 3)), x.mean((2, 3)), atol=1e-5)
    assert torch.allclose(found.std((2, 3)), 0.4 * x.std((2, 3)), atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (45, 32), (8, 8), (7, 5)])
@pytest.mark.parametrize("share", [0.95, 0.75, 0.65, 0.3, 0.05])
def test_pixelate_is_pillows_box_filter(share: float, shape: tuple[int, int]) -> None:
    x = photographs(45)[:, :, : shape[0], : shape[1]]
    small = tuple(max(1, int(side * share)) for side in shape[::-1])

    def resized(plane: np.ndarray) -> np.ndarray:
        image = Image.fromarray(plane.astype(np.float32))
        return np.asarray(image.resize(small, Image.Resampling.BOX).resize(shape[::-1], Image.Resampling.BOX))

    assert (degrade.pixelate(x, stream(x), 1.0, share) - per_channel(x, resized)).abs().max() < 1e-5


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_jpeg_is_pillows(channels: int) -> None:
    x = photographs(32)[:3, :channels]
    found = degrade.jpeg(x, stream(x), 1.0, 40)
    for image, read in zip(x, found, strict=True):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        for plane, wanted in [(pixels, read)] if channels == 3 else [(pixels[..., c], read[c]) for c in range(channels)]:
            packed = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(plane)).save(packed, "JPEG", quality=40)
            again = torch.from_numpy(np.array(Image.open(packed))).float() / 255
            assert torch.equal(again.permute(2, 0, 1) if channels == 3 else again, wanted)


def test_the_mildest_settings_change_next_to_nothing() -> None:
    x = photographs(32)
    rng = stream(x)
    assert (degrade.contrast(x, rng, 1.0, 1.0) - x).abs().max() < 1e-6
    assert (degrade.pixelate(x, rng, 1.0, 1.0) - x).abs().max() < 1e-6
    assert (degrade.brightness(x, rng, 1.0, 0.0) - x).abs().max() < 1e-6
    assert (degrade.gaussian_blur(x, rng, 1.0, 0.05) - x).abs().max() < 1e-6
    assert torch.equal(degrade.impulse_noise(x, rng, 1.0, 0.0), x)
    assert psnr(x, degrade.jpeg(x.mean(1, keepdim=True), rng, 1.0, 100).expand_as(x)) > 10
    grey = x.mean(1, keepdim=True)
    assert psnr(grey, degrade.jpeg(grey, rng, 1.0, 100)) > 45
    assert psnr(x, degrade.fog(x, rng, 1.0, 0.01, 2.0)) > 40
