from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from robustbench_lite import Threat, UsageError
from robustbench_lite.leaderboard.account import account

from .conftest import N


@pytest.fixture
def cell(make_cell):
    """Beats 0 to 9 of 40; classes 0 and 1 in turn; the wrong one of 39."""
    found = make_cell("x", "a", range(10), sizes=np.linspace(0.01, 0.1, 10), wrong=[39], rejected={1: 30, 4: 2}, unstable=1)
    arrays = found.arrays | {
        "y": np.arange(N) % 2,
        "adv_pred": np.where(np.arange(N) < 8, 7, 5),
        "source": np.repeat([1, 2], 20),
    }
    return replace(found, arrays=arrays)


def test_the_numbers_of_a_result(cell):
    found = account(cell)
    numbers = found["numbers"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (numbers["clean_accuracy"]["value"], numbers["robust_accuracy"]["value"]) == (39 / N, 29 / N)
    assert (numbers["beaten"], numbers["attacked"], numbers["unstable"]) == ([*range(10)], 39, 1)
    assert numbers["size"] == {
        "mean": pytest.approx(0.055),
        "min": 0.01,
        "median": pytest.approx(0.055),
        "max": 0.1,
        "median_of_attacked": "inf",
    }
    assert numbers["cost"]["forwards"] == {"mean": 20, "min": 20, "median": 20, "max": 20}
    assert numbers["refused"] == {"not misclassified": 30, "outside the threat model": 2, "accepted": 8}
    assert numbers["found"] == {"proposed by the attack": 20, "best seen by the target": 20}
    assert numbers["classes"] == [
        {"class": 0, "n": 20, "right": 20, "robust": 15, "taken_for": {"7": 4, "5": 1}},
        {"class": 1, "n": 20, "right": 19, "robust": 14, "taken_for": {"7": 4, "5": 1}},
    ]
    assert found["at"] == "linf:0.15"


def test_a_minimal_norm_result_is_counted_within_a_radius(make_cell):
    cell = make_cell("x", "fmn", range(10), sizes=np.linspace(0.01, 0.1, 10), threat="linf")
    assert account(cell)["at"] is None
    assert len(account(cell)["numbers"]["beaten"]) == 10
    assert account(cell, Threat.parse("linf:0.05"))["numbers"]["beaten"] == [0, 1, 2, 3, 4]
    for other in ("l2:0.05", "union:linf:0.1+l2:1"):
        with pytest.raises(UsageError, match="says nothing about"):
            account(cell, Threat.parse(other))
    with pytest.raises(UsageError, match=r"linf:0\.15 says nothing about linf:0\.1"):
        account(make_cell(), Threat.parse("linf:0.1"))


def test_a_result_without_examples_has_no_numbers(make_cell):
    found = account(make_cell(status="error", reason="no"))
    assert (found["status"], found["reason"], found["n"], found["numbers"]) == ("error", "no", 0, None)


def test_nothing_beaten_has_no_sizes(make_cell):
    numbers = account(make_cell(wrong=range(N)))["numbers"]
    assert numbers["size"] == {"mean": None, "min": None, "median": None, "max": None, "median_of_attacked": None}
