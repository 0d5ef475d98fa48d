"""Detection by local intrinsic dimensionality (Ma et al., 2018, arXiv:1801.02613)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.behind import Step, Through
from rbl_defenses.detector import CHUNK, Detector, FittedDetector
from rbl_defenses.features import Features
from rbl_defenses.presets import preset
from robustbench_lite import DatasetInfo, UsageError, losses
from robustbench_lite.training import craft

# PGD, by which the examples are made that the regression learns to tell: steps, and their size in units of eps.
STEPS, STEP = 20, 0.1
PENALTY = 1e-3


@dataclass(frozen=True, kw_only=True)
class LID(FittedDetector):
    """Refuse what looks as if it had more dimensions around it than clean examples have.

    layers: how many layers are looked at. neighbours: k, among the ``reference`` training examples that every image is compared
    with; the paper compares the images of a batch with each other. eps: linf radius of the adversarial examples that the
    regression over layers is fitted to; None for the data set's preset. Noise of that size counts as clean, as in the paper.
    """

    layers: Annotated[int, Field(ge=1)] = 4
    neighbours: Annotated[int, Field(ge=2)] = 10
    reference: Annotated[int, Field(ge=3)] = 100
    eps: Annotated[float, Field(gt=0)] | None = None

    def __post_init__(self) -> None:
        if self.neighbours > self.reference:
            raise ValueError(f"neighbours={self.neighbours} are to be found among reference={self.reference}")

    def detector(self, info: DatasetInfo, base: nn.Module) -> Detector:
        return Dimensions(
            base,
            Features(base, info, self.layers),
            neighbours=self.neighbours,
            reference=self.reference,
            eps=self.eps or preset(info).eps,
        )


class Dimensions(Detector):
    """Scores images by a linear function of the estimated dimensionality at each layer.

    What is kept of the reference are its images; their features, many times as large, are made when they are loaded.
    """

    def __init__(self, base: nn.Module, features: Features, *, neighbours: int, reference: int, eps: float) -> None:
        super().__init__(base)
        self._features = features
        self._neighbours, self._reference, self._eps = neighbours, reference, eps
        self.register_buffer("reference", torch.rand(reference, *features.image))
        for k, shape in enumerate(features.shapes):
            self.register_buffer(f"features_{k}", torch.zeros(reference, torch.Size(shape).numel()), persistent=False)
        count = len(features.shapes)
        self.register_buffer("centre", torch.zeros(count))
        self.register_buffer("weight", torch.ones(count))
        self._look_at_reference()
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            lambda module, _: module._look_at_reference()
        )

    def answer(self, x: Tensor, base: Step, *, straight: bool) -> tuple[Tensor, Tensor]:
        logits, features = self._features(x, base)
        return logits, (self._dimensions(features) - self.get_buffer("centre")) @ self.get_buffer("weight")

    def _dimensions(self, features: list[Tensor]) -> Tensor:
        references = [self.get_buffer(f"features_{k}") for k in range(len(features))]
        each = [dimension(f.flatten(1), r, self._neighbours) for f, r in zip(features, references, strict=True)]
        return torch.stack(each, 1)

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Keep the features of the first examples, and learn from the others how to tell adversarial ones from clean ones.

        Raises UsageError where no examples are left.
        """
        if len(x) <= self._reference:
            raise UsageError(f"lid keeps {self._reference} training examples, of {len(x)}", hint="lower reference=")
        self.get_buffer("reference").copy_(x[: self._reference])
        self._look_at_reference()
        x, y = x[self._reference :], y[self._reference :]
        adversarial = [self._attacked(*part) for part in zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True)]
        noisy = (x + self._eps * torch.randn_like(x)).clamp(0, 1)
        groups = [self._measured(each) for each in (torch.cat([x, noisy]), torch.cat(adversarial))]
        values, labels = torch.cat(groups), torch.cat([torch.full_like(g[:, 0], float(k)) for k, g in enumerate(groups)])
        centre, deviation = values.mean(0), values.std(0).clamp(min=1e-6)
        self.get_buffer("centre").copy_(centre)
        self.get_buffer("weight").copy_(logistic((values - centre) / deviation, labels) / deviation)

    @torch.no_grad()
    def _look_at_reference(self) -> None:
        reference = self.get_buffer("reference")
        reference = reference.to(next(self.base.parameters(), reference).device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of a base that draws, the same features whenever they are made
            for k, features in enumerate(self._features(reference, self.base)[1]):
                self.get_buffer(f"features_{k}").copy_(features.flatten(1))

    def _attacked(self, x: Tensor, y: Tensor) -> Tensor:
        step = STEP * self._eps
        return craft(
            Through(self.base), x, lambda logits: losses.cross_entropy(logits, y), eps=self._eps, step=step, steps=STEPS
        )

    @torch.no_grad()
    def _measured(self, x: Tensor) -> Tensor:
        """(N, layers) dimensionalities, float64."""
        return torch.cat([self._dimensions(self._features(part, self.base)[1]) for part in torch.split(x, CHUNK)]).double()


def dimension(x: Tensor, reference: Tensor, neighbours: int) -> Tensor:
    """(n,) maximum-likelihood estimate of the local intrinsic dimensionality at points (n, d): -k / sum_i log(r_i / r_k).

    r_1 <= ... <= r_k: distances to the k nearest of the reference points (m, d).
    """
    distances = torch.cdist(x, reference, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.topk(neighbours, dim=1, largest=False).values.clamp(min=1e-6)
    ratios = (nearest / nearest[:, -1:]).log().sum(1)
    return -neighbours / ratios.clamp(max=-1e-3)


def logistic(x: Tensor, y: Tensor) -> Tensor:
    """(d,) weights of a logistic regression of labels y (n,) in {0, 1} on values x (n, d), classes weighed alike.

    With an intercept, which is not returned, and ``PENALTY`` times half of the squared length of the weights.
    """
    with torch.enable_grad():
        parameters = torch.zeros(x.shape[1] + 1, dtype=x.dtype, device=x.device, requires_grad=True)
        optimiser = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")
        share = y.mean()
        weights = torch.where(y > 0, 0.5 / share, 0.5 / (1 - share))

        def loss() -> Tensor:
            optimiser.zero_grad()
            found = F.binary_cross_entropy_with_logits(x @ parameters[1:] + parameters[0], y, weights)
            found = found + PENALTY / 2 * parameters[1:].square().sum()
            found.backward()  # type: ignore[no-untyped-call]
            return found

        optimiser.step(loss)  # type: ignore[arg-type, no-untyped-call]
    return parameters.detach()[1:]
