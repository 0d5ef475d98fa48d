"""Data sets and metrics that are broken in one way each, next to sound ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_lite import (
    CellResult,
    DatasetBundle,
    DatasetInfo,
    DatasetSpec,
    MetricSpec,
    MetricValue,
    MissingData,
    UsageError,
    hookimpl,
)

DATASETS = ("sound", "no-hint", "opens-files", "not-a-bundle", "bytes255", "twice-scaled", "wrong-shape", "one-class-name")
DATASETS += ("label-tensor", "labels-from-one", "missing-class", "out-of-range", "repeats", "augments", "batch-differs")
DATASETS += ("other-order", "leaks", "no-fingerprint", "absent", "bad-std")
CELL_METRICS = ("share", "crashes", "returns-float", "numpy-value", "percent", "crashes-on-edges", "zero-when-empty")
CELL_METRICS += ("changes-arrays", "random-value", "half-interval", "interval-elsewhere", "wrong-way", "nan")
MODEL_METRICS = (
    "of-model",
    "raises-in-measure",
    "returns-list",
    "uneven-rows",
    "above-one",
    "model-interval",
    "float-of-model",
)
MODEL_METRICS += ("trains-it", "shifts-it", "keeps-hooks", "unseeded", "keeps-state", "sorts-arrays", "nan-of-model")


@hookimpl
def rbl_datasets():
    for name in DATASETS:
        yield DatasetSpec(name=name, factory=f"broken_others:{camel(name)}", summary=name)


@hookimpl
def rbl_metrics():
    for name in CELL_METRICS:
        yield metric(name)
    yield metric("wrong-scope", scope="defense")
    yield metric("worst", scope="defense")
    yield metric("torch-inside", factory="heavy_metric:Share")
    for name in MODEL_METRICS:
        yield metric(name, scope="model")


def camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("-"))


def metric(name: str, scope: str = "cell", factory: str = "") -> MetricSpec:
    factory = factory or f"broken_others:{camel(name)}"
    return MetricSpec(name=name, factory=factory, summary=name, scope=scope, direction="higher", unit="%")


# ---------------------------------------------------------------------------------------------------------------- data


class Split:
    def __init__(self, n: int, seed: int) -> None:
        import torch

        self.x = torch.rand((n, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
        self.y = [i % 3 for i in range(n)]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.x[i], self.y[i]


def dataset(change: Callable[[dict[str, Any]], None]) -> type:
    """A data set of three classes, with one thing changed."""

    @dataclass(frozen=True, kw_only=True)
    class Factory:
        def __call__(self, root: Path) -> DatasetBundle:
            parts: dict[str, Any] = {
                "info": {"name": "three", "classes": ("a", "b", "c"), "shape": (1, 4, 4), "mean": (0.5,), "std": (0.3,)},
                "test": Split(120, 0),
                "train": Split(90, 1),
                "evaluation": range(100),
                "fingerprint": "three",
            }
            change(parts)
            return DatasetBundle(**(parts | {"info": DatasetInfo(**parts["info"])}))

    return Factory


@dataset
def Sound(parts):
    pass


@dataclass(frozen=True, kw_only=True)
class NotABundle:
    def __call__(self, root):
        return Split(3, 0)


@dataclass(frozen=True, kw_only=True)
class NoHint:
    def __call__(self, root):
        raise MissingData("there is nothing")


@dataclass(frozen=True, kw_only=True)
class Absent:
    def __call__(self, root):
        raise MissingData("there is nothing", hint="fetch it")


@dataclass(frozen=True, kw_only=True)
class OpensFiles:
    def __call__(self, root):
        if not any(root.iterdir()):
            raise FileNotFoundError(root / "images.bin")
        return Sound()(root)


@dataset
def Bytes255(parts):
    parts["test"].x = (parts["test"].x * 255).round()
    parts["train"].x = (parts["train"].x * 255).round()


@dataset
def TwiceScaled(parts):
    parts["test"].x = parts["test"].x / 255
    parts["train"].x = parts["train"].x / 255


@dataset
def WrongShape(parts):
    parts["info"]["shape"] = (1, 4, 5)


@dataset
def OneClassName(parts):
    parts["info"]["classes"] = ("a", "a", "a")


@dataset
def BadStd(parts):
    parts["info"]["std"] = (0.3, 0.3)


@dataset
def LabelTensor(parts):
    import torch

    parts["test"].y = list(torch.tensor(parts["test"].y))


@dataset
def LabelsFromOne(parts):
    parts["test"].y = [label + 1 for label in parts["test"].y]


@dataset
def MissingClass(parts):
    parts["test"].y = [label % 2 for label in parts["test"].y]
    parts["train"].y = [label % 2 for label in parts["train"].y]


@dataset
def OutOfRange(parts):
    parts["evaluation"] = range(121)


@dataset
def Repeats(parts):
    parts["evaluation"] = [*range(100), 0]


class Augmented(Split):
    def __getitem__(self, i):
        return (self.x[i] * random.uniform(0.9, 1.0)), self.y[i]


@dataset
def Augments(parts):
    parts["test"] = Augmented(120, 0)


class Batched(Split):
    def batch(self, indices):
        import torch

        return self.x[list(indices)].flip(3), torch.tensor([self.y[i] for i in indices])


@dataset
def BatchDiffers(parts):
    parts["test"] = Batched(120, 0)


@dataset
def OtherOrder(parts):
    parts["evaluation"] = random.sample(range(120), 100)


@dataset
def Leaks(parts):
    parts["train"] = parts["test"]


@dataset
def NoFingerprint(parts):
    parts["fingerprint"] = ""


# ------------------------------------------------------------------------------------------------------------- metrics


def of_cell(function: Callable[[CellResult], Any]) -> type:
    @dataclass(frozen=True, kw_only=True)
    class Factory:
        def __call__(self, cell, threat):
            if isinstance(cell, CellResult) and not cell.n and function is not ZERO:
                raise UsageError("no examples", hint="rbl run")
            return function(cell)

    return Factory


def robust(cell: CellResult) -> float:
    return float(cell.robust(cell.threat).mean())


Share = of_cell(lambda cell: MetricValue(value=robust(cell), low=0.0, high=1.0, n=cell.n))
ReturnsFloat = of_cell(robust)
NumpyValue = of_cell(lambda cell: MetricValue(value=cell.robust().mean(dtype=np.float32)))
Percent = of_cell(lambda cell: MetricValue(value=100 * robust(cell)))
Nan = of_cell(lambda cell: MetricValue(value=math.nan))
RandomValue = of_cell(lambda cell: MetricValue(value=robust(cell) * random.uniform(0.999, 1)))
HalfInterval = of_cell(lambda cell: MetricValue(value=robust(cell), low=0.0))
IntervalElsewhere = of_cell(lambda cell: MetricValue(value=robust(cell), low=robust(cell) + 0.1, high=2.0))
WrongWay = of_cell(lambda cell: MetricValue(value=float(cell.arrays["success"].mean())))
CrashesOnEdges = of_cell(lambda cell: MetricValue(value=robust(cell) + 0 / int(cell.arrays["success"].sum())))
WrongScope = Share


@of_cell
def Crashes(cell):
    raise KeyError("robustness")


def ZERO(cell: CellResult) -> MetricValue:
    return MetricValue(value=robust(cell) if cell.n else 0.0)


ZeroWhenEmpty = of_cell(ZERO)


@of_cell
def ChangesArrays(cell):
    found = robust(cell)
    cell.arrays["success"][:] = False
    return MetricValue(value=found)


@dataclass(frozen=True, kw_only=True)
class Worst:
    def __call__(self, cells, threat):
        if not all(cell.n for cell in cells):
            return MetricValue(value=math.nan)
        return MetricValue(value=min(robust(cell) for cell in cells))


# --------------------------------------------------------------------------------------------------- metrics of models


def of_model(measure: Callable[[Any], Any] | None = None, value: Callable[[Any], Any] | None = None) -> type:
    """A metric of scope ``model``: the share of examples classified correctly, with one thing changed."""

    @dataclass(frozen=True, kw_only=True)
    class Factory:
        def measure(self, model: Any, threat: Any) -> Any:
            found = {"right": (model.logits(model.x).argmax(1) == model.y).cpu().numpy()}
            return found if measure is None else measure(model)

        def __call__(self, arrays: Any) -> Any:
            return MetricValue(value=float(arrays["right"].mean())) if value is None else value(arrays["right"])

    return Factory


def drawn(model: Any) -> dict[str, np.ndarray]:
    return {"right": np.array([random.random() for _ in model.x])}


def shifted(model: Any) -> dict[str, np.ndarray]:
    next(iter(model.module.parameters())).add_(1.0)
    return {"right": np.ones(len(model.x))}


def training(model: Any) -> dict[str, np.ndarray]:
    model.module.train()
    return {"right": np.ones(len(model.x))}


def hooked(model: Any) -> dict[str, np.ndarray]:
    model.module.register_forward_hook(lambda *_: None)
    return {"right": np.ones(len(model.x))}


def sorted_in_place(right: np.ndarray) -> MetricValue:
    right[:] = np.sort(right)
    return MetricValue(value=float(right.mean()))


OfModel = of_model()
RaisesInMeasure = of_model(lambda model: 1 / 0)
ReturnsList = of_model(lambda model: {"right": [1, 2]})
UnevenRows = of_model(lambda model: {"right": np.ones(3), "other": np.ones(4)})
AboveOne = of_model(value=lambda right: MetricValue(value=100 * float(right.mean())))
ModelInterval = of_model(value=lambda right: MetricValue(value=0.5, low=0.6, high=0.7))
FloatOfModel = of_model(value=lambda right: float(right.mean()))
TrainsIt = of_model(training)
ShiftsIt = of_model(shifted)
KeepsHooks = of_model(hooked)
Unseeded = of_model(drawn)
KeepsState = of_model(value=lambda right: MetricValue(value=random.random()))
SortsArrays = of_model(value=sorted_in_place)
NanOfModel = of_model(value=lambda right: MetricValue(value=math.nan))
