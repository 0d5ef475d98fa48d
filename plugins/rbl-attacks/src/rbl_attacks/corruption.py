"""Common corruptions (Hendrycks & Dietterich, 2019, arXiv:1903.12261): what happens to images without an adversary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from rbl_attacks import degrade
from robustbench_lite import Randomness, Target, Threat

Name = Literal[
    "gaussian-noise",
    "shot-noise",
    "impulse-noise",
    "defocus-blur",
    "glass-blur",
    "motion-blur",
    "zoom-blur",
    "fog",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg",
    "speckle-noise",
    "gaussian-blur",
]

Settings = tuple[tuple[float, ...], ...]

# Function, and its parameters at severity 1 to 5: for CIFAR-10-C, for ImageNet-C.
CORRUPTIONS: dict[str, tuple[Callable[..., Tensor], Settings, Settings]] = {
    "gaussian-noise": (
        degrade.gaussian_noise,
        ((0.04,), (0.06,), (0.08,), (0.09,), (0.1,)),
        ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    ),
    "shot-noise": (degrade.shot_noise, ((500,), (250,), (100,), (75,), (50,)), ((60,), (25,), (12,), (5,), (3,))),
    "impulse-noise": (
        degrade.impulse_noise,
        ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    ),
    "defocus-blur": (
        degrade.defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass-blur": (
        degrade.glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion-blur": (
        degrade.motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom-blur": (
        degrade.zoom_blur,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "fog": (
        degrade.fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": (
        degrade.brightness,
        ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
        ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    ),
    "contrast": (
        degrade.contrast,
        ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
        ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    ),
    "pixelate": (
        degrade.pixelate,
        ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
        ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    ),
    "jpeg": (degrade.jpeg, ((80,), (65,), (58,), (50,), (40,)), ((25,), (18,), (15,), (10,), (7,))),
    "speckle-noise": (
        degrade.speckle_noise,
        ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),
        ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,)),
    ),
    "gaussian-blur": (degrade.gaussian_blur, ((0.4,), (0.6,), (0.7,), (0.8,), (1,)), ((1,), (2,), (3,), (4,), (6,))),
}

# Shorter sides of the images that the tables were made for, and the least that counts as an image of ImageNet.
SIDES = {"cifar": 32, "imagenet": 224}
LARGE = 64

# Values that are corrupted at once.
PIECE = 1 << 23


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One draw of one corruption; the defense is asked nothing.

    name: of the fifteen of ImageNet-C all but snow, frost and elastic transform, or ``speckle-noise`` and ``gaussian-blur`` of
    its validation set. severity: 1 to 5. table: of whose parameters, ``cifar`` or ``imagenet``; ``auto``
    takes ``imagenet`` from 64 pixels on. Shorter sides than 32 or 224 shrink all lengths in pixels by the same ratio.

    Only examples that are classified correctly are corrupted, and a clean error stays one: published accuracies, which also
    count what a corruption happens to set right, are higher by that. The published files hold bytes, rounded down; these images
    are not rounded. Motion blur is the published formula, not ImageMagick's program.
    """

    name: Name
    severity: Annotated[int, Field(ge=1, le=5)]
    table: Literal["auto", "cifar", "imagenet"] = "auto"

    def passes(self, num_classes: int) -> int:
        """Forward and backward passes per example."""
        return 0

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        side = min(x.shape[2:])
        table = self.table if self.table != "auto" else "imagenet" if side >= LARGE else "cifar"
        function, cifar, imagenet = CORRUPTIONS[self.name]
        settings = (cifar if table == "cifar" else imagenet)[self.severity - 1]
        stream, scale = rng.child(self.name), min(1.0, side / SIDES[table])
        rows, several = torch.arange(len(x), device=x.device), max(1, PIECE // x[0].numel())
        corrupted = torch.empty_like(x)
        for first in range(0, len(x), several):
            piece = rows[first : first + several]
            corrupted[piece] = function(x[piece], stream.select(piece), scale, *settings)
        return threat.project(x, corrupted)
