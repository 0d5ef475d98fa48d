"""A barrage of random transforms (BaRT; Raff et al., CVPR 2019): several weak defenses, another choice for each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from rbl_defenses import weak_transforms
from rbl_defenses.behind import Behind, TrainedBehind
from robustbench_lite import DatasetInfo, UsageError, rand_like, randn_like

# What digits are put through: those transforms that leave images of 8x8 grey pixels legible.
GREY = ("precision", "gaussian-noise", "salt-and-pepper", "frequencies", "blur", "median", "contrast", "zoom")


@dataclass(frozen=True, kw_only=True)
class BaRT:
    """Put each image through a random choice of weak transforms in random order, before the base defense sees it.

    base: the defense that classifies; the paper's is trained on transformed images, as ``bart-training`` is. transforms: their
    names (see ``weak_transforms.py``); empty for eight with grey images, and for all nineteen with colour. count: how many
    are chosen for an image; None for 3 with grey images and 5 with others.

    What cannot be differentiated is passed straight through. The paper's histogram equalisations, its wavelet and
    total-variation denoising, and two of its colour spaces are left out; ranges are reconstructed.
    """

    base: str = "standard"
    transforms: tuple[str, ...] = ()
    count: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.transforms) - set(weak_transforms.EVERY)):
            raise ValueError(f"unknown transforms {', '.join(unknown)}; known: {', '.join(weak_transforms.EVERY)}")
        if len(set(self.transforms)) < len(self.transforms):
            raise ValueError("a transform is named twice, and each is used once at most")

    def __call__(self, info: DatasetInfo, base: nn.Module) -> nn.Module:
        """The module; it draws anew in every pass.

        Raises UsageError for transforms that do not fit the images, or more of them to choose than there are.
        """
        channels = info.shape[0]
        fit = weak_transforms.ANY | (weak_transforms.GREY_OR_COLOUR if channels in (1, 3) else {})
        fit |= weak_transforms.COLOUR if channels == 3 else {}
        names = self.transforms or (GREY if channels == 1 else tuple(fit))
        if unfit := [name for name in names if name not in fit]:
            raise UsageError(f"bart: {', '.join(unfit)} cannot be used on images of {channels} channels")
        count = self.count or min(len(names), 3 if channels == 1 else 5)
        if count > len(names):
            raise UsageError(
                f"bart: count={count} transforms are to be chosen from {len(names)}", hint="name more, or lower count"
            )
        return Behind(base, lambda x: scrambled(x, names, count))


@dataclass(frozen=True, kw_only=True)
class BaRTTraining(TrainedBehind):
    """Another method, whose network sees images behind a barrage of random transforms from the start, and in use.

    method: that one. transforms, count: as for ``bart``.
    """

    method: str = "standard"
    transforms: tuple[str, ...] = ()
    count: Annotated[int, Field(ge=1)] | None = None

    def wrapper(self) -> BaRT:
        return BaRT(transforms=self.transforms, count=self.count)


def scrambled(x: Tensor, names: tuple[str, ...], count: int) -> Tensor:
    """Each image (n, C, H, W) after ``count`` of the named transforms, clipped to [0, 1] after each."""
    order = rand_like(x.new_empty(len(x), len(names))).argsort(dim=1, stable=True)
    u = rand_like(x.new_empty(len(x), count, 4))
    for step in range(count):
        z = randn_like(x)
        for k, name in enumerate(names):
            rows = (order[:, step] == k).nonzero()[:, 0]
            if len(rows):
                changed = weak_transforms.EVERY[name](x[rows], u[rows, step], z[rows])
                x = x.index_copy(0, rows, changed.clamp(0, 1))
    return x
