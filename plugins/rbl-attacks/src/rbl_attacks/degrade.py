"""What corruptions do to images: noises, blurs, weather and compression, in the definitions of ImageNet-C and CIFAR-10-C.

Functions take images (n, C, H, W) in [0, 1], random numbers where they need some, and their published parameters, and return
images in [0, 1]; every example is treated by itself. Lengths are in pixels of the data set that they were made for; ``scale``
says how many pixels of ``x`` that is, 1 or less. Blurs are made at that data set's resolution and then shrunk, with weights
shared between neighbouring pixels; that keeps the mildest ones from vanishing, and blurs tiny images a little more.

Values stay floating point, where the published files hold bytes, except where bytes are the point (JPEG).
"""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from robustbench_lite import Randomness

# -------------------------------------------------------------------------------------------------------------- noises


def gaussian_noise(x: Tensor, rng: Randomness, scale: float, sigma: float) -> Tensor:
    """N(0, sigma^2) on every value."""
    return (x + sigma * rng.normal(None, x.shape[1:])).clamp_(0, 1)


def speckle_noise(x: Tensor, rng: Randomness, scale: float, sigma: float) -> Tensor:
    """Every value times 1 + N(0, sigma^2)."""
    return (x + x * sigma * rng.normal(None, x.shape[1:])).clamp_(0, 1)


def shot_noise(x: Tensor, rng: Randomness, scale: float, photons: float) -> Tensor:
    """Poisson noise: white is ``photons`` on average."""
    counts = poisson(x.double().flatten() * photons, rng.uniform(None, x.shape[1:]).double().flatten())
    return (counts / photons).clamp_(0, 1).to(x.dtype).view_as(x)


def impulse_noise(x: Tensor, rng: Randomness, scale: float, amount: float) -> Tensor:
    """A share of all values becomes 0 or 1, with equal chances."""
    u = rng.uniform(None, x.shape[1:])
    return torch.where(u < amount / 2, 1.0, torch.where(u < amount, 0.0, x))


def poisson(rate: Tensor, u: Tensor) -> Tensor:
    """(n,) Poisson variables of ``rate`` (n,), by inverting their distribution at ``u`` (n,), uniform in steps of 2^-24.

    The smallest k with P(X <= k) >= u: exact, up to the steps. Found from the Cornish-Fisher approximation, which is seldom
    more than one off.
    """
    u = u + 2.0**-25  # the middle of the step
    z = torch.special.ndtri(u)
    count: Tensor = (rate + rate.sqrt() * z + (z.square() - 1) / 6).round_().clamp_(min=0)
    for step in (1.0, -1.0):
        left = torch.arange(len(rate), device=rate.device)
        while len(left):
            k = count[left]
            if step > 0:
                wrong = torch.special.gammaincc(k + 1, rate[left]) < u[left]  # P(X <= k)
            else:
                wrong = (k > 0) & (torch.special.gammaincc(k.clamp(min=1), rate[left]) >= u[left])  # P(X <= k - 1)
            left = left[wrong]
            count[left] += step
    return count


# --------------------------------------------------------------------------------------------------------------- blurs


def defocus_blur(x: Tensor, rng: Randomness, scale: float, radius: float, alias: float) -> Tensor:
    """A disk, itself blurred by a gaussian of 3 (radius to 8) or 5 pixels; mirrored at the edges."""
    kernel = shrink(shrink(disk(radius, alias), scale).T, scale).T.to(x)
    down, right = (side // 2 for side in kernel.shape)
    padded = x[:, :, _mirrored(x.shape[2], down, x.device)][:, :, :, _mirrored(x.shape[3], right, x.device)]
    blurred = F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None])
    return blurred.view_as(x).clamp_(0, 1)


def gaussian_blur(x: Tensor, rng: Randomness, scale: float, sigma: float) -> Tensor:
    """A gaussian, cut off at 4 sigma; edges repeated."""
    return _gaussian(x, scale, sigma).clamp_(0, 1)


def glass_blur(x: Tensor, rng: Randomness, scale: float, sigma: float, reach: int, iterations: int) -> Tensor:
    """Gaussian blur, pixels replaced by others from up to ``reach`` pixels away, gaussian blur.

    The published code means to swap two pixels and, with colour images, copies one over the other; so does this. A distance
    that is no whole number after scaling is rounded up or down by chance, to be right on average.
    """
    height, width = x.shape[2:]
    blurred = _gaussian(x, scale, sigma).flatten(2)
    place = torch.arange(height * width, device=x.device)
    inside = torch.zeros(height, width, dtype=torch.bool, device=x.device)
    back, ahead = math.ceil(reach * scale), math.ceil((reach - 1) * scale)
    inside[back + 1 : height - ahead, back + 1 : width - ahead] = True
    for number in range(iterations):
        drawn = rng.integers(None, (2, height * width), -reach, reach, draw=number).double() * scale
        step = (drawn + rng.child("round").uniform(None, (2, height * width), draw=number)).floor().long()
        source = place + torch.where(inside.flatten(), step[:, 0] * width + step[:, 1], 0)
        # Pixels are visited from the last to the first: a source further on has been replaced before, and so on.
        earlier = (source > place) & inside.flatten()[source]
        while bool(earlier.any()):
            source, earlier = torch.where(earlier, source.gather(1, source), source), earlier & earlier.gather(1, source)
        blurred = blurred.gather(2, source[:, None].expand_as(blurred))
    return _gaussian(blurred.view_as(x), scale, sigma).clamp_(0, 1)


