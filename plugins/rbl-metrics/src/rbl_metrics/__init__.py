"""Metrics of stored results and of models. This module only says what there is, and imports neither torch nor scipy."""

from __future__ import annotations

from collections.abc import Iterator

from robustbench_lite import MetricSpec, hookimpl


@hookimpl
def rbl_metrics() -> Iterator[MetricSpec]:
    """The metrics of this distribution."""
    yield from _of_results()
    yield from _of_models()


def _of_results() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="clean-accuracy",
        factory="rbl_metrics.accuracy:CleanAccuracy",
        scope="cell",
        direction="higher",
        unit="%",
        summary="Share of all examples that are classified correctly",
    )
    yield MetricSpec(
        name="robust-accuracy",
        factory="rbl_metrics.accuracy:RobustAccuracy",
        scope="cell",
        direction="higher",
        unit="%",
        summary="Share of all examples that are classified correctly and not beaten inside the threat model",
        reference="arXiv:1902.06705",
    )
    yield MetricSpec(
        name="success-rate",
        factory="rbl_metrics.accuracy:SuccessRate",
        scope="cell",
        direction="lower",
        unit="%",
        summary="Share of the correctly classified (or of all) examples that the attack beats",
    )
    yield MetricSpec(
        name="fooling-rate",
        factory="rbl_metrics.accuracy:FoolingRate",
        scope="cell",
        direction="lower",
        unit="%",
        summary="Share of all examples whose predicted class the attack changes",
        reference="arXiv:1610.08401",
    )
    yield MetricSpec(
        name="worst-class",
        factory="rbl_metrics.classes:WorstClass",
        scope="cell",
        direction="higher",
        unit="%",
        summary="Robust accuracy of the class where it is smallest",
    )
    yield MetricSpec(
        name="median-perturbation",
        factory="rbl_metrics.perturbation:MedianPerturbation",
        scope="cell",
        direction="higher",
        unit="in the threat's norm",
        summary="Median of the smallest perturbations found, over the examples classified correctly",
    )
    yield MetricSpec(
        name="perturbation-quantile",
        factory="rbl_metrics.perturbation:PerturbationQuantile",
        scope="cell",
        direction="higher",
        unit="in the threat's norm",
        summary="A quantile of the smallest perturbations found, over the examples classified correctly",
    )
    yield MetricSpec(
        name="mean-perturbation",
        factory="rbl_metrics.perturbation:MeanPerturbation",
        scope="cell",
        direction="higher",
        unit="in the threat's norm",
        summary="Mean of the smallest perturbations found, each counted up to a cap",
    )
    yield MetricSpec(
        name="amsd",
        factory="rbl_metrics.perturbation:NormalisedDistance",
        scope="cell",
        direction="higher",
        unit="of the pixel range",
        summary="Size of the perturbations found per input value, comparable between image sizes",
    )
    yield MetricSpec(
        name="amud",
        factory="rbl_metrics.perturbation:Evenness",
        scope="cell",
        direction="none",
        summary="How evenly the perturbations found are spread over the image: normalised entropy",
    )
    yield MetricSpec(
        name="psnr",
        factory="rbl_metrics.perturbation:SignalToNoise",
        scope="cell",
        direction="lower",
        unit="dB",
        summary="Peak signal-to-noise ratio of the perturbations found",
    )
    yield MetricSpec(
        name="calibration-error",
        factory="rbl_metrics.calibration:CalibrationError",
        scope="cell",
        direction="lower",
        summary="Gap between confidence and accuracy, on clean images or under attack",
        reference="arXiv:1706.04599",
    )
    yield MetricSpec(
        name="nll",
        factory="rbl_metrics.calibration:NegativeLogLikelihood",
        scope="cell",
        direction="lower",
        unit="nats",
        summary="Mean negative log-likelihood of the labels, on clean images or under attack",
    )
    yield MetricSpec(
        name="brier",
        factory="rbl_metrics.calibration:BrierScore",
        scope="cell",
        direction="lower",
        summary="Mean squared error of the probabilities, on clean images or under attack",
        reference="doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2",
    )
    yield MetricSpec(
        name="adversarial-detection",
        factory="rbl_metrics.detection:AdversarialDetection",
        scope="cell",
        direction="higher",
        unit="AUROC",
        summary="How well a score of the logits tells clean images from those that beat the defense",
        reference="arXiv:1610.02136",
    )
    yield MetricSpec(
        name="undetected-error",
        factory="rbl_metrics.detection:UndetectedError",
        scope="cell",
        direction="lower",
        unit="%",
        summary="Share that is misclassified and not rejected by a detector with few false alarms",
    )
    yield MetricSpec(
        name="forwards",
        factory="rbl_metrics.cost:Forwards",
        scope="cell",
        direction="lower",
        unit="passes per example",
        summary="Forward passes that the attack spent per example",
    )
    yield MetricSpec(
        name="backwards",
        factory="rbl_metrics.cost:Backwards",
        scope="cell",
        direction="lower",
        unit="passes per example",
        summary="Backward passes that the attack spent per example",
    )
    yield MetricSpec(
        name="queries",
        factory="rbl_metrics.cost:Queries",
        scope="cell",
        direction="higher",
        unit="queries",
        summary="Queries that the attack spent on an example that it beat",
    )
    yield MetricSpec(
        name="seconds",
        factory="rbl_metrics.cost:Seconds",
        scope="cell",
        direction="lower",
        unit="s",
        summary="Wall-clock seconds that the cell took, over all attempts",
    )
    yield MetricSpec(
        name="worst-case",
        factory="rbl_metrics.accuracy:WorstCase",
        scope="defense",
        direction="higher",
        unit="%",
        summary="Share of all examples that are classified correctly and beaten by no attack inside the threat model",
        reference="arXiv:2003.01690",
    )
    yield MetricSpec(
        name="union-accuracy",
        factory="rbl_metrics.ensembles:UnionAccuracy",
        scope="defense",
        direction="higher",
        unit="%",
        summary="Share that is classified correctly and beaten inside no part of a union of threat models",
        reference="arXiv:1904.13000",
    )
    yield MetricSpec(
        name="auac",
        factory="rbl_metrics.curves:AreaUnderCurve",
        scope="defense",
        direction="higher",
        unit="%",
        summary="Mean robust accuracy over radii up to that of the threat model",
    )
    yield MetricSpec(
        name="half-accuracy-radius",
        factory="rbl_metrics.curves:HalfAccuracyRadius",
        scope="defense",
        direction="higher",
        unit="in the threat's norm",
        summary="Smallest radius at which at most half of the examples are robust",
    )
    yield MetricSpec(
        name="average-case",
        factory="rbl_metrics.corruption:AverageCase",
        scope="defense",
        direction="higher",
        unit="%",
        summary="Mean robust accuracy over attacks: over kinds and severities of common corruptions",
        reference="arXiv:1903.12261",
    )


