"""What the trained image classifiers of this plugin share: their network, how they are optimised, their inner attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from rbl_defenses.architectures import WIDTH, Network, build
from rbl_defenses.presets import preset
from robustbench_lite import DatasetInfo, TrainedDefense
from robustbench_lite.training import Context, EarlyStop, Recipe, craft


@dataclass(frozen=True, kw_only=True)
class ImageDefense(TrainedDefense):
    """A network and its recipe; ``loss`` is left to write.

    network: its architecture. width: channels of the first convolution of ``small-cnn``, of that alone. epochs: None for the
    data set's preset. lr: peak learning rate; None for the preset's. ema: decay of the running average of weights that is
    watched and kept; 0 for none. early_stop: keep the last epoch, the one with the best held-out robust accuracy, or the one
    before a collapse.
    """

    network: Network = "small-cnn"
    width: Annotated[int, Field(ge=1)] = WIDTH
    epochs: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 128
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    early_stop: EarlyStop = "last"

    def __post_init__(self) -> None:
        if self.network != "small-cnn" and self.width != WIDTH:
            raise ValueError(f"width is of small-cnn: {self.network} has its own")

    def architecture(self, info: DatasetInfo) -> nn.Module:
        return build(self.network, info, width=self.width)

    def recipe(self, info: DatasetInfo) -> Recipe:
        given = preset(info)
        return Recipe(
            epochs=self.epochs or given.epochs,
            batch_size=self.batch_size,
            lr=self.lr or given.lr,
            weight_decay=self.weight_decay,
            eps=self.radius(info),
            norm=self.ball,
            ramp=given.ramp,
            shift=given.shift,
            flip=given.flip,
            ema=self.ema,
            early_stop=self.early_stop,
        )

    def radius(self, info: DatasetInfo) -> float:
        """The radius that it is trained for: none."""
        return 0.0

    @property
    def ball(self) -> Literal["linf", "l2"]:
        """The norm of that radius."""
        return "linf"


@dataclass(frozen=True, kw_only=True)
class AdversariallyTrained(ImageDefense):
    """What methods with an inner attack share.

    eps: radius of the inner attack and of the one that watches; None for the preset's. norm: of that radius. steps: of the
    inner attack; None for the preset's. step: its length, absolute; None for the preset's. craft_mode: of batch norm while
    crafting.
    """

    eps: Annotated[float, Field(ge=0)] | None = None
    norm: Literal["linf", "l2"] = "linf"
    steps: Annotated[int, Field(ge=1)] | None = None
    step: Annotated[float, Field(gt=0)] | None = None
    craft_mode: Literal["eval", "train"] = "eval"

    def radius(self, info: DatasetInfo) -> float:
        return preset(info).radius(self.norm) if self.eps is None else self.eps

    @property
    def ball(self) -> Literal["linf", "l2"]:
        return self.norm

    def inner(self, context: Context) -> dict[str, float | int]:
        """eps, step and steps of the inner attack now; the step shrinks with the ramped radius."""
        given = preset(context.info)
        full = context.recipe.eps
        step = given.relative_step * full if self.step is None else self.step
        share = context.eps / full if full else 0.0
        return {"eps": context.eps, "step": step * share, "steps": self.steps or given.steps}

    def adversary(
        self,
        model: nn.Module,
        x: Tensor,
        loss: Callable[[Tensor], Tensor],
        context: Context,
        *,
        start: Literal["uniform", "gaussian", "zero"] = "uniform",
        name: str = "x_adv",
    ) -> Tensor:
        """The points of this batch that the inner attack finds by climbing ``loss(logits) -> (n,)``; see ``Context.once``.

        name: what a method that attacks twice tells its attacks apart by.
        """

        def find() -> Tensor:
            now = self.inner(context)
            return craft(
                model,
                x,
                loss,
                eps=now["eps"],
                step=now["step"],
                steps=int(now["steps"]),
                norm=self.norm,
                start=start,
                mode=self.craft_mode,
            )

        return context.once(name, find)
