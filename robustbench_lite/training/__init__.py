"""Training: what trained defenses share.

A trained defense is a frozen dataclass of hyperparameters with an ``architecture`` and a ``loss``; data, optimiser, schedule,
augmentation, monitoring and determinism are here. The same seed, data and number of threads give the same weights.

``defense``  the contract: what a trained defense must say, and the hooks that it may use
``recipe``   hyperparameters of the optimisation; the context that hooks are given
``craft``    adversarial examples for training, in linf and l2
``update``   the optimiser's side of a step; running averages of weights
``loop``     the loop itself
``watch``    what is measured after each epoch
``card``     the model card
"""

from __future__ import annotations

from robustbench_lite.training.augment import augment
from robustbench_lite.training.card import model_card
from robustbench_lite.training.craft import craft, in_mode, keeping_buffers
from robustbench_lite.training.defense import Around, TrainedDefense, parameter_groups
from robustbench_lite.training.loop import HELD_OUT, TrainingResult, train
from robustbench_lite.training.recipe import Context, Recipe, Run
from robustbench_lite.training.update import Precision, Update
from robustbench_lite.training.watch import accuracy

__all__ = [
    "HELD_OUT",
    "Around",
    "Context",
    "Precision",
    "Recipe",
    "Run",
    "TrainedDefense",
    "TrainingResult",
    "Update",
    "accuracy",
    "augment",
    "craft",
    "in_mode",
    "keeping_buffers",
    "model_card",
    "parameter_groups",
    "train",
]
