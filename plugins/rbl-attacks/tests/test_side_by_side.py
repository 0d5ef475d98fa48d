"""Runs towards several classes side by side: what they find, leave and cost an example is as if one followed the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_networks import fixture
from torch import Tensor

from rbl_attacks import best
from rbl_attacks.apgd import APGDT
from rbl_attacks.best import side_by_side
from rbl_attacks.fab import FABT
from robustbench_lite import Target, Threat
from robustbench_lite.testing import make_target


@pytest.mark.parametrize("attack", [APGDT(steps=15), APGDT(steps=6, restarts=2), FABT(steps=12)], ids=str)
@pytest.mark.parametrize("threat", ["linf:0.15", "l2:0.8", "l1:1.5"])
def test_they_beat_the_same_and_leave_the_same(attack: Any, threat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    after, points = run(attack, threat, 1, monkeypatch)
    beside, others = run(attack, threat, 1 << 14, monkeypatch)
    assert torch.equal(after.broken, beside.broken)
    left = ~after.broken
    assert 10 < left.sum() < 190
    # Logits of one image differ by rounding with the size of the batch, and a step of a sign can turn by that.
    same = (points[left] - others[left]).flatten(1).abs().amax(1) < 1e-5
    assert same.double().mean() > 0.9
    assert torch.equal(after.forwards[left], beside.forwards[left])
    assert torch.equal(after.backwards[left], beside.backwards[left])


def test_without_a_radius_the_nearest_point_of_all_classes_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = some()
    sizes = []
    for together in (1, 1 << 14):
        monkeypatch.setattr(best, "TOGETHER", together)
        target, rng = make_target(model, x, y, "l2", goal="minimal-norm")
        sizes.append(Threat.parse("l2").size(x, FABT(steps=10)(target, x, y, Threat.parse("l2"), rng)))
    assert sizes[0].isfinite().all()
    assert (sizes[0] - sizes[1]).abs().median() < 1e-6
    assert ((sizes[0] - sizes[1]).abs() < 1e-3).double().mean() > 0.95


def test_the_first_run_is_alone_and_large_images_are_looked_at_one_run_at_a_time() -> None:
    assert side_by_side(9, torch.zeros(5, 1, 8, 8)) == [range(1), range(1, 9)]
    assert side_by_side(9, torch.zeros(5, 3, 32, 32)) == [range(1), range(1, 6), range(6, 9)]
    assert side_by_side(3, torch.zeros(5, 3, 224, 224)) == [range(1), range(1, 2), range(2, 3)]
    assert side_by_side(1, torch.zeros(5, 1, 8, 8)) == [range(1)]


def run(attack: Any, threat: str, together: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Target, Tensor]:
    monkeypatch.setattr(best, "TOGETHER", together)
    model, x, y = some()
    target, rng = make_target(model, x, y, threat)
    return target, attack(target, x, y, Threat.parse(threat), rng)


def some() -> tuple[torch.nn.Module, Tensor, Tensor]:
    model, x, y = fixture("at")
    return model, x[:200], y[:200]
