"""Training: what trained defenses share.

A trained defense is a frozen dataclass of hyperparameters with an ``architecture`` and a ``loss``; data, optimiser, schedule,
augmentation, monitoring and determinism are here. The same seed, data and number of threads give the same weights.

``defense``  the contract: what a trained defense must say, and the hooks that it may use
``recipe``   hyperparameters of the optimisation; the context that hooks are given
``craft``    adversarial examples for training, in linf and l2
``update``   the optimiser's side of a step; running averages of weights
``loop``     the loop itself
``watch``    what is measured after each epoch
``split``    what is trained on and what is held out
``result``   what came of a run; ``card``: the model card; ``checkpoint``: what resume needs
``fitted``   defenses that are fitted to a base at once, without epochs
"""

from __future__ import annotations

from robustbench_lite.training.augment import augment
from robustbench_lite.training.card import identity, model_card
from robustbench_lite.training.checkpoint import Checkpoint
from robustbench_lite.training.craft import craft, in_mode, keeping_buffers
from robustbench_lite.training.defense import Around, TrainedDefense, parameter_groups
from robustbench_lite.training.fitted import FittedDefense, fit
from robustbench_lite.training.loop import train
from robustbench_lite.training.recipe import Context, EarlyStop, Recipe, Run
from robustbench_lite.training.result import TrainingResult
from robustbench_lite.training.split import HELD_OUT
from robustbench_lite.training.update import Precision, Update
from robustbench_lite.training.watch import accuracy

__all__ = [
    "HELD_OUT",
    "Around",
    "Checkpoint",
    "Context",
    "EarlyStop",
    "FittedDefense",
    "Precision",
    "Recipe",
    "Run",
    "TrainedDefense",
    "TrainingResult",
    "Update",
    "accuracy",
    "augment",
    "craft",
    "fit",
    "identity",
    "in_mode",
    "keeping_buffers",
    "model_card",
    "parameter_groups",
    "train",
]
