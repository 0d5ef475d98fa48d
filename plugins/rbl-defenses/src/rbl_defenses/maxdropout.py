"""MaxDropout (Goncalves do Santos et al., 2020, arXiv:2007.13723): the most active units of each layer are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.surgery import wrap
from robustbench_lite import DatasetInfo
from robustbench_lite.training import Around


class MaxDropout(nn.Module):
    """In training, 0 for what lies in the upper share ``drop`` between the smallest and the largest number of a whole batch.

    Nothing is scaled up in return. Otherwise it does nothing.
    """

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        low, high = x.detach().aminmax()
        return x.masked_fill(x.detach() > low + (1 - self.drop) * (high - low), 0.0)


@dataclass(frozen=True, kw_only=True)
class MaxDropoutTraining(Around):
    """Another method, with MaxDropout behind every ReLU of its network; where the authors have it in theirs is not known here.

    method: that one. drop: share of the range of activations that is left out, from the top; 0 for none.
    """

    method: str = "standard"
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.3

    def architecture(self, info: DatasetInfo) -> nn.Module:
        model = super().architecture(info)
        if self.drop:
            wrap(model, nn.ReLU, lambda relu: nn.Sequential(relu, MaxDropout(self.drop)))
        return model
