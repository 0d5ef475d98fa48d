"""Metrics over stored results. This module only says what there is; importing it imports neither torch nor scipy."""

from __future__ import annotations

from collections.abc import Iterator

from robustbench_lite import MetricSpec, hookimpl


@hookimpl
def rbl_metrics() -> Iterator[MetricSpec]:
    """The metrics of this distribution."""
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
        name="worst-case",
        factory="rbl_metrics.accuracy:WorstCase",
        scope="defense",
        direction="higher",
        unit="%",
        summary="Share of all examples that are classified correctly and beaten by no attack inside the threat model",
        reference="arXiv:2003.01690",
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
        name="seconds",
        factory="rbl_metrics.cost:Seconds",
        scope="cell",
        direction="lower",
        unit="s",
        summary="Wall-clock seconds that the cell took, over all attempts",
    )
