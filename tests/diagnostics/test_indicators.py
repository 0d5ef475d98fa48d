"""Indicators of attack failure, on scripted attacks and models that fail for one known reason each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from robustbench_lite import losses
from robustbench_lite.diagnostics.catalogue import NotApplicable
from robustbench_lite.diagnostics.indicators import ADVICE, Indicators, Trace, _falls, indicate
from robustbench_lite.diagnostics.subject import Subject
from robustbench_lite.registry import Registry, load
from robustbench_lite.testing.toys import Linear
from robustbench_lite.threat import Threat
from tests.diagnostics import zoo
from tests.diagnostics.zoo import shipped

SCRIPTED = '''
from dataclasses import dataclass
from robustbench_lite import AttackSpec, hookimpl, losses

@hookimpl
def rbl_attacks():
    for name in ("Forgets", "Stops", "Shy", "Raises"):
        yield AttackSpec(name=name.lower(), factory=f"scripted:{name}", norms=("linf",), access="gradient")

def climb(target, x, y, threat, steps, size):
    points = x
    for _ in range(steps):
        _, _, gradient = target.loss_and_grad(points, losses.margin, y)
        points = threat.project(x, points + size * gradient.sign())
    return points

@dataclass(frozen=True)
class Forgets:
    """Finds the points and returns the images."""
    def __call__(self, target, x, y, threat, rng):
        target.labels(climb(target, x, y, threat, 20, threat.eps / 5))
        return x

@dataclass(frozen=True)
class Stops:
    """Takes three short steps of many."""
    def __call__(self, target, x, y, threat, rng):
        return climb(target, x, y, threat, 3, threat.eps / 20)

@dataclass(frozen=True)
class Shy:
    """Never moves by more than 0.01, whatever is allowed, and stays there."""
    def __call__(self, target, x, y, threat, rng):
        near = climb(target, x, y, threat.at(min(threat.eps, 0.01)), 5, 0.01)
        for _ in range(20):
            target.logits(near)
        return near

@dataclass(frozen=True)
class Raises:
    def __call__(self, target, x, y, threat, rng):
        raise ValueError("not today")
'''


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    file = tmp_path_factory.mktemp("plugins") / "scripted.py"
    file.write_text(SCRIPTED)
    sys.modules.pop("scripted", None)
    return load([Path(file)])


def of(subject: Subject, attack: str, registry: Registry | None = None) -> Indicators:
    subject.registry = registry or subject.registry
    found = indicate(subject, attack)
    assert set(found.values) == set(ADVICE)
    assert all(value.shape == found.failed.shape and 0 <= value.min() <= value.max() <= 1 for value in found.values.values())
    return found


def test_a_linear_model_fails_no_attack_for_a_reason() -> None:
    """Digits by a linear model: PGD is exact, so that what it leaves cannot be beaten. All indicators are 0, but for how much
    the margin, of nearly beaten examples too, changes within a ball that is four times as wide as the threat model's.
    """
    w = torch.linalg.lstsq(*_regression(), driver="gelsd").solution
    model = Linear(20 * w[:-1].T.contiguous(), 20 * w[-1].contiguous())
    found = of(zoo.subject(model, n=64, threat="linf:0.004"), "pgd[loss=margin,start=zero]")
    assert 10 < found.failed.sum() < 64
    means = found.means
    assert means.pop("unstable-predictions") < 0.25
    assert set(means.values()) == {0.0}


def _regression() -> tuple[torch.Tensor, torch.Tensor]:
    bundle = zoo.digits().bundle
    x, y = zoo.fetch(bundle.train, range(len(bundle.train)))
    return torch.cat([x.flatten(1), torch.ones(len(x), 1)], 1), torch.nn.functional.one_hot(y, 10).float()


def test_a_quantiser_gives_no_gradient() -> None:
    means = of(zoo.subject(zoo.quantised(), n=32), "apgd-ce[steps=20]").means
    assert means["unavailable-gradients"] == 1
    assert means["silent-success"] == 0


def test_our_attacks_never_succeed_in_silence() -> None:
    for attack in ("fgsm", "pgd[steps=10]", "apgd-ce[steps=10]", "square[queries=50]"):
        assert of(zoo.subject(shipped("pgd-at"), n=32), attack).means["silent-success"] == 0


def test_an_attack_that_returns_another_point_than_it_found(registry: Registry) -> None:
    found = of(zoo.subject(shipped("standard"), n=32), "forgets", registry)
    assert found.failed.sum() >= 30
    assert found.means["silent-success"] > 0.9


def test_an_attack_that_stops_while_its_loss_still_falls(registry: Registry) -> None:
    means = of(zoo.subject(shipped("pgd-at"), n=32), "stops", registry).means
    assert means["incomplete-optimization"] == 1
    assert of(zoo.subject(shipped("pgd-at"), n=32), "pgd[steps=100]").means["incomplete-optimization"] < 0.2


def test_an_attack_that_does_not_use_what_it_is_allowed(registry: Registry) -> None:
    means = of(zoo.subject(shipped("pgd-at"), n=32), "shy", registry).means
    assert means["unconstrained-failure"] > 0.9
    assert means["incomplete-optimization"] == 0
    assert of(zoo.subject(shipped("pgd-at"), n=32), "pgd[steps=20]").means["unconstrained-failure"] == 0


def test_points_made_on_another_model_fail_to_transfer() -> None:
    assert of(zoo.subject(shipped("pgd-at"), n=32), "transfer").means["transfer-failure"] > 0.5
    assert of(zoo.subject(shipped("pgd-at"), n=32), "pgd[steps=10]").means["transfer-failure"] == 0


def test_noise_on_the_logits_makes_predictions_unstable() -> None:
    quiet = of(zoo.subject(shipped("pgd-at")), "fgsm").means["unstable-predictions"]
    noisy = zoo.Wrapped(shipped("pgd-at"), after=lambda z: z + 10 * torch.randn_like(z))
    loud = of(zoo.subject(noisy, n=128), "fgsm")
    assert loud.failed.any()
    assert loud.means["unstable-predictions"] > 0.5 > 10 * quiet
    torch.manual_seed(1)
    assert of(zoo.subject(noisy, n=128), "fgsm").means == loud.means


def test_an_attack_that_raises_or_does_not_apply_says_so(registry: Registry) -> None:
    subject = zoo.subject(shipped("standard"), n=8)
    subject.registry = registry
    with pytest.raises(NotApplicable, match="raises raised ValueError: not today"):
        indicate(subject, "raises")
    with pytest.raises(NotApplicable, match="norm l0 not supported by pgd"):
        indicate(zoo.subject(shipped("standard"), n=8, threat="l0:4"), "pgd")


def test_a_minimal_norm_attack_fails_where_its_point_is_too_far() -> None:
    found = of(zoo.subject(shipped("pgd-at"), n=16), "fmn[steps=20]")
    assert 0 < found.failed.sum() < 16
    assert found.means["unconstrained-failure"] == 0


@pytest.mark.parametrize(
    ("loss", "falls"),
    [
        ([], False),
        ([3.0], False),
        ([1.0] * 30, False),
        ([*range(30, 0, -1)], True),
        ([10.0, 0.0] + [0.0] * 20, False),
        ([10.0, 0.0] + [5.0, -1.0] * 10, False),
        ([10.0] + [5.0] * 15 + [4.0], True),
        ([10.0] + [0.0] * 15 + [-0.5], False),
    ],
)
def test_what_counts_as_still_falling(loss: list[float], falls: bool) -> None:
    """The running minimum over the last ten points, in units of the whole range."""
    assert _falls(loss) is falls


def test_a_trace_keeps_each_examples_own_sequence() -> None:
    x, y = torch.zeros(3, 1, 1, 1), torch.tensor([0, 1, 0])
    trace = Trace(Threat.parse("linf:0.5"), rejects=False)
    trace.begin(x, y)
    trace.asked(None, x, torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0]]))
    trace.asked(torch.tensor([1, 0]), torch.tensor([0.9, 0.1]).view(2, 1, 1, 1), torch.tensor([[5.0, 0.0], [0.0, 1.0]]))
    assert trace.losses == [[1.0, -1.0], [1.0, -5.0], [-3.0]]
    assert trace.found.tolist() == [True, False, True]  # the second example's point is too far
    trace.followed(torch.tensor([2, 1]), torch.tensor([[[[0.0]]], [[[1.0]]]]))
    assert trace.zero.tolist() == [False, False, True]
    assert losses.margin(torch.tensor([[2.0, 1.0]]), torch.tensor([0])).item() == -1
