"""A latent space of images in which classes lie apart: a variational auto-encoder with a classifier on its codes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 256
# Weight of the divergence from the prior: at 1 the codes of small images keep too little of them to tell their classes.
DIVERGENCE = 0.1


class LatentSpace(nn.Module):
    """Encoder, decoder and latent classifier, each of one hidden layer. shape: of an image in [0, 1]. size: of a code."""

    def __init__(self, shape: tuple[int, ...], classes: int, size: int) -> None:
        super().__init__()
        self.shape, self.classes, pixels = shape, classes, math.prod(shape)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * size))
        self.decoder = nn.Sequential(nn.Linear(size, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, pixels), nn.Sigmoid())
        self.classifier = nn.Sequential(nn.Linear(size, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the codes (n, size) of images (n, C, H, W)."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """Images (n, C, H, W) in [0, 1] of codes (n, size)."""
        pixels: Tensor = self.decoder(z)
        return pixels.view(-1, *self.shape)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Bernoulli likelihood of the pixels and weighted divergence from N(0, I) (Higgins et al., "beta-VAE", ICLR 2017),
        plus the cross-entropy of the latent classifier; the mean over images.
        """
        mean, log_variance = self.encode(x)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        pixels = F.binary_cross_entropy(self.decode(z), x, reduction="sum")
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        return (pixels + DIVERGENCE * divergence) / len(x) + F.cross_entropy(self.classifier(z), y)

    def fit(self, x: Tensor, y: Tensor, *, steps: int, vary: Callable[[Tensor], Tensor]) -> None:
        """Train it by Adam, on random batches of 128 images, which ``vary`` augments, and fix it."""
        optimiser = torch.optim.Adam(self.parameters(), lr=1e-3)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,), device=x.device)
            optimiser.zero_grad()
            self.loss(vary(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        self.requires_grad_(False)

    def path(self, z: Tensor, target: Tensor, *, steps: int, step: float) -> Tensor:
        """(steps + 1, n, size): codes on the way from z (n, size) down the cross-entropy of the classes ``target`` (n,)."""
        points = [z.detach()]
        for _ in range(steps):
            leaf = points[-1].requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(self.classifier(leaf), target, reduction="sum"), leaf)
            points[-1] = leaf.detach()
            points.append(leaf.detach() - step * grad)
        return torch.stack(points)
