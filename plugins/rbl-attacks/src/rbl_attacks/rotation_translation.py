"""Rotations and translations (Engstrom et al., "Exploring the landscape of spatial robustness", 2019, arXiv:1712.02779)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rbl_attacks.best import Best
from rbl_attacks.decision import affords
from rbl_attacks.margins import lead
from robustbench_lite import Randomness, Target, Threat

# The published grid: this many rotations, and this many translations along each axis.
ROTATIONS, TRANSLATIONS = 31, 5


@dataclass(frozen=True, kw_only=True)
class RotationTranslation:
    """The worst of several rotated and shifted copies of the image, with black where nothing was.

    degrees: largest rotation, either way. pixels: largest shift along each axis, either way; None for a tenth of that side
    in whole pixels: 3 at 28 and at 32. samples: random copies, uniform within both limits; ``grid`` for 31 rotations and 5 x 5
    translations instead, evenly spaced from limit to limit. Examples leave at the first copy that beats them.

    Between pixels it interpolates bilinearly. Images need not be square: they turn in units of pixels, about their centre.
    The grid is tried from the largest changes to the smallest, and without the unchanged image: same outcome, fewer passes.
    """

    degrees: Annotated[float, Field(ge=0, le=180)] = 30.0
    pixels: Annotated[float, Field(ge=0)] | None = None
    samples: Annotated[int, Field(ge=1)] | Literal["grid"] = 10

    def passes(self, num_classes: int) -> int:
        """Forward passes per example that is never beaten; for images of more than a few pixels."""
        if isinstance(self.samples, int):
            return self.samples
        shift = 0.0 if self.pixels == 0 else 1.0
        return len(grid(self.degrees, shift, shift))

    def __call__(self, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness) -> Tensor:
        limits = self._limits(*x.shape[2:])
        listed = () if isinstance(self.samples, int) else grid(*limits)
        best = Best(x)
        for number in range(self.samples if isinstance(self.samples, int) else len(listed)):
            rows = (~target.broken).nonzero()[:, 0]
            left = rows[affords(target, rows)]
            if not len(left):
                break
            if listed:
                motion = x.new_tensor(listed[number], dtype=torch.float64).expand(len(left), 3)
            else:
                drawn = rng.uniform(left, (3,), draw=number, low=-1.0, high=1.0)
                motion = drawn.double() * drawn.new_tensor(limits, dtype=torch.float64)
            moved = threat.project(x[left], rotate_translate(x[left], *motion.unbind(1)))
            best.keep(left, moved, lead(target.logits(moved, left), y[left], target.num_classes))
        return target.best(best.points)

    def _limits(self, height: int, width: int) -> tuple[float, float, float]:
        """The largest rotation in degrees, and the largest shifts down and to the right in pixels."""
        down, right = (round(side / 10) if self.pixels is None else self.pixels for side in (height, width))
        return self.degrees, down, right


@lru_cache(maxsize=64)
def grid(degrees: float, down: float, right: float) -> tuple[tuple[float, float, float], ...]:
    """All rotations with all translations, the largest first, each once and without the one that changes nothing."""
    counts = (ROTATIONS, TRANSLATIONS, TRANSLATIONS)
    steps = [[2 * i / (count - 1) - 1 for i in range(count)] for count in counts]  # from -1 to 1
    ordered = sorted(product(*steps), key=lambda step: -sum(share**2 for share in step))
    points = [(turn * degrees, fall * down, shift * right) for turn, fall, shift in ordered]
    return tuple(point for point in dict.fromkeys(points) if any(point))


def rotate_translate(x: Tensor, degrees: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Images (n, C, H, W) turned counter-clockwise about their centres, then moved; each by its own (n,), in float64.

    Bilinear, zero outside. The positions are computed in float64: whole pixels and quarter turns come out exactly.
    """
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device, dtype=torch.float64) - (height - 1) / 2
    columns = torch.arange(width, device=x.device, dtype=torch.float64) - (width - 1) / 2
    # Where each pixel comes from: the way back, relative to the centre. Rows count downwards.
    v = rows[None, :, None] - down[:, None, None]
    u = columns[None, None, :] - right[:, None, None]
    cosine, sine = torch.cos(torch.deg2rad(degrees))[:, None, None], torch.sin(torch.deg2rad(degrees))[:, None, None]
    source = torch.stack([(cosine * u - sine * v) * (2 / width), (sine * u + cosine * v) * (2 / height)], 3)
    moved = F.grid_sample(x.double(), source, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.to(x.dtype)
