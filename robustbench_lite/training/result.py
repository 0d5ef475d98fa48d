"""What came of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from robustbench_lite.training.recipe import Recipe

# By how much accuracy under attack on training images must fall from one epoch to the next, to count as a collapse.
COLLAPSE = 0.2


@dataclass
class TrainingResult:
    """A trained module. held_out: how many examples were kept from training to watch it. history: per epoch.

    recipe: None for what is fitted at once. kept: the epoch, counted from 1, whose weights these are.
    """

    module: nn.Module
    recipe: Recipe | None
    held_out: int
    history: list[dict[str, float]] = field(default_factory=list)
    kept: int = 0

    @property
    def metrics(self) -> dict[str, float]:
        """Of the epoch that was kept: the training loss, and the accuracies on the held-out examples: clean, and robust
        (PGD-10 at the recipe's eps and norm, where it has one); and what the defense logged.
        """
        return {k: v for k, v in self.history[self.kept - 1].items() if k != "epoch"}

    @property
    def best(self) -> dict[str, float]:
        """The epoch with the best held-out accuracy: see ``goodness``."""
        return max(self.history, key=goodness)


def goodness(epoch: Mapping[str, float]) -> tuple[float, float, float]:
    """By what epochs are compared: held-out robust accuracy, then the clean one, then the later wins."""
    return epoch.get("robust", 0.0), epoch["clean"], epoch["epoch"]


def collapsed(history: Sequence[Mapping[str, float]]) -> bool:
    """Whether accuracy under PGD-10 on training images has just fallen by more than 20 points: catastrophic overfitting."""
    return len(history) > 1 and history[-2]["train_pgd"] - history[-1]["train_pgd"] > COLLAPSE
