"""Every check finds the metric that is broken in its way, and nothing else is wrong with that metric."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from robustbench_lite import Threat
from robustbench_lite.registry import Registry, load
from robustbench_lite.testing import METRIC_SUITE, MODEL_METRIC_SUITE, MetricSubject, check_metric, make_cell
from tests.support import BROKEN_PLUGINS, failures

BROKEN = {
    "torch-inside": {"factory-is-light"},
    "crashes": {"runs"},
    "wrong-scope": {"runs"},
    "returns-float": {"runs"},
    "numpy-value": {"runs"},
    "crashes-on-edges": {"edges"},
    "percent": {"in-range"},
    "nan": {"in-range"},
    "zero-when-empty": {"empty-cell"},
    "changes-arrays": {"pure"},
    "random-value": {"pure"},
    "half-interval": {"interval-holds-value"},
    "interval-elsewhere": {"interval-holds-value"},
    "wrong-way": {"direction"},
}
BROKEN_OF_MODELS = {
    "raises-in-measure": {"measures"},
    "returns-list": {"measures"},
    "uneven-rows": {"measures"},
    "above-one": {"measures"},
    "model-interval": {"measures"},
    "float-of-model": {"measures"},
    "trains-it": {"leaves-model"},
    "shifts-it": {"leaves-model"},
    "keeps-hooks": {"leaves-model"},
    "unseeded": {"measures-again"},
    "keeps-state": {"measures-again"},
    "sorts-arrays": {"measures-again"},
    "nan-of-model": {"measures"},
}
EVERYWHERE = {"plugin-problems", "spec-is-complete", "light-import", "parameters-are-valid"}


@cache
def registry() -> Registry:
    return load([BROKEN_PLUGINS / "broken_others.py"], entry_points=False)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BROKEN_PLUGINS))
    monkeypatch.setenv("PYTHONPATH", str(BROKEN_PLUGINS))


@pytest.mark.parametrize("name", [*BROKEN, *BROKEN_OF_MODELS])
def test_finds_exactly_what_is_broken(name: str) -> None:
    outcomes = check_metric(registry(), name)
    assert failures(outcomes).keys() == (BROKEN | BROKEN_OF_MODELS)[name], failures(outcomes)
    assert all(o.fix for o in outcomes if o.status == "failed")


@pytest.mark.parametrize("name", ["share", "worst", "of-model"])
def test_sound_metrics_pass_every_check(name: str) -> None:
    outcomes = check_metric(registry(), name)
    assert {o.status for o in outcomes} == {"passed"}, failures(outcomes)


def test_a_metric_of_the_model_has_a_suite_of_its_own() -> None:
    outcomes = list(METRIC_SUITE.run(MetricSubject(registry(), "of-model")))
    assert not failures(outcomes)
    assert "a metric of scope 'model' has a suite of its own" in {o.reason for o in outcomes if o.status == "skipped"}


def test_every_check_is_shown_to_find_something() -> None:
    assert set().union(*BROKEN.values()) | EVERYWHERE == {check.name for check in METRIC_SUITE.checks}
    assert set().union(*BROKEN_OF_MODELS.values()) | EVERYWHERE == {check.name for check in MODEL_METRIC_SUITE.checks}


def test_made_up_cells_are_as_the_judge_writes_them() -> None:
    cell = make_cell(n=50, correct=0.8, robust=0.25, threat="linf:0.2")
    arrays = cell.arrays
    assert arrays["clean_correct"].sum() == 40
    assert cell.robust().sum() == 10
    assert np.array_equal(arrays["clean_correct"], arrays["clean_pred"] == arrays["y"])
    assert np.array_equal(np.isfinite(arrays["size"]), arrays["success"])
    assert (arrays["size"][arrays["success"]] <= 0.2).all()
    assert (arrays["adv_pred"] != arrays["y"])[arrays["success"]].all()
    assert ((arrays["margin_clean"] > 0) == arrays["clean_correct"]).all()
    assert not arrays["success"][~arrays["clean_correct"]].any()
    assert cell.robust(Threat.parse("linf:0.01")).sum() == 40
    assert make_cell(n=0).n == 0
