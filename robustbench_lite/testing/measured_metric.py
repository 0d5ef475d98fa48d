"""The conformance suite of metrics of scope ``model``, on a small network made up for the purpose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_lite.data import DatasetBundle, DatasetInfo
from robustbench_lite.deployed import Deployed
from robustbench_lite.measuring import examples_of, measure, value_of
from robustbench_lite.registry import Registry
from robustbench_lite.resolve import ResolvedMetric, resolve_metric
from robustbench_lite.results import MetricValue
from robustbench_lite.testing.checks import Failed, Outcome, Skipped, Suite, describe
from robustbench_lite.testing.common import COMMON
from robustbench_lite.testing.metric import METRIC_SUITE, MetricSubject

CLASSES, SHAPE = 4, (1, 8, 8)
N, TRAINING = 24, 60
EPS = {"linf": 0.05, "l2": 0.5, "l1": 2.0, "l0": 4}
CARD = {"history": [{"epoch": e, "loss": 1.0 / e, "clean": 0.5 + 0.1 * e, "robust": 0.3 + 0.05 * e} for e in (1, 2, 3)]}


class Small(nn.Module):
    """Two convolutions, one with batch normalisation, and a linear layer, which is fitted to the training images."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.features = nn.Sequential(
                nn.Conv2d(SHAPE[0], 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU()
            )
            self.head = nn.Linear(8 * 3 * 3, CLASSES)
        self.eval()
        split = Split(TRAINING, 1)
        with torch.no_grad():
            hidden = nn.functional.pad(self.features(split.x).flatten(1), (0, 1), value=1.0)
            wanted = 5.0 * nn.functional.one_hot(split.y, CLASSES).float()
            ridge = hidden.T @ hidden + 0.01 * torch.eye(hidden.shape[1])
            solved = torch.linalg.solve(ridge, hidden.T @ wanted)
            self.head.weight.copy_(solved[:-1].T)
            self.head.bias.copy_(solved[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))  # type: ignore[no-any-return]

    def certify(self, x: Tensor, n0: int, n: int, alpha: float) -> tuple[Tensor, Tensor]:
        """As a smoothing defense has it: here the prediction, and a radius that grows with its lead; -1 for narrow ones."""
        best = self(x).topk(2, 1)
        lead = (best.values[:, 0] - best.values[:, 1]).double()
        sure = lead > 0.01
        return torch.where(sure, best.indices[:, 0], -1), torch.where(sure, lead, 0.0)


class Split:
    """Images of a few grey levels with noise, by class."""

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.arange(n) % CLASSES
        base = (0.2 + 0.2 * self.y).view(-1, 1, 1, 1)
        self.x = (base + 0.1 * torch.randn((n, *SHAPE), generator=generator)).clamp(0, 1)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self.x[index], int(self.y[index])


def _bundle() -> DatasetBundle:
    info = DatasetInfo(name="toy", classes=tuple("abcd"), shape=SHAPE)
    return DatasetBundle(info=info, test=Split(N, 0), evaluation=range(N), fingerprint="toy", train=Split(TRAINING, 1))


def _measured(subject: MetricSubject, module: nn.Module | None = None) -> tuple[ResolvedMetric, dict[str, np.ndarray]]:
    """The metric, and what it measures on a new small network, or on ``module``."""
    declared = subject.declared
    if declared.scope != "model":
        raise Skipped("it is computed from stored results")
    metric, bundle = resolve_metric(subject.registry, subject.selector), _bundle()
    n = examples_of(metric, N)
    x, y = torch.stack([bundle.test[i][0] for i in range(n)]), torch.tensor([bundle.test[i][1] for i in range(n)])
    norm = declared.norms[0] if declared.norms else ""
    spec = {
        "protocol": {"eval_draws": 1},
        "metric": metric.spec(),
        "threat": f"{norm}:{EPS.get(norm, 1)}" if norm in EPS else norm or None,
        "seed": 0,
    }
    deployed = Deployed(module or Small(), num_classes=CLASSES)
    return metric, measure(spec, deployed, metric, bundle, x, y, tuple(range(n)), CARD)


