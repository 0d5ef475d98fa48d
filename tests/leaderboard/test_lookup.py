from __future__ import annotations

import subprocess
import sys

import pytest

import rbl_metrics
from robustbench_lite import DefenseSpec, MetricSpec, UsageError, hookimpl
from robustbench_lite.leaderboard import About, Metrics, about_from, build_tables, metric_from
from robustbench_lite.registry import Registry


class Lab:
    """A stranger's plugin."""

    @hookimpl
    def rbl_metrics(self):
        yield MetricSpec(name="broken", factory="nowhere_at_all:Metric", scope="cell", direction="higher")

    @hookimpl
    def rbl_defenses(self):
        yield DefenseSpec(
            name="shield",
            factory="lab:Shield",
            reference="arXiv:1802.00420",
            fidelity="reconstruction",
            extra_data="80 million tiny images",
        )


@pytest.fixture
def registry():
    found = Registry()
    found.add(rbl_metrics, namespace="rbl", distribution="rbl-metrics")
    found.add(Lab(), namespace="lab", distribution="lab")
    return found


def test_metrics_come_from_the_registry(registry, make_cell, one):
    table = one([make_cell(beaten=range(10))], metric=metric_from(registry), about=about_from(registry))
    assert table.rows[0].worst.value == 0.75
    assert table.rows[0].reference == ""  # rbl/d is not installed


def test_what_is_declared_comes_from_the_registry(registry):
    assert about_from(registry)("lab/shield") == About(
        reference="arXiv:1802.00420", fidelity="reconstruction", extra_data="80 million tiny images"
    )
    assert about_from(registry)("gone/shield") == About()


def test_a_metric_that_is_not_installed_says_what_to_install():
    with pytest.raises(UsageError, match="needs the metric rbl/clean-accuracy") as caught:
        build_tables([], metric=metric_from(Registry()))
    assert caught.value.hint == "pip install rbl-metrics"


def test_a_stranger_s_metric_that_is_missing_or_broken_is_named(registry):
    for name in ("lab/nothing", "lab/broken"):
        with pytest.raises(Exception, match=name):
            build_tables([], metric=metric_from(registry), metrics=Metrics(worst=name))


def test_leaderboards_import_no_torch():
    code = "import robustbench_lite.leaderboard, robustbench_lite.leaderboard.terminal, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
