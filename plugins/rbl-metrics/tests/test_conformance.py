"""The conformance suite on every metric of this distribution."""

from __future__ import annotations

from robustbench_lite.parameters import parse_selector
from robustbench_lite.registry import load
from robustbench_lite.testing import MetricConformance


class TestCleanAccuracy(MetricConformance):
    metric = "rbl/clean-accuracy"


class TestRobustAccuracy(MetricConformance):
    metric = "rbl/robust-accuracy"


class TestSuccessRate(MetricConformance):
    metric = "rbl/success-rate"


class TestFoolingRate(MetricConformance):
    metric = "rbl/fooling-rate"


class TestWorstClass(MetricConformance):
    metric = "rbl/worst-class"


class TestMedianPerturbation(MetricConformance):
    metric = "rbl/median-perturbation"


class TestPerturbationQuantile(MetricConformance):
    metric = "rbl/perturbation-quantile"


class TestMeanPerturbation(MetricConformance):
    metric = "rbl/mean-perturbation"


class TestAmsd(MetricConformance):
    metric = "rbl/amsd"


class TestAmud(MetricConformance):
    metric = "rbl/amud"


class TestPsnr(MetricConformance):
    metric = "rbl/psnr"


class TestCalibrationError(MetricConformance):
    metric = "rbl/calibration-error"


class TestNll(MetricConformance):
    metric = "rbl/nll"


class TestBrier(MetricConformance):
    metric = "rbl/brier"


class TestAdversarialDetection(MetricConformance):
    metric = "rbl/adversarial-detection"


class TestUndetectedError(MetricConformance):
    metric = "rbl/undetected-error"


class TestForwards(MetricConformance):
    metric = "rbl/forwards"


class TestBackwards(MetricConformance):
    metric = "rbl/backwards"


class TestQueries(MetricConformance):
    metric = "rbl/queries"


class TestSeconds(MetricConformance):
    metric = "rbl/seconds"


class TestWorstCase(MetricConformance):
    metric = "rbl/worst-case"


class TestUnionAccuracy(MetricConformance):
    metric = "rbl/union-accuracy"


class TestAuac(MetricConformance):
    metric = "rbl/auac"


class TestHalfAccuracyRadius(MetricConformance):
    metric = "rbl/half-accuracy-radius"


class TestAverageCase(MetricConformance):
    metric = "rbl/average-case"


def test_every_metric_is_tested() -> None:
    brought = {entry.id for entry in load().entries("metric") if entry.distribution == "rbl-metrics"}
    classes = [value for value in globals().values() if isinstance(value, type) and issubclass(value, MetricConformance)]
    assert brought <= {parse_selector(each.metric).name for each in classes if hasattr(each, "metric")}