def _of_models() -> Iterator[MetricSpec]:
    yield MetricSpec(
        name="flatness-average",
        factory="rbl_metrics.flatness:AverageFlatness",
        scope="model",
        direction="lower",
        unit="nats",
        summary="Rise of the robust loss when weights are perturbed at random",
        reference="arXiv:2104.04448",
        per_example=True,
        norms=("linf",),
        needs=("gradient", "deterministic"),
    )
    yield MetricSpec(
        name="flatness-worst",
        factory="rbl_metrics.flatness:WorstFlatness",
        scope="model",
        direction="lower",
        unit="nats",
        summary="Rise of the robust loss when weights are perturbed for the worst",
        reference="arXiv:2104.04448",
        per_example=True,
        norms=("linf",),
        needs=("gradient", "deterministic"),
    )
    yield MetricSpec(
        name="class-selectivity",
        factory="rbl_metrics.selectivity:ClassSelectivity",
        scope="model",
        direction="none",
        summary="How much single units answer to single classes",
        reference="arXiv:2003.01262",
        needs=("deterministic",),
    )
    yield MetricSpec(
        name="representation-dimension",
        factory="rbl_metrics.representation:RepresentationDimension",
        scope="model",
        direction="none",
        unit="components",
        summary="In how many directions the last hidden layer varies over images",
        needs=("deterministic",),
    )
    yield MetricSpec(
        name="adversarial-dimension",
        factory="rbl_metrics.representation:AdversarialDimension",
        scope="model",
        direction="none",
        unit="components",
        summary="In how many directions an attack changes the last hidden layer",
        norms=("linf",),
        needs=("gradient", "deterministic"),
    )
    yield MetricSpec(
        name="certified-radius",
        factory="rbl_metrics.certified:CertifiedRadius",
        scope="model",
        direction="higher",
        unit="l2",
        summary="Average certified radius, by randomised smoothing",
        reference="arXiv:1902.02918",
        per_example=True,
        needs=("certify",),
    )
    yield MetricSpec(
        name="certified-accuracy",
        factory="rbl_metrics.certified:CertifiedAccuracy",
        scope="model",
        direction="higher",
        unit="%",
        summary="Share that is answered rightly with a certified radius, by randomised smoothing",
        reference="arXiv:1902.02918",
        per_example=True,
        needs=("certify",),
    )
    yield MetricSpec(
        name="local-lipschitz",
        factory="rbl_metrics.lipschitz:LocalLipschitz",
        scope="model",
        direction="lower",
        summary="Largest gradient of the margin found near an image: a lower bound of its slope",
        per_example=True,
        norms=("linf", "l2"),
        needs=("gradient",),
    )
    yield MetricSpec(
        name="clever",
        factory="rbl_metrics.lipschitz:Clever",
        scope="model",
        direction="higher",
        unit="in its norm",
        summary="Extreme-value estimate of the smallest perturbation; not a bound",
        reference="arXiv:1801.10578",
        per_example=True,
        needs=("gradient", "deterministic"),
    )
    yield MetricSpec(
        name="pass-spread",
        factory="rbl_metrics.randomness:PassSpread",
        scope="model",
        direction="none",
        summary="Standard deviation of clean accuracy over single passes of a stochastic defense",
        per_example=True,
    )
    yield MetricSpec(
        name="ood-auroc",
        factory="rbl_metrics.ood:OutOfDistribution",
        scope="model",
        direction="higher",
        unit="AUROC",
        summary="How well a score tells test images from images of other data sets, or noise",
        reference="arXiv:1610.02136",
    )
    yield MetricSpec(
        name="generalisation-gap",
        factory="rbl_metrics.gaps:GeneralisationGap",
        scope="model",
        direction="lower",
        summary="Robust accuracy on training examples minus that on test examples",
        norms=("linf",),
        needs=("gradient", "deterministic", "training-data"),
    )
    yield MetricSpec(
        name="overfit-gap",
        factory="rbl_metrics.gaps:OverfitGap",
        scope="model",
        direction="lower",
        unit="%",
        summary="Robust accuracy of the best training epoch minus that of the last",
        reference="arXiv:2002.11569",
        needs=("history",),
    )
    yield MetricSpec(
        name="parameters",
        factory="rbl_metrics.model_cost:Parameters",
        scope="model",
        direction="lower",
        summary="Number of parameters",
    )
    yield MetricSpec(
        name="flops",
        factory="rbl_metrics.model_cost:Flops",
        scope="model",
        direction="lower",
        summary="Floating-point operations of one pass over one image",
    )
