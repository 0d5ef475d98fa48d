"""ASCL (Bui et al., 2021, arXiv:2101.10027): adversarial supervised contrastive learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.architectures import feature_size, with_features
from rbl_defenses.image_defense import AdversariallyTrained
from robustbench_lite import DatasetInfo, losses
from robustbench_lite.training import Context

Selection = Literal["all", "hard", "soft", "leaking"]
Distance = Literal["linf", "l1", "l2", "cosine"]
_ORDER = {"linf": float("inf"), "l1": 1.0, "l2": 2.0}


@dataclass(frozen=True, kw_only=True)
class ASCL(AdversariallyTrained):
    """clean CE(f(x), y) + CE(f(x'), y) + contrast L + smoothness KL(p(x) || p(x')) / K.

    L pulls the representations of images of one class together, clean and adversarial ones, and pushes others away. K is the
    number of classes, by which the authors' average divides. x' is crafted in training mode, as the authors do. They show each
    image in two augmented views; here there is one.

    contrast: weight of L. clean: weight of the clean loss. smoothness: weight of the divergence. selection: of the images that
    pull and push: ``all``, or by what the model takes them for, see ``contrastive_loss``. distance: between representations of
    length 1. temperature: by which it is divided. size: of the projection head's output; 0 for none.
    """

    contrast: Annotated[float, Field(ge=0)] = 1.0
    clean: Annotated[float, Field(ge=0)] = 0.0
    smoothness: Annotated[float, Field(ge=0)] = 2.0
    selection: Selection = "leaking"
    distance: Distance = "linf"
    temperature: Annotated[float, Field(gt=0)] = 0.2
    size: Annotated[int, Field(ge=0)] = 128
    craft_mode: Literal["eval", "train"] = "train"

    def auxiliary(self, model: nn.Module, info: DatasetInfo) -> nn.Module:
        if not self.size:
            return nn.Identity()
        features = feature_size(model)
        return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, self.size))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        x_adv = self.adversary(model, x, lambda z: losses.cross_entropy(z, y), context)
        adversarial, hidden_adv = with_features(model, x_adv)
        total = F.cross_entropy(adversarial, y)
        if not (self.contrast or self.clean or self.smoothness):
            return total
        logits, hidden = with_features(model, x)
        if self.clean:
            total = total + self.clean * F.cross_entropy(logits, y)
        if self.smoothness:
            total = total + self.smoothness * losses.divergence(adversarial, logits).mean() / logits.shape[1]
        if self.contrast:
            contrast = contrastive_loss(
                context.auxiliary(torch.cat([hidden, hidden_adv])),
                torch.cat([y, y]),
                torch.cat([logits, adversarial]).argmax(1),
                selection=self.selection,
                distance=self.distance,
                temperature=self.temperature,
            )
            context.log(contrast=contrast)
            total = total + self.contrast * contrast
        return total


def contrastive_loss(
    z: Tensor, y: Tensor, predicted: Tensor, *, selection: Selection, distance: Distance, temperature: float
) -> Tensor:
    """Mean over anchors i of -1/|P| sum_{j in P} log(exp(s_ij) / sum_{k in P or N} exp(s_ik)), s = -distance / temperature.

    z: (n, d) representations, normalised here. y, predicted: (n,) labels, and what the model says. P are images of the anchor's
    class, but not itself, and N those of others: ``all`` of them; in N only those predicted as the anchor's class (``hard``)
    or predicted alike (``soft``); in both only those predicted alike (``leaking``).
    """
    alike, agree = y[:, None] == y, predicted[:, None] == predicted
    itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
    positives, negatives = alike & ~itself, ~alike
    if selection == "hard":
        negatives = negatives & (y[:, None] == predicted)
    elif selection != "all":
        negatives = negatives & agree
    if selection == "leaking":
        positives = positives & agree
    similarity = -_distances(F.normalize(z, dim=1), distance) / temperature
    # An anchor without positives has nothing to pull, and without anyone the logarithm of an empty sum.
    rows = positives.any(1).nonzero()[:, 0]
    similarity, positives, among = similarity[rows], positives[rows], (positives | negatives)[rows]
    log_share = similarity - similarity.masked_fill(~among, -torch.inf).logsumexp(1, keepdim=True)
    return -(log_share.masked_fill(~positives, 0).sum(1) / positives.sum(1)).sum() / len(y)


def _distances(z: Tensor, distance: Distance) -> Tensor:
    if distance == "cosine":
        return 1 - z @ z.T
    return torch.cdist(z, z, _ORDER[distance])
