"""LQ-VAE (Kyatham et al., 2019, arXiv:1903.09940): a filter that brings images back to the data, whatever classifies them.

A reconstruction from the abstract: a variational auto-encoder whose encoder is held Lipschitz and whose code is quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from rbl_defenses.behind import through
from robustbench_lite import DatasetInfo, FittedDefense, bpda
from robustbench_lite.training import Context

EXAMPLES = 60_000
BATCH = 128


@dataclass(frozen=True, kw_only=True)
class LQVAE(FittedDefense):
    """Encode, quantise and decode each image before the base defense sees it.

    base: the defense that classifies; the filter is fitted without it. latents: size of the code; None for 16 up to 256 pixels
    and 64 beyond. levels: values of each coordinate, equally far apart in [-1, 1]. width: channels. beta: weight of
    KL(q(z|x) || N(0, I)) beside the squared error summed over pixels. steps: of Adam, with 128 images each.
    """

    base: str = "standard"
    latents: Annotated[int, Field(ge=1)] | None = None
    levels: Annotated[int, Field(ge=2)] = 6
    width: Annotated[int, Field(ge=1)] = 32
    beta: Annotated[float, Field(ge=0)] = 0.02
    steps: Annotated[int, Field(ge=1)] = 6000
    lr: Annotated[float, Field(gt=0)] = 1e-3

    def architecture(self, info: DatasetInfo, base: nn.Module) -> nn.Module:
        """The module; its ``surrogate`` passes gradients straight through the rounding of the code."""
        small = info.shape[1] * info.shape[2] <= 256
        return Purified(base, Filter(info, self.latents or (16 if small else 64), self.levels, self.width))

    def fit(self, module: nn.Module, context: Context) -> Mapping[str, float]:
        if not isinstance(module, Purified):
            raise TypeError(f"{type(module).__name__} is no Purified")
        vae, (x, _) = module.filter.train().requires_grad_(True), context.examples(EXAMPLES)
        optimiser = torch.optim.Adam(vae.parameters(), lr=self.lr)
        for _ in range(self.steps):
            batch = x[torch.randint(0, len(x), (min(BATCH, len(x)),), device=x.device)]
            optimiser.zero_grad()
            vae.loss(batch, self.beta).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        vae.eval().requires_grad_(False)
        held_out = context.held_out[0]
        with torch.no_grad():
            error = (vae(held_out) - held_out).square().mean()
        return {"squared_error": error.item()}


class Filter(nn.Module):
    """The auto-encoder: images (n, C, H, W) in [0, 1] to their reconstructions.

    ``vae(x, straight=True)`` has the same values, with gradients that pass through the rounding.
    """

    def __init__(self, info: DatasetInfo, latents: int, levels: int, width: int) -> None:
        super().__init__()
        channels, height, columns = info.shape
        self.levels = levels
        half = (-(-height // 2), -(-columns // 2))
        quarter = (-(-half[0] // 2), -(-half[1] // 2))
        self._sizes = (half, (height, columns))
        self._code = (2 * width, *quarter)
        flat = 2 * width * quarter[0] * quarter[1]
        self.encoder = nn.Sequential(
            spectral_norm(nn.Conv2d(channels, width, 3, stride=2, padding=1)),
            nn.ReLU(),
            spectral_norm(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.mean = spectral_norm(nn.Linear(flat, latents))
        self.log_variance = spectral_norm(nn.Linear(flat, latents))
        self.expand = nn.Linear(latents, flat)
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, straight: bool = False) -> Tensor:
        return self.decode(self.quantise(self.mean(self.encoder(x)), straight))

    def quantise(self, z: Tensor, straight: bool) -> Tensor:
        """Codes (n, latents) squashed to (-1, 1) and rounded to the levels."""

        def rounded(t: Tensor) -> Tensor:
            return ((t + 1) / 2 * (self.levels - 1)).round() / (self.levels - 1) * 2 - 1

        squashed = z.tanh()
        return bpda(rounded, "identity")(squashed) if straight else rounded(squashed)

    def decode(self, code: Tensor) -> Tensor:
        """Images of codes (n, latents) in [-1, 1]."""
        features = F.relu(self.expand(code)).view(-1, *self._code)
        features = F.relu(self.up(F.interpolate(features, self._sizes[0], mode="nearest")))
        image: Tensor = self.out(F.interpolate(features, self._sizes[1], mode="nearest"))
        return image.sigmoid()

    def loss(self, x: Tensor, beta: float) -> Tensor:
        """Squared error of the reconstruction from a noisy, quantised code, plus beta KL; the mean over images."""
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden).clamp(-10, 10)
        noisy = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = (self.decode(self.quantise(noisy, True)) - x).flatten(1).square().sum(1)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        total: Tensor = (error + beta * divergence).mean()
        return total


class Purified(nn.Module):
    """The base defense on reconstructions."""

    def __init__(self, base: nn.Module, vae: Filter) -> None:
        super().__init__()
        self.base = base
        self.filter = vae

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(self.filter(x))
        return logits

    def surrogate(self, x: Tensor) -> Tensor:
        """The same logits, with a gradient that passes through the rounding and the base's surrogate."""
        return through(self.base)(self.filter(x, straight=True))
