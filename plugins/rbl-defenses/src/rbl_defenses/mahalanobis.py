"""The Mahalanobis detector (Lee et al., 2018, arXiv:1807.03888), in the variant that needs no adversarial examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.behind import Step
from rbl_defenses.detector import CHUNK, Detector, FittedDetector
from rbl_defenses.features import Features, pooled
from robustbench_lite import DatasetInfo

# Of the mean variance, what is added to every variance.
RIDGE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Mahalanobis(FittedDetector):
    """Refuse what lies far from all classes in feature space.

    layers: how many layers are looked at. Per layer, features are averaged over positions; each class is a gaussian, all with
    one covariance; the score is half of the squared Mahalanobis distance to the nearest class. The sum over layers, each
    divided by its mean on training examples, takes the place of the paper's logistic regression. Its gradient step on the
    input before scoring, which would be an attack inside the defense, is left out.
    """

    layers: Annotated[int, Field(ge=1)] = 4

    def detector(self, info: DatasetInfo, base: nn.Module) -> Detector:
        return Distances(base, info, self.layers)


class Distances(Detector):
    """Scores images by their distance from tied gaussians."""

    def __init__(self, base: nn.Module, info: DatasetInfo, layers: int) -> None:
        super().__init__(base)
        self._features = Features(base, info, layers)
        for k, shape in enumerate(self._features.shapes):
            self.register_buffer(f"means_{k}", torch.zeros(info.num_classes, shape[0]))
            self.register_buffer(f"whitening_{k}", torch.eye(shape[0]))
            self.register_buffer(f"typical_{k}", torch.ones(()))

    def answer(self, x: Tensor, base: Step, *, straight: bool) -> tuple[Tensor, Tensor]:
        logits, features = self._features(x, base)
        distances = [self.distance(k, pooled(f)) / self.get_buffer(f"typical_{k}") for k, f in enumerate(features)]
        return logits, torch.stack(distances).sum(0)

    def distance(self, layer: int, features: Tensor) -> Tensor:
        """(n,) half of the squared Mahalanobis distance of features (n, d) to the nearest class mean."""
        centred = features[:, None] - self.get_buffer(f"means_{layer}")
        return (centred @ self.get_buffer(f"whitening_{layer}")).square().sum(2).amin(1) / 2

    @torch.no_grad()
    def learn(self, x: Tensor, y: Tensor) -> None:
        """Estimate means, covariances and typical distances from training examples. A class without examples is never near."""
        chunks = [[pooled(f) for f in self._features(part, self.base)[1]] for part in torch.split(x, CHUNK)]
        for k, parts in enumerate(zip(*chunks, strict=True)):
            features = torch.cat(parts).double()
            means = self.get_buffer(f"means_{k}")
            counts = y.bincount(minlength=len(means))
            total = torch.zeros(means.shape, dtype=torch.float64, device=x.device).index_add_(0, y, features)
            centres = total / counts[:, None]
            centred = features - centres[y]
            covariance = centred.T @ centred / len(features)
            ridge = RIDGE * covariance.diagonal().mean() + torch.finfo(torch.float32).tiny
            covariance.diagonal().add_(ridge)
            # P = W W^T, of which the distance needs W only.
            whitening = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
            means.copy_(centres.nan_to_num(nan=1e9))
            self.get_buffer(f"whitening_{k}").copy_(whitening)
            self.get_buffer(f"typical_{k}").copy_(self.distance(k, features.float()).mean())
