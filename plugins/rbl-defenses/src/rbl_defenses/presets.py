"""What the data set decides of a training run: the radius to train for, and how long and with which augmentation.

digits: eps 0.15, 60 epochs and 5 inner steps of eps / 2 separate the methods well. MNIST: eps 0.3. ImageNet: eps 4/255. Others:
8/255. The l2 radii of digits, MNIST and photographs are those that the protocols attack with. Images are mirrored only where a
mirrored object is still the same: photographs, but neither house numbers nor data not known here. The numbers of epochs for
MNIST and larger images are what two cores carry with the small network, not the literature's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robustbench_lite import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class Preset:
    """eps: linf radius. l2, l1: their radii. steps and relative_step: of the inner PGD, its step in units of the radius."""

    eps: float
    l2: float
    l1: float
    steps: int
    relative_step: float
    epochs: int
    lr: float = 0.1
    shift: int = 0
    flip: bool = False
    ramp: float = 0.25

    def radius(self, norm: Literal["linf", "l2"]) -> float:
        """The radius of a norm."""
        return self.eps if norm == "linf" else self.l2


_PRESETS = {
    "digits": Preset(eps=0.15, l2=0.6, l1=2.0, steps=5, relative_step=0.5, epochs=60, shift=1),
    "mnist": Preset(eps=0.3, l2=2.0, l1=10.0, steps=10, relative_step=0.25, epochs=6, lr=0.05, ramp=0.5),
    "fashion-mnist": Preset(eps=0.1, l2=1.5, l1=10.0, steps=10, relative_step=0.25, epochs=6, lr=0.05, ramp=0.5),
}
# Data sets of photographs.
_MIRRORED = ("cifar10", "cifar100", "imagenet")


def preset(info: DatasetInfo) -> Preset:
    """The preset of a data set by its short name; for others eps 8/255 and shifts by an eighth of the image, up to 4 pixels."""
    shift, eps = min(4, min(info.shape[1:]) // 8), (4 if info.name == "imagenet" else 8) / 255
    other = Preset(eps=eps, l2=0.5, l1=12.0, steps=10, relative_step=0.25, epochs=30, shift=shift, flip=info.name in _MIRRORED)
    return _PRESETS.get(info.name, other)