def motion_blur(x: Tensor, rng: Randomness, scale: float, radius: int, sigma: float) -> Tensor:
    """A trail in a direction of -45 to 45 degrees, which fades as a gaussian over 2 radius + 1 pixels; edges repeated."""
    angle = torch.deg2rad(rng.uniform(None, (1,), low=-45.0, high=45.0)[:, 0].double())
    fading = torch.exp(-torch.arange(2 * radius + 1, dtype=torch.float64).square() / (2 * sigma**2))
    blurred = torch.zeros_like(x)
    for i, weight in enumerate((fading / fading.sum()).tolist()):
        down, right = (torch.ceil(i * part - 0.5) * scale for part in (angle.sin(), angle.cos()))
        blurred += weight * _shifted(_shifted(x, down, 2), right, 3)
    return blurred.clamp_(0, 1)


def zoom_blur(x: Tensor, rng: Randomness, scale: float, stop: float, step: float) -> Tensor:
    """The mean of the image and of its magnifications by 1, 1 + step, ... up to about ``stop``."""
    factors = np.arange(1, stop, step).tolist()
    total = x.clone()
    for factor in factors:
        down, right = (_zoom(round(side / scale), factor, side).to(x) for side in x.shape[2:])
        total += down @ x @ right.T
    return (total / (len(factors) + 1)).clamp_(0, 1)


def _gaussian(x: Tensor, scale: float, sigma: float) -> Tensor:
    taps = torch.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1, dtype=torch.float64)
    weights = torch.exp(-taps.square() / (2 * sigma**2))
    kernel = shrink((weights / weights.sum())[:, None], scale).to(x)
    half = len(kernel) // 2
    padded = F.pad(x, (half, half, half, half), mode="replicate").flatten(0, 1)[:, None]
    return F.conv2d(F.conv2d(padded, kernel[None, None]), kernel.T[None, None]).view_as(x)


@lru_cache(maxsize=32)
def disk(radius: float, alias: float) -> Tensor:
    """The kernel of a lens out of focus, float64, without empty rows and columns."""
    reach, half = (8, 1) if radius <= 8 else (int(radius), 2)
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    sharp = (place[:, None].square() + place.square() <= radius**2).double()
    sharp /= sharp.sum()
    soft = torch.exp(-torch.arange(-half, half + 1, dtype=torch.float64).square() / (2 * alias**2))
    soft /= soft.sum()
    smooth = F.conv2d(F.pad(sharp[None, None], (half,) * 4, mode="reflect"), torch.outer(soft, soft)[None, None])[0, 0]
    used = min(reach, int(radius) + half)
    return smooth[reach - used : reach + used + 1, reach - used : reach + used + 1]


def shrink(kernel: Tensor, scale: float) -> Tensor:
    """A kernel (2k + 1, m) with its rows ``scale`` <= 1 apart: each shared between the two nearest whole positions."""
    reach = len(kernel) // 2
    half = math.ceil(reach * scale)
    place = torch.arange(-reach, reach + 1, dtype=kernel.dtype) * scale
    share = (1 - (torch.arange(-half, half + 1, dtype=kernel.dtype)[:, None] - place).abs()).clamp(min=0)
    return share @ kernel


def _mirrored(side: int, pad: int, device: torch.device) -> Tensor:
    """(side + 2 pad,) positions of an image that goes on as its mirror image; the edge itself is not repeated."""
    period = max(2 * side - 2, 1)
    place = torch.arange(-pad, side + pad, device=device) % period
    return torch.minimum(place, period - place) if side > 1 else place


def _shifted(x: Tensor, by: Tensor, axis: int) -> Tensor:
    """What each image (n, C, H, W) has ``by`` (n,) pixels further along the axis; edges repeated, linear in between."""
    low = by.floor()
    share = (by - low).to(x.dtype)[:, None, None, None]
    side = x.shape[axis]
    place = torch.arange(side, device=x.device) + low.long()[:, None]
    shape = (-1, 1, side, 1) if axis == 2 else (-1, 1, 1, side)
    first, second = (x.gather(axis, (place + k).clamp(0, side - 1).view(shape).expand_as(x)) for k in (0, 1))
    return first + share * (second - first)


