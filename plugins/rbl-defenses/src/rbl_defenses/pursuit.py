"""Networks whose activations are sparse codes, found by iterations that all layers share.

Codes x_1, ..., x_L >= 0 of an image x_0 minimise E = 1/2 sum_l ||x_l - sum_k D_lk x_k||^2 + sum_k <b_k, x_k>, in which layer k
explains layer l by the dictionary D_lk: each layer the one below it and, with skips, the one below that. The first guess is
the feed-forward pass x_k = relu(sum_l D_lk^T x_l - b_k); each further iteration is a proximal gradient step on all codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rbl_defenses.normalise import Normalise
from robustbench_lite import DatasetInfo

# Power iterations on a new network; in training, each pass makes one more.
FIRST = 20


class UnitLength(nn.Module):
    """Each filter divided by its length."""

    def forward(self, weight: Tensor) -> Tensor:
        return F.normalize(weight.flatten(1)).view_as(weight)


class Dictionary(nn.Module):
    """Atoms, filters of length 1, by which codes (n, C, h, w) of the layer above explain maps (n, c, H, W) of that below."""

    def __init__(self, below: int, above: int, widths: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.below, self.above = below, above
        layers = range(below + 1, above + 1)
        size = 2 * len(layers) + 1
        self.stride, self.padding = torch.Size(strides[layer] for layer in layers).numel(), size // 2
        atoms = torch.randn(widths[above], widths[below], size, size)
        # Of length 1 from the start: the longer a filter is, the less a step of the optimiser turns it.
        self.weight = nn.Parameter(UnitLength()(atoms))
        parametrize.register_parametrization(self, "weight", UnitLength())

    def analyse(self, maps: Tensor) -> Tensor:
        """D^T maps: how much of each atom is in them."""
        return F.conv2d(maps, self.weight, None, self.stride, self.padding)

    def synthesise(self, codes: Tensor, like: Tensor) -> Tensor:
        """D codes: maps of the size of ``like``, to which the transposed convolution leaves a choice."""
        least = [(part - 1) * self.stride + 1 for part in codes.shape[2:]]  # filters are odd, and padded by half of it
        beyond = [full - part for full, part in zip(like.shape[2:], least, strict=True)]
        return F.conv_transpose2d(codes, self.weight, None, self.stride, self.padding, beyond)


class Pursuit(nn.Module):
    """Three layers of codes with the sizes of ``small_cnn``, and a linear classifier on the last, normalised.

    steps: iterations, of which the first is the feed-forward pass; 1 makes an ordinary network. step: length of the others, in
    units of 1 / L, L the Lipschitz constant of E's gradient, which power iteration follows in training; up to 1, none raises E.
    joint: one problem for all layers; otherwise one after the other, each with the codes below it held fixed (layered basis
    pursuit). skips: each layer explains the second below it, too, which the latter has no place for.
    """

    def __init__(self, info: DatasetInfo, width: int, *, steps: int, step: float, joint: bool, skips: bool) -> None:
        super().__init__()
        channels, height, columns = info.shape
        self.shape, self.steps, self.step, self.joint = info.shape, steps, step, joint
        widths, strides = (channels, width, 2 * width, 2 * width), (1, 1, 2, 2 if min(height, columns) > 16 else 1)
        links = [(0, 1), (1, 2), (2, 3), *([(0, 2), (1, 3)] if skips else [])]
        self.dictionaries = [Dictionary(below, above, widths, strides) for below, above in links]
        self.links = nn.ModuleList(self.dictionaries)
        self.thresholds = nn.ParameterList(torch.zeros(w, 1, 1) for w in widths[1:])
        self.normalise = Normalise(info)
        self.register_buffer("lipschitz", torch.ones(()))
        with torch.no_grad():
            codes = self.feed_forward(torch.zeros(1, *info.shape))[1:]
            for number, code in enumerate(codes, 1):
                self.register_buffer(f"probe_{number}", torch.rand_like(code))
            for _ in range(FIRST):
                self.follow_lipschitz()
        self.classifier = nn.Sequential(
            nn.BatchNorm2d(widths[-1]), nn.Flatten(), nn.Linear(codes[-1].numel(), info.num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.codes(x)[-1])
        return logits

    def codes(self, x: Tensor) -> list[Tensor]:
        """The normalised images (n, C, H, W), and the codes of each layer."""
        if self.training:
            with torch.no_grad():  # outside of the cache, which would keep atoms without a gradient
                self.follow_lipschitz()
        with parametrize.cached():
            return self.deep(self.normalise(x)) if self.joint else self.layered(self.normalise(x))

    def deep(self, x: Tensor) -> list[Tensor]:
        """Codes of all layers at once."""
        codes = self.feed_forward(x)
        for _ in range(self.steps - 1):
            slopes = self.gradient(self.residuals(codes))
            codes = [x, *(self.proximal(k, code, slope) for k, (code, slope) in enumerate(zip(codes[1:], slopes, strict=True)))]
        return codes

    def layered(self, x: Tensor) -> list[Tensor]:
        """Codes of one layer after the other."""
        codes = [x]
        for k, dictionary in enumerate(self.dictionaries):
            below = codes[-1]
            code = F.relu(dictionary.analyse(below) - self.thresholds[k])
            for _ in range(self.steps - 1):
                code = self.proximal(k, code, -dictionary.analyse(below - dictionary.synthesise(code, below)))
            codes.append(code)
        return codes

    def proximal(self, k: int, code: Tensor, slope: Tensor) -> Tensor:
        """A step down the slope of the squares, and by the threshold towards 0."""
        return F.relu(code - self.step / self.get_buffer("lipschitz") * (slope + self.thresholds[k]))

    def feed_forward(self, x: Tensor) -> list[Tensor]:
        """The images, and the codes that one pass finds."""
        codes = [x]
        for k, threshold in enumerate(self.thresholds, 1):
            found = [d.analyse(codes[d.below]) for d in self.dictionaries if d.above == k]
            codes.append(F.relu(torch.stack(found).sum(0) - threshold))
        return codes

    def residuals(self, codes: list[Tensor]) -> list[Tensor]:
        """What the layers above leave of each layer but the last: x_l - sum_k D_lk x_k."""
        left = list(codes[:-1])
        for d in self.dictionaries:
            left[d.below] = left[d.below] - d.synthesise(codes[d.above], codes[d.below])
        return left

    def gradient(self, residuals: list[Tensor]) -> list[Tensor]:
        """Of half the sum of their squares, by the codes of each layer."""
        slopes = [*residuals[1:], torch.zeros_like(self.get_buffer(f"probe_{len(residuals)}"))]
        for d in self.dictionaries:
            slopes[d.above - 1] = slopes[d.above - 1] - d.analyse(residuals[d.below])
        return slopes

    def energy(self, codes: list[Tensor]) -> Tensor:
        """(n,) E of images and their codes, summed over channels and positions."""
        squares = [0.5 * left.square().flatten(1).sum(1) for left in self.residuals(codes)]
        penalties = [(b * code).flatten(1).sum(1) for b, code in zip(self.thresholds, codes[1:], strict=True)]
        return torch.stack(squares + penalties).sum(0)

    def follow_lipschitz(self) -> None:
        """One power iteration on the squares' second derivative, whose largest eigenvalue is the Lipschitz constant."""
        probes = [self.get_buffer(f"probe_{k}") for k in range(1, len(self.thresholds) + 1)]
        turned = self.gradient(self.residuals([probes[0].new_zeros(1, *self.shape), *probes]))
        size = torch.stack([probe.square().sum() for probe in turned]).sum().sqrt()
        self.get_buffer("lipschitz").copy_(size)
        for probe, new in zip(probes, turned, strict=True):
            probe.copy_(new / size)
