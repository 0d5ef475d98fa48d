"""The suites as pytest classes, for the tests of a plugin::

    from robustbench_lite.testing import AttackConformance

    class TestFMN(AttackConformance):
        attack = "fmn[steps=50]"

pytest makes one test of every check, named after it (``test_inside_the_ball``); what cannot be checked is skipped with the
reason. A class may override a test, to skip it with a reason of its own. pytest is imported only when a test runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from robustbench_lite.registry import Registry, load
from robustbench_lite.runner import prepare_torch
from robustbench_lite.testing.attack import ATTACK_SUITE
from robustbench_lite.testing.attack_subject import AttackSubject
from robustbench_lite.testing.checks import Check, Outcome, Subject, Suite
from robustbench_lite.testing.dataset import DATASET_SUITE, DatasetSubject
from robustbench_lite.testing.defense import DEFENSE_SUITE
from robustbench_lite.testing.defense_subject import DefenseSubject
from robustbench_lite.testing.measured_metric import MODEL_METRIC_SUITE
from robustbench_lite.testing.metric import METRIC_SUITE, MetricSubject


class _Conformance(ABC):
    """What they have in common. plugins: one-file plugins to load beside the installed ones, as ``rbl --plugin`` does."""

    plugins: ClassVar[Sequence[Path]] = ()

    @classmethod
    def registry(cls) -> Registry:
        """The plugins to look in: all that are installed, and ``plugins``."""
        return load(cls.plugins)

    @classmethod
    @abstractmethod
    def make_subject(cls) -> Subject:
        """The object under test."""

    @classmethod
    def subject(cls) -> Subject:
        """The object under test, made once for each class."""
        if "_subject" not in vars(cls):
            cls._subject = cls.make_subject()
        return cls._subject

    _subject: ClassVar[Subject]


class AttackConformance(_Conformance):
    """One test for every check of an attack.

    attack: its id or short name, with parameters where wanted. device: where models and images are, ``cuda`` for a GPU.
    """

    attack: ClassVar[str]
    device: ClassVar[str] = "cpu"

    @classmethod
    def make_subject(cls) -> AttackSubject:
        prepare_torch(cls.device, None)
        return AttackSubject(cls.registry(), cls.attack, cls.device)


class DefenseConformance(_Conformance):
    """One test for every check of a defense.

    defense: its id or short name, with parameters where wanted. dataset: the data set that it is built for; by default the
    first that its spec names, otherwise ``digits`` where installed. data: the folder of data sets; by default ``RBL_DATA``.
    device: where module and images are, ``cuda`` for a GPU.
    """

    defense: ClassVar[str]
    dataset: ClassVar[str] = ""
    data: ClassVar[Path | None] = None
    device: ClassVar[str] = "cpu"

    @classmethod
    def make_subject(cls) -> DefenseSubject:
        prepare_torch(cls.device, None)
        return DefenseSubject(cls.registry(), cls.defense, cls.dataset, cls.data, cls.device)


class DatasetConformance(_Conformance):
    """One test for every check of a data set. data: the folder of data sets; by default ``RBL_DATA``."""

    dataset: ClassVar[str]
    data: ClassVar[Path | None] = None

    @classmethod
    def make_subject(cls) -> DatasetSubject:
        return DatasetSubject(cls.registry(), cls.dataset, cls.data)


class MetricConformance(_Conformance):
    """One test for every check of a metric of scope ``cell`` or ``defense``."""

    metric: ClassVar[str]

    @classmethod
    def make_subject(cls) -> MetricSubject:
        return MetricSubject(cls.registry(), cls.metric)


class ModelMetricConformance(_Conformance):
    """One test for every check of a metric of scope ``model``."""

    metric: ClassVar[str]

    @classmethod
    def make_subject(cls) -> MetricSubject:
        return MetricSubject(cls.registry(), cls.metric)


def report(outcome: Outcome) -> None:
    """Tell pytest how a check ended."""
    import pytest

    fix = f"\n  fix: {outcome.fix}" if outcome.fix else ""
    if outcome.status == "failed":
        pytest.fail(f"{outcome.reason}{fix}\n  the check: {outcome.proves}", pytrace=False)
    if outcome.status == "skipped":
        pytest.skip(outcome.reason + fix)


def _test(check: Check[Any]) -> Callable[[_Conformance], None]:
    def test(self: _Conformance) -> None:
        report(check.run(self.subject()))

    test.__name__ = f"test_{check.name.replace('-', '_')}"
    test.__doc__ = check.proves + "."
    return test


for _class, _suite in (
    (AttackConformance, ATTACK_SUITE),
    (DefenseConformance, DEFENSE_SUITE),
    (DatasetConformance, DATASET_SUITE),
    (MetricConformance, METRIC_SUITE),
    (ModelMetricConformance, MODEL_METRIC_SUITE),
):
    for _each in cast(Suite[Any], _suite).checks:
        _made = _test(_each)
        setattr(_class, _made.__name__, _made)
