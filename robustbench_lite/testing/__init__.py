"""What plugin authors test with: toy targets, and conformance suites that say what a plugin must keep.

In a plugin's tests, one class per object; every check of its kind becomes a test::

    class TestFMN(AttackConformance):
        attack = "fmn"

``rbl check NAME`` runs the same checks, and needs no pytest. ``check_attack`` and its kind return the outcomes as objects.
"""

from __future__ import annotations

from robustbench_lite.testing.attack import ATTACK_SUITE, check_attack
from robustbench_lite.testing.attack_subject import AttackSubject
from robustbench_lite.testing.checks import Check, Failed, Outcome, Skipped, Subject, Suite
from robustbench_lite.testing.conformance import (
    AttackConformance,
    DatasetConformance,
    DefenseConformance,
    MetricConformance,
    ModelMetricConformance,
)
from robustbench_lite.testing.dataset import DATASET_SUITE, DatasetSubject, check_dataset
from robustbench_lite.testing.defense import DEFENSE_SUITE, check_defense
from robustbench_lite.testing.defense_subject import DefenseSubject
from robustbench_lite.testing.measured_metric import MODEL_METRIC_SUITE, check_metric, metric_suite
from robustbench_lite.testing.metric import METRIC_SUITE, MetricSubject, make_cell
from robustbench_lite.testing.problems import Problem
from robustbench_lite.testing.toys import CoinFlip, Constant, Linear, Masked, NotANumber, make_target

__all__ = [
    "ATTACK_SUITE",
    "DATASET_SUITE",
    "DEFENSE_SUITE",
    "METRIC_SUITE",
    "MODEL_METRIC_SUITE",
    "AttackConformance",
    "AttackSubject",
    "Check",
    "CoinFlip",
    "Constant",
    "DatasetConformance",
    "DatasetSubject",
    "DefenseConformance",
    "DefenseSubject",
    "Failed",
    "Linear",
    "Masked",
    "MetricConformance",
    "MetricSubject",
    "ModelMetricConformance",
    "NotANumber",
    "Outcome",
    "Problem",
    "Skipped",
    "Subject",
    "Suite",
    "check_attack",
    "check_dataset",
    "check_defense",
    "check_metric",
    "make_cell",
    "make_target",
    "metric_suite",
]
