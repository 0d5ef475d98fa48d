"""The conformance suite on every metric of this distribution."""

from __future__ import annotations

from robustbench_lite.registry import load
from robustbench_lite.selectors import parse_selector
from robustbench_lite.testing import MetricConformance, ModelMetricConformance


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


class TestFlatnessAverage(ModelMetricConformance):
    metric = "rbl/flatness-average[steps=3,draws=2,restarts=2]"


class TestFlatnessWorst(ModelMetricConformance):
    metric = "rbl/flatness-worst[steps=3,weight_restarts=2,restarts=2]"


class TestClassSelectivity(ModelMetricConformance):
    metric = "rbl/class-selectivity"


class TestRepresentationDimension(ModelMetricConformance):
    metric = "rbl/representation-dimension"


class TestAdversarialDimension(ModelMetricConformance):
    metric = "rbl/adversarial-dimension"


class TestCertifiedRadius(ModelMetricConformance):
    metric = "rbl/certified-radius"


class TestCertifiedAccuracy(ModelMetricConformance):
    metric = "rbl/certified-accuracy"


class TestLocalLipschitz(ModelMetricConformance):
    metric = "rbl/local-lipschitz[samples=4]"


class TestClever(ModelMetricConformance):
    metric = "rbl/clever[examples=3,batches=4,samples=8]"


class TestPassSpread(ModelMetricConformance):
    metric = "rbl/pass-spread"


class TestOodAuroc(ModelMetricConformance):
    metric = "rbl/ood-auroc"


class TestGeneralisationGap(ModelMetricConformance):
    metric = "rbl/generalisation-gap"


class TestOverfitGap(ModelMetricConformance):
    metric = "rbl/overfit-gap"


class TestParameters(ModelMetricConformance):
    metric = "rbl/parameters"


class TestFlops(ModelMetricConformance):
    metric = "rbl/flops"


def test_every_metric_is_tested() -> None:
    brought = {entry.id for entry in load().entries("metric") if entry.distribution == "rbl-metrics"}
    classes = [
        value
        for value in globals().values()
        if isinstance(value, type) and issubclass(value, (MetricConformance, ModelMetricConformance))
    ]
    assert brought <= {parse_selector(each.metric).name for each in classes if hasattr(each, "metric")}
