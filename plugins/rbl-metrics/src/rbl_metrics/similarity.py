"""How alike two images look: structural similarity and peak signal-to-noise ratio, from the images themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIGMA = 1.5  # of the Gaussian window, in pixels
WINDOW = 11
K1, K2 = 0.01, 0.03


def ssim(x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """(n,) structural similarity of images (n, C, H, W) in [0, 1], in [-1, 1], 1 for equal ones (Wang et al., 2004).

    A Gaussian window of 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, population covariances; the mean over channels and over
    the positions at which the window lies inside the image. On images of fewer than 11 pixels the window shrinks to the largest
    odd number that fits. Raises ValueError where the shapes differ or are not (n, C, H, W).
    """
    from scipy.ndimage import gaussian_filter

    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(f"two batches of images (n, C, H, W) of one shape are compared, not {a.shape} and {b.shape}")
    side = min(WINDOW, *a.shape[2:])
    radius = (side - 1) // 2

    def blurred(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        found = gaussian_filter(values, SIGMA, axes=(2, 3), radius=radius)
        return np.asarray(found[:, :, radius : a.shape[2] - radius, radius : a.shape[3] - radius])

    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return np.asarray((above / below).mean(axis=(1, 2, 3)))


def psnr(x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """(n,) peak signal-to-noise ratio in dB of images (n, ...) in [0, 1], -10 log10 of the mean squared change; inf for equal.

    Of stored results the metric ``signal-to-noise`` gives it without the images. Raises ValueError where the shapes differ.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"images of one shape are compared, not {a.shape} and {b.shape}")
    change = np.square(a - b).reshape(len(a), -1).mean(1)
    with np.errstate(divide="ignore"):
        return np.asarray(-10 * np.log10(change))
