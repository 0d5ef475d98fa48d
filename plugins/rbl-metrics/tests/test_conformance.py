"""The conformance suite on every metric of this distribution."""

from __future__ import annotations

from robustbench_lite.parameters import parse_selector
from robustbench_lite.registry import load
from robustbench_lite.testing import MetricConformance


class TestCleanAccuracy(MetricConformance):
    metric = "rbl/clean-accuracy"


class TestRobustAccuracy(MetricConformance):
    metric = "rbl/robust-accuracy"


class TestWorstCase(MetricConformance):
    metric = "rbl/worst-case"


class TestMedianPerturbation(MetricConformance):
    metric = "rbl/median-perturbation"


class TestForwards(MetricConformance):
    metric = "rbl/forwards"


class TestBackwards(MetricConformance):
    metric = "rbl/backwards"


class TestSeconds(MetricConformance):
    metric = "rbl/seconds"


def test_every_metric_is_tested() -> None:
    brought = {entry.id for entry in load().entries("metric") if entry.distribution == "rbl-metrics"}
    classes = [value for value in globals().values() if isinstance(value, type) and issubclass(value, MetricConformance)]
    assert brought <= {parse_selector(each.metric).name for each in classes if hasattr(each, "metric")}
