"""robustbench-lite: a plugin-registry benchmark for adversarial robustness.

Everything a plugin author needs is imported from here. Names that need torch are loaded when they are first used, so that
importing the package (as every plugin's entry module does) stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from robustbench_lite.data import Dataset, DatasetBundle, DatasetInfo
from robustbench_lite.errors import (
    AccessError,
    AmbiguousName,
    BudgetExceeded,
    CellFailed,
    CorruptResult,
    InvalidConfig,
    InvalidParameter,
    InvalidThreat,
    MissingData,
    MissingWeights,
    PluginError,
    RblError,
    StoreError,
    StoreFormatError,
    UnknownName,
    UsageError,
)
from robustbench_lite.hookspecs import hookimpl
from robustbench_lite.specs import AttackSpec, DatasetSpec, DefenseSpec, MetricSpec, ProtocolSpec
from robustbench_lite.threat import Threat

if TYPE_CHECKING:
    from robustbench_lite import losses as losses
    from robustbench_lite.measured import MeasuredModel as MeasuredModel
    from robustbench_lite.randomness import Randomness as Randomness
    from robustbench_lite.randomness import rand_like as rand_like
    from robustbench_lite.randomness import randn_like as randn_like
    from robustbench_lite.randomness import randn_per_pass as randn_per_pass
    from robustbench_lite.results import CellResult as CellResult
    from robustbench_lite.results import Curve as Curve
    from robustbench_lite.results import MetricValue as MetricValue
    from robustbench_lite.surrogates import bpda as bpda
    from robustbench_lite.target import Target as Target
    from robustbench_lite.target import mean_of_logits as mean_of_logits
    from robustbench_lite.torchvision_compat import import_torchvision as import_torchvision
    from robustbench_lite.training import FittedDefense as FittedDefense
    from robustbench_lite.training import TrainedDefense as TrainedDefense

__version__ = "0.1.0"

_LAZY = {
    "losses": "robustbench_lite.losses",
    "bpda": "robustbench_lite.surrogates:bpda",
    "MeasuredModel": "robustbench_lite.measured:MeasuredModel",
    "Randomness": "robustbench_lite.randomness:Randomness",
    "rand_like": "robustbench_lite.randomness:rand_like",
    "randn_like": "robustbench_lite.randomness:randn_like",
    "randn_per_pass": "robustbench_lite.randomness:randn_per_pass",
    "CellResult": "robustbench_lite.results:CellResult",
    "Curve": "robustbench_lite.results:Curve",
    "MetricValue": "robustbench_lite.results:MetricValue",
    "Target": "robustbench_lite.target:Target",
    "mean_of_logits": "robustbench_lite.target:mean_of_logits",
    "import_torchvision": "robustbench_lite.torchvision_compat:import_torchvision",
    "FittedDefense": "robustbench_lite.training:FittedDefense",
    "TrainedDefense": "robustbench_lite.training:TrainedDefense",
}

__all__ = [
    "AccessError",
    "AmbiguousName",
    "AttackSpec",
    "BudgetExceeded",
    "CellFailed",
    "CellResult",
    "CorruptResult",
    "Curve",
    "Dataset",
    "DatasetBundle",
    "DatasetInfo",
    "DatasetSpec",
    "DefenseSpec",
    "FittedDefense",
    "InvalidConfig",
    "InvalidParameter",
    "InvalidThreat",
    "MeasuredModel",
    "MetricSpec",
    "MetricValue",
    "MissingData",
    "MissingWeights",
    "PluginError",
    "ProtocolSpec",
    "Randomness",
    "RblError",
    "StoreError",
    "StoreFormatError",
    "Target",
    "Threat",
    "TrainedDefense",
    "UnknownName",
    "UsageError",
    "__version__",
    "bpda",
    "hookimpl",
    "import_torchvision",
    "losses",
    "mean_of_logits",
    "rand_like",
    "randn_like",
    "randn_per_pass",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    loaded = importlib.import_module(module)
    value = getattr(loaded, attribute) if attribute else loaded
    globals()[name] = value
    return value