@lru_cache(maxsize=512)
def _zoom(reference: int, factor: float, side: int) -> Tensor:
    """(side, side) float64: linear interpolation along one axis of what a magnification shows.

    Of ``reference`` pixels it cuts out the middle, stretches that to round(factor * cut) pixels with the first and the last one
    kept, and trims; an image of fewer pixels is shown the same part.
    """
    cut = math.ceil(reference / factor)
    wide = round(cut * factor)
    slope = (cut - 1) / max(wide - 1, 1)
    start = (reference - cut) // 2 + slope * ((wide - reference) // 2)
    shrunk = side / reference
    shown = (torch.arange(side, dtype=torch.float64) + 0.5) / shrunk - 0.5
    place = ((start + slope * shown + 0.5) * shrunk - 0.5).clamp(0, side - 1)
    return (1 - (torch.arange(side) - place[:, None]).abs()).clamp(min=0)


# ------------------------------------------------------------------------------------------- weather, colour, compression


def fog(x: Tensor, rng: Randomness, scale: float, thickness: float, decay: float) -> Tensor:
    """A cloud is added and the whole darkened so that the brightest value stays in reach."""
    height, width = x.shape[2:]
    cloud = plasma(rng, max(2, 1 << (max(height, width) - 1).bit_length()), decay)[:, None, :height, :width].to(x.dtype)
    brightest = x.flatten(1).amax(1)[:, None, None, None]
    return ((x + thickness * cloud) * (brightest / (brightest + thickness))).clamp_(0, 1)


def plasma(rng: Randomness, side: int, decay: float) -> Tensor:
    """(n, side, side) float64 height maps in [0, 1] by the diamond-square algorithm; side: a power of two.

    Where the published code takes two neighbours on the wrong axis, so does this.
    """
    n = len(rng)
    heights = torch.zeros(n, side, side, dtype=torch.float64, device=rng.ids.device)
    step, size, number = side, 1.0, 0

    def around(total: Tensor) -> Tensor:
        nonlocal number
        number += 1
        return total / 4 + size * rng.uniform(None, total.shape[1:], draw=number, low=-1.0, high=1.0).double()

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = around(pairs + pairs.roll(-1, 2))
        centres = heights[:, half::step, half::step]
        level = centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)
        upright = centres + centres.roll(1, 2) + corners + corners.roll(-1, 2)
        heights[:, ::step, half::step], heights[:, half::step, ::step] = around(level), around(upright)
        step, size = half, size / decay**2
    low, high = heights.amin((1, 2), keepdim=True), heights.amax((1, 2), keepdim=True)
    return (heights - low) / (high - low)


def brightness(x: Tensor, rng: Randomness, scale: float, amount: float) -> Tensor:
    """The value of HSV, the largest of a pixel's channels, rises by ``amount``; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, x * (brighter / value.clamp(min=1e-12)), brighter).clamp_(0, 1)


def contrast(x: Tensor, rng: Randomness, scale: float, share: float) -> Tensor:
    """Only a share of each value's distance from its channel's mean is left."""
    mean = x.mean((2, 3), keepdim=True)
    return ((x - mean) * share + mean).clamp_(0, 1)


def pixelate(x: Tensor, rng: Randomness, scale: float, share: float) -> Tensor:
    """Resized to a share of its sides and back, by averaging over boxes."""
    down, right = (_box(side, max(1, int(side * share))).to(x) for side in x.shape[2:])
    up, left = (_box(max(1, int(side * share)), side).to(x) for side in x.shape[2:])
    return (up @ (down @ x @ right.T) @ left.T).clamp_(0, 1)


@lru_cache(maxsize=64)
def _box(old: int, new: int) -> Tensor:
    """(new, old) float64: averages over the pixels whose middle is in the box of each new pixel.

    Where a middle is at the edge of a box, rounding decides; it is done as Pillow does it.
    """
    place, ratio = torch.arange(old), old / new
    middle, size = ((torch.arange(new, dtype=torch.float64) + 0.5) * ratio)[:, None], max(ratio, 1.0)
    near = (place >= (middle - size / 2 + 0.5).long()) & (place < (middle + size / 2 + 0.5).long())
    distance = (place - middle + 0.5) * (1 / size)
    weights = (near & (distance > -0.5) & (distance <= 0.5)).double()
    return weights / weights.sum(1, keepdim=True)


def jpeg(x: Tensor, rng: Randomness, scale: float, quality: int) -> Tensor:
    """Written and read again by Pillow, image by image: 4:2:0. Grey and colour; otherwise channel by channel."""
    n, channels, height, width = x.shape
    pixels = (x * 255).round().to(torch.uint8).cpu()
    planes = pixels.permute(0, 2, 3, 1) if channels == 3 else pixels.reshape(n * channels, height, width)
    read = []
    for plane in planes.numpy():
        packed = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(plane)).save(packed, "JPEG", quality=quality)
        read.append(np.asarray(Image.open(packed)))
    found = torch.from_numpy(np.stack(read)).to(x.device)
    return (found.permute(0, 3, 1, 2) if channels == 3 else found.view_as(x)).to(x.dtype) / 255