def _measured_or_skip(subject: MetricSubject) -> tuple[ResolvedMetric, dict[str, np.ndarray]]:
    try:
        metric, arrays = _measured(subject)
        _value(metric, arrays)
        return metric, arrays
    except (Skipped, KeyboardInterrupt):
        raise
    except BaseException:
        raise Skipped("it raises: see the check `measures`") from None


def _value(metric: ResolvedMetric, arrays: Mapping[str, np.ndarray]) -> MetricValue:
    found: Any = value_of(metric, arrays)
    if not isinstance(found, MetricValue):
        raise Failed(f"it returned {type(found).__name__}", fix="return robustbench_lite.MetricValue(value=...)")
    return found


MODEL_METRIC_SUITE: Suite[MetricSubject] = Suite("metric", *COMMON)
_check = MODEL_METRIC_SUITE.check


def metric_suite(subject: MetricSubject) -> Suite[MetricSubject]:
    """The suite for the metric's scope."""
    return MODEL_METRIC_SUITE if subject.declared.scope == "model" else METRIC_SUITE


def check_metric(registry: Registry, selector: str) -> list[Outcome]:
    """Run the conformance suite on a metric."""
    subject = MetricSubject(registry, selector)
    return list(metric_suite(subject).run(subject))


@_check
def measures(subject: MetricSubject) -> None:
    """Measuring a model gives arrays of numbers of one length, and these give a MetricValue."""
    try:
        metric, arrays = _measured(subject)
        found = _value(metric, arrays)
    except (Skipped, Failed, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Failed(f"on a small network it raises {describe(error)}", fix="see MetricSpec for how it is called") from error
    for name in ("value", "low", "high"):
        number = getattr(found, name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, (int, float))):
            raise Failed(f"{name} is {type(number).__name__}", fix=f"give float({name}): it is written as JSON")
    if math.isnan(found.value):
        raise Failed("it is nan on a small network", fix="nan stands for no number; here there is one")
    if subject.declared.unit == "%" and not 0 <= found.value <= 1:
        raise Failed(f"it is {found.value:g} and its unit is %", fix="keep proportions in [0, 1]")
    if found.low is not None and found.high is not None and not found.low <= found.value <= found.high:
        raise Failed(
            f"the value {found.value:g} is outside [{found.low:g}, {found.high:g}]",
            fix="give the interval of the same quantity",
        )


@_check
def leaves_model(subject: MetricSubject) -> None:
    """Measuring leaves the module as it was: weights, statistics, mode, hooks and what requires gradients."""
    _measured_or_skip(subject)
    module = Small()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    _measured(subject, module)
    changed = [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]
    if changed:
        raise Failed(f"it changed {', '.join(changed)}", fix="work on copy.deepcopy(model.module)")
    if any(each.training for each in module.modules()) or any(p.requires_grad for p in module.parameters()):
        raise Failed("it left the module in training mode or requiring gradients", fix="work on copy.deepcopy(model.module)")
    if any(each._forward_hooks or each._forward_pre_hooks for each in module.modules()):
        raise Failed("it left hooks on the module", fix="remove them in a finally clause")


@_check
def measures_again(subject: MetricSubject) -> None:
    """Measuring twice gives the same numbers, and the value is a pure function of them."""
    metric, first = _measured_or_skip(subject)
    torch.rand(7)  # where torch's generator stands must not matter
    _, second = _measured(subject)
    for name, values in first.items():
        if name not in second or not np.array_equal(values, second[name], equal_nan=values.dtype.kind == "f"):
            raise Failed(f"the array {name!r} differs between two calls", fix="draw from model.rng")
    kept = {name: values.copy() for name, values in first.items()}
    values_found = [_value(metric, first), _value(metric, first)]
    if repr(values_found[0]) != repr(values_found[1]):
        raise Failed(f"it gave {values_found[0]} and then {values_found[1]}", fix="seed what it draws, and keep no state")
    if any(not np.array_equal(first[name], kept[name], equal_nan=kept[name].dtype.kind == "f") for name in kept):
        raise Failed("it changed the arrays in place", fix="work on a copy")
