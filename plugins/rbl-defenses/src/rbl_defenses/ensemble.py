"""Ensembles: several defenses that answer together (Strauss et al., 2017, arXiv:1709.03423)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.behind import Step, through
from robustbench_lite import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """The mean of the probabilities of several defenses, attacked as one.

    bases: the defenses, two or more; variants of one (``standard[width=8]``) or different ones. One that cannot refuse,
    among others that can, refuses with probability 0.
    """

    bases: Annotated[tuple[str, ...], Field(min_length=2)] = ("standard", "pgd-at", "trades")

    def __call__(self, info: DatasetInfo, bases: Sequence[nn.Module]) -> nn.Module:
        """The module; its logits are the logarithms of the mean probabilities."""
        return Averaged(bases)


class Averaged(nn.Module):
    """Several defenses as one."""

    def __init__(self, bases: Sequence[nn.Module]) -> None:
        super().__init__()
        self.bases = nn.ModuleList(bases)

    def forward(self, x: Tensor) -> Tensor:
        return _mean(x, list(self.bases))

    def surrogate(self, x: Tensor) -> Tensor:
        """The same, through the surrogates of those defenses that have one."""
        return _mean(x, [through(base) for base in self.bases])


def _mean(x: Tensor, bases: Sequence[Step]) -> Tensor:
    found = [base(x).log_softmax(1) for base in bases]
    columns = max(each.shape[1] for each in found)
    padded = [F.pad(each, (0, columns - each.shape[1]), value=-math.inf) for each in found]
    return torch.stack(padded).logsumexp(0) - math.log(len(padded))
