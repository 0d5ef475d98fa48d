"""Weak random transformations of images, each harmless by itself: what a barrage is made of.

A transform is called with images (m, C, H, W) in [0, 1], four uniform numbers for each (m, 4), and standard normal ones of the
images' shape. It returns images of that shape, which may leave [0, 1]. What autograd gives no gradient for is passed straight
through (BPDA). Lengths go by the images' shorter side.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rbl_defenses import filters
from rbl_defenses.jpeg import compress
from robustbench_lite import bpda

Transform = Callable[[Tensor, Tensor, Tensor], Tensor]

QUALITIES = (55, 65, 75, 85, 95)
TO_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Uniform numbers (m,) brought from [0, 1) to [low, high), as (m, 1, 1, 1)."""
    return (low + (high - low) * u).view(-1, 1, 1, 1)


def share(z: Tensor) -> Tensor:
    """Uniform numbers from standard normal ones."""
    found: Tensor = torch.special.ndtr(z)
    return found


# ------------------------------------------------------------------------------------------------------- lossy compression


def precision(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """8 to 200 levels."""
    levels = between(u[:, 0], 8, 201).floor()
    return bpda(lambda image: filters.quantise(image, levels), "identity")(x)


def jpeg(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """One of five qualities."""
    chosen = (u[:, 0] * len(QUALITIES)).long()

    def compressed(image: Tensor) -> Tensor:
        for k, quality in enumerate(QUALITIES):
            rows = (chosen == k).nonzero()[:, 0]
            if len(rows):
                image = image.index_copy(0, rows, compress(image[rows], quality))
        return image

    return bpda(compressed, "identity")(x)


def frequencies(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Up to 30 % of the coefficients of the Fourier transform are dropped, never the mean."""
    spectrum = torch.fft.rfft2(x)
    kept = share(z[..., : spectrum.shape[-1]]) >= between(u[:, 0], 0, 0.3)
    kept[..., 0, 0] = True
    image: Tensor = torch.fft.irfft2(spectrum * kept, s=x.shape[2:])
    return image


# ------------------------------------------------------------------------------------------------------------------ noise


def gaussian_noise(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Of a deviation up to 0.1."""
    return x + between(u[:, 0], 0, 0.1) * z


def speckle(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Noise in proportion to each value, up to 0.3 of it."""
    return x * (1 + between(u[:, 0], 0, 0.3) * z)


def shot_noise(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Noise whose variance is in proportion to each value, up to 0.01 of it: Poisson noise of many photons."""
    return x + ((between(u[:, 0], 0, 0.01) * x).sqrt() * z).detach()  # the root has no gradient at 0


def salt_and_pepper(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Up to 5 % of the values become 0 or 1."""
    chance, amount = share(z), between(u[:, 0], 0, 0.05)
    return torch.where(chance < amount / 2, 1.0, torch.where(chance < amount, 0.0, x))


# -------------------------------------------------------------------------------------------------------------- smoothing


def blur(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """A gaussian of up to 1/32 of the side beside a tenth of a pixel, 3 pixels at most."""
    widest = min(3.0, 0.1 + min(x.shape[2:]) / 32)
    return filters.gaussian(x, between(u[:, 0], 0.1, widest), math.ceil(3 * widest))


def mean_blur(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """The mean with up to half of the mean over the next pixels."""
    return torch.lerp(x, filters.mean(x, small_window(x)), between(u[:, 0], 0, 0.5))


def median(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """The median of the next pixels."""
    return filters.median(x, small_window(x))


def small_window(x: Tensor) -> int:
    """2 pixels for images of fewer than 16, else 3."""
    return 2 if min(x.shape[2:]) < 16 else 3


def alike(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Non-local means with a share of up to 1."""
    return torch.lerp(x, filters.non_local_means(x, 7, 3, 10.0), between(u[:, 0], 0, 1))


# ---------------------------------------------------------------------------------------------------- brightness and colour


def contrast(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Stretched so that up to 4 % of the values at either end are cut off."""
    values = x.flatten(1).sort(1).values
    last = values.shape[1] - 1
    cuts = torch.stack([(0.04 * u[:, 0] * last).round(), last - (0.04 * u[:, 1] * last).round()], 1).long()
    low, high = values.gather(1, cuts).view(-1, 2, 1, 1, 1).unbind(1)
    return (x - low) / (high - low).clamp(min=0.1)


def gamma(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Values to a power of 0.7 to 1.4."""
    return x.clamp(min=1e-3) ** between(u[:, 0], 0.7, 1.4)


def tint(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """A constant colour is added: up to 0.05 of luminance, 0.02 of either chrominance."""
    shift = torch.stack([0.1 * (u[:, 0] - 0.5), 0.04 * (u[:, 1] - 0.5), 0.04 * (u[:, 2] - 0.5)], 1)
    return x + (shift @ from_yiq(x).T)[:, :, None, None]


def hue(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Hues turned by up to 18 degrees, saturation times 0.75 to 1.25."""
    angle, factor = 0.2 * math.pi * (u[:, 0] - 0.5), 0.75 + 0.5 * u[:, 1]
    cosine, sine = factor * angle.cos(), factor * angle.sin()
    turned = torch.zeros(len(x), 3, 3, dtype=x.dtype, device=x.device)
    turned[:, 0, 0] = 1
    turned[:, 1, 1], turned[:, 1, 2], turned[:, 2, 1], turned[:, 2, 2] = cosine, -sine, sine, cosine
    matrix = from_yiq(x) @ turned @ x.new_tensor(TO_YIQ)
    return (matrix @ x.flatten(2)).view_as(x)


def grey(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Grey, mixed from the channels by chance."""
    weights = (u[:, : x.shape[1]] + 1e-3).view(len(x), -1, 1, 1)
    return ((x * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)).expand_as(x)


def partly_grey(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Between colour and grey."""
    return torch.lerp(x, grey(x, u, z), between(u[:, 3], 0, 1))


def from_yiq(x: Tensor) -> Tensor:
    """(3, 3), like ``x``: YIQ to RGB."""
    inverse: Tensor = torch.linalg.inv(torch.tensor(TO_YIQ, dtype=torch.float64))
    return inverse.to(x)


# --------------------------------------------------------------------------------------------------------------- geometry


def zoom(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """A part of 85 to 100 % of either side, at a random place, enlarged to the whole."""
    size = 0.85 + 0.15 * u[:, :2]
    centre = (1 - size) * (2 * u[:, 2:] - 1)
    zeros = torch.zeros_like(size[:, 0])
    rows = [torch.stack([size[:, 0], zeros, centre[:, 0]], 1), torch.stack([zeros, size[:, 1], centre[:, 1]], 1)]
    return sampled(x, F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False))


def swirl(x: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Turned about the middle by up to 0.4 radians, and less outwards, within a radius of 5 to 90 % of the side."""
    identity = x.new_tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).expand(len(x), 2, 3)
    grid = F.affine_grid(identity, list(x.shape), align_corners=False)
    reach = 2 * math.log(2) / 5 * (0.05 + 0.85 * u[:, 0])
    angle = 0.4 * u[:, 1, None, None] * (-grid.norm(dim=3) / reach[:, None, None]).exp()
    across, down = grid.unbind(3)
    turned = (angle.cos() * across - angle.sin() * down, angle.sin() * across + angle.cos() * down)
    return sampled(x, torch.stack(turned, 3))


def sampled(x: Tensor, grid: Tensor) -> Tensor:
    """Images at the places of a grid, by linear interpolation; edges repeated."""
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


ANY: dict[str, Transform] = {
    "precision": precision,
    "frequencies": frequencies,
    "gaussian-noise": gaussian_noise,
    "speckle": speckle,
    "shot-noise": shot_noise,
    "salt-and-pepper": salt_and_pepper,
    "blur": blur,
    "mean-blur": mean_blur,
    "median": median,
    "non-local-means": alike,
    "contrast": contrast,
    "gamma": gamma,
    "zoom": zoom,
    "swirl": swirl,
}
GREY_OR_COLOUR: dict[str, Transform] = {"jpeg": jpeg}  # 1 or 3 channels
COLOUR: dict[str, Transform] = {"tint": tint, "hue": hue, "grey": grey, "partly-grey": partly_grey}
EVERY = ANY | GREY_OR_COLOUR | COLOUR
