"""Defenses: training, transformations at test time, detectors. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from rbl_defenses.specs_architectures import ARCHITECTURES
from rbl_defenses.specs_baselines import BASELINES
from rbl_defenses.specs_detectors import DETECTORS
from rbl_defenses.specs_noise import NOISE
from rbl_defenses.specs_regularised import REGULARISED
from rbl_defenses.specs_transforms import TRANSFORMS
from robustbench_lite import DefenseSpec, hookimpl


@hookimpl
def rbl_defenses() -> Iterable[DefenseSpec]:
    """Trained defenses first, then wrappers, then what detects; the last two families stand in lists of their own."""
    yield DefenseSpec(
        name="standard",
        factory="rbl_defenses.standard:Standard",
        kind="trained",
        summary="Standard training on clean images: the zero point of every table",
    )
    yield DefenseSpec(
        name="pgd-at",
        factory="rbl_defenses.pgd_at:PGDTraining",
        kind="trained",
        summary="Adversarial training: minimise the loss at the worst point that PGD finds",
        reference="arXiv:1706.06083",
    )
    yield DefenseSpec(
        name="trades",
        factory="rbl_defenses.trades:Trades",
        kind="trained",
        summary="TRADES: clean loss plus the divergence between predictions at x and near x",
        reference="arXiv:1901.08573",
    )
    yield DefenseSpec(
        name="mart",
        factory="rbl_defenses.mart:Mart",
        kind="trained",
        summary="MART: a boosted adversarial loss, and a divergence weighed by the clean error",
        reference="https://openreview.net/forum?id=rklOg6EFwS",
    )
    yield DefenseSpec(
        name="awp",
        factory="rbl_defenses.awp:AWP",
        kind="trained",
        summary="Adversarial weight perturbation: descend at weights moved against the loss, around another method",
        reference="arXiv:2004.05884",
    )
    yield from BASELINES
    yield from REGULARISED
    yield from ARCHITECTURES
    yield from NOISE
    yield from TRANSFORMS
    yield from DETECTORS
