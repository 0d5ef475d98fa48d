"""Deep pursuit (Cazenavette, Murdock and Lucey, CVPR 2021, arXiv:2011.14427): activations that explain each other.

A reconstruction: only the abstract was at hand, so the solver, its constants, that atoms have length 1 and that the last codes
are normalised before they are classified are choices made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from rbl_defenses.pursuit import Pursuit
from rbl_defenses.standard import Standard
from robustbench_lite import DatasetInfo


@dataclass(frozen=True, kw_only=True)
class DeepPursuit(Standard):
    """Cross-entropy of clean images, through all iterations of a network whose activations are one sparse code.

    network: of the sizes of ``small-cnn``, of which there are no others. steps: iterations, of which the first is an ordinary
    forward pass. step: length of the others; 1 is the largest that surely descends. solver: ``deep`` for all layers at once, or
    ``layered``, one after the other, which is what the authors compare with. skips: each layer explains the second below it,
    too; with the ``deep`` solver alone.
    """

    network: Literal["small-cnn"] = "small-cnn"
    steps: Annotated[int, Field(ge=1)] = 5
    step: Annotated[float, Field(gt=0, lt=2)] = 1.0
    solver: Literal["deep", "layered"] = "deep"
    skips: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skips and self.solver == "layered":
            raise ValueError("skips want all layers at once: the layered solver fixes each layer before the next is there")

    def architecture(self, info: DatasetInfo) -> nn.Module:
        joint = self.solver == "deep"
        return Pursuit(info, self.width, steps=self.steps, step=self.step, joint=joint, skips=self.skips)
