"""OMADA (Patel et al., 2019, arXiv:1912.07458): augmentation by images on the way between classes, with soft labels.

A reconstruction: the paper's idea, with a small variational auto-encoder in place of its generative model. It is for calibrated
predictions; nobody claims robustness in a norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.image_defense import ImageDefense
from rbl_defenses.latent_space import LatentSpace
from robustbench_lite import DatasetInfo
from robustbench_lite.training import Context, augment, parameter_groups

# Training images by which the latent space is made at most.
EXAMPLES = 20_000


@dataclass(frozen=True, kw_only=True)
class OMADA(ImageDefense):
    """CE(f(x), y) + weight CE(f(x~), t~), x~ decoded from a path in latent space that leads to another class.

    The path descends from the code of an image to a random other class; t~ is what the latent classifier says of the point that
    is taken from it.

    weight: of the loss at x~. sampling: of that point: by chance (``uniform``), of the largest ``entropy``, or where the two
    classes are closest (``boundary``). share: of the batch that is so varied. path_steps: of each path. path_step: length of
    these, as a multiple of the gradient. latent: numbers of a code. latent_steps: batches by which the latent space is
    trained before anything else.
    """

    weight: Annotated[float, Field(ge=0)] = 1.0
    sampling: Literal["uniform", "entropy", "boundary"] = "uniform"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    path_steps: Annotated[int, Field(ge=1)] = 20
    path_step: Annotated[float, Field(gt=0)] = 0.05
    latent: Annotated[int, Field(ge=1)] = 16
    latent_steps: Annotated[int, Field(ge=1)] = 4000

    def auxiliary(self, model: nn.Module, info: DatasetInfo) -> nn.Module:
        return LatentSpace(info.shape, info.num_classes, self.latent)

    def parameter_groups(self, model: nn.Module, auxiliary: nn.Module | None) -> Iterable[dict[str, Any]]:
        return parameter_groups(model)  # the latent space is fixed by then

    def begin_epoch(self, model: nn.Module, context: Context) -> None:
        if context.epoch == 0 and self.weight:
            recipe = context.recipe
            _space(context).fit(
                *context.examples(EXAMPLES),
                steps=self.latent_steps,
                vary=lambda x: augment(x, shift=recipe.shift, flip=recipe.flip),
            )

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        clean = F.cross_entropy(model(x), y)
        if not self.weight:
            return clean
        n = max(1, round(self.share * len(x)))
        varied, labels = context.once("varied", lambda: self.vary(_space(context), x[:n], y[:n]))
        return clean + self.weight * F.cross_entropy(model(varied), labels)

    @torch.no_grad()
    def vary(self, space: LatentSpace, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) from the way to other classes, and their soft labels (n, K)."""
        target = (y + torch.randint(1, space.classes, y.shape, device=y.device)) % space.classes
        with torch.enable_grad():
            path = space.path(space.encode(x)[0], target, steps=self.path_steps, step=self.path_step)
        labels = space.classifier(path).softmax(2)
        if self.sampling == "uniform":
            taken = torch.randint(len(path), y.shape, device=y.device)
        elif self.sampling == "entropy":
            taken = labels.xlogy(labels).sum(2).argmin(0)
        else:
            own, other = (labels.gather(2, c.expand(len(path), -1)[..., None])[..., 0] for c in (y, target))
            taken = (own - other).abs().argmin(0)
        rows = torch.arange(len(x), device=x.device)
        return space.decode(path[taken, rows]), labels[taken, rows]


def _space(context: Context) -> LatentSpace:
    return cast(LatentSpace, context.auxiliary)
