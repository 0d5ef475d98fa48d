"""The oracle zoo: each planted defect is caught by the checks that are meant to, and nothing else fails. Sound models pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.diagnostics.catalogue import CHECKS
from robustbench_lite.diagnostics.subject import Subject
from robustbench_lite.verdict import Verdict
from tests.diagnostics import zoo
from tests.diagnostics.zoo import Wrapped, shipped, subject

Make = Callable[[], Subject]


def wrap(before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Tensor] = lambda z: z) -> Make:
    return lambda: subject(Wrapped(shipped("standard"), before, after))


# Defect -> (the model, what must fail, what may fail as well: consequences that a few examples decide).
DEFECTS: dict[str, tuple[Make, set[str], set[str]]] = {
    "logits-scaled": (lambda: subject(zoo.scaled(1e4)), {"zero-gradients", "loss-dependence"}, set()),
    "distilled": (lambda: subject(zoo.scaled(30)), {"zero-gradients", "loss-dependence"}, set()),
    "quantised": (
        lambda: subject(zoo.quantised()),
        {"zero-gradients", "finite-differences", "black-box-stronger", "random-search", "transfer-stronger"},
        {"unbounded-attack", "radius-monotonicity"},
    ),
    "rippled": (
        wrap(before=lambda x: x + 0.002 * torch.sin(2 * math.pi * 2001.3 * x)),
        {"finite-differences", "one-step-stronger", "black-box-stronger"},
        {"transfer-stronger"},
    ),
    "k-winners": (lambda: subject(zoo.winners()), {"finite-differences"}, {"loss-dependence"}),
    "noisy-logits": (wrap(after=lambda z: z + 0.1 * torch.randn_like(z)), {"randomness-undeclared"}, set()),
    "resized": (wrap(before=zoo.resized), {"randomness-undeclared"}, set()),
    "softmax": (wrap(after=lambda z: z.softmax(1)), {"probabilities-not-logits"}, set()),
    "detached": (wrap(before=lambda x: x.detach()), {"interrupted-graph"}, set()),
    "raising": (lambda: subject(zoo.NoBackward(shipped("standard"))), {"interrupted-graph"}, set()),
    "counting": (lambda: subject(zoo.Counting(shipped("standard"))), {"dynamic-inference"}, set()),
    "optimising": (lambda: subject(zoo.Optimising(shipped("standard"))), {"dynamic-inference"}, set()),
    "batch-statistics": (lambda: subject(zoo.BatchStatistics(shipped("standard"))), {"batch-coupling"}, set()),
    "training-mode": (
        lambda: subject(zoo.Untidy(shipped("standard"), tracks=False)),
        {"batch-coupling", "training-mode"},
        set(),
    ),
    "tracking": (
        lambda: subject(zoo.Untidy(shipped("standard"), tracks=True)),
        {"batch-coupling", "training-mode", "dynamic-inference"},
        set(),
    ),
    "bytes-wanted": (lambda: subject(zoo.bytes_wanted()), {"input-range"}, set()),
}

SOUND: dict[str, Make] = {
    "standard": lambda: subject(shipped("standard")),
    "pgd-at": lambda: subject(shipped("pgd-at")),
    "trades": lambda: subject(shipped("trades")),
    "trained-here": lambda: subject(zoo.plain()),
    "overfitted": lambda: subject(zoo.overfitted(), threat=f"linf:{zoo.TOO_LONG}"),
    "declared-quantiser": lambda: subject(zoo.straight(), differentiable=False),
}


# Checks that attack, and take no longer than the cheap ones do.
SHORT = {"one-step-stronger", "unbounded-attack", "loss-dependence"}


def look(made: Subject, also: set[str] | None = None) -> dict[str, Verdict]:
    """What all checks find; with ``also``, the cheap ones and those."""
    wanted = [c for c in CHECKS if c.probe and (also is None or c.cost == "cheap" or c.name in also)]
    return {check.name: check.of_model(made) for check in wanted}


def raised(verdicts: dict[str, Verdict], outcome: str = "fail") -> dict[str, str]:
    return {name: verdict.evidence for name, verdict in verdicts.items() if verdict.outcome == outcome}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught_and_no_other_cheap_check_fails(defect: str) -> None:
    make, must, may = DEFECTS[defect]
    require(look(make(), must), must, may)


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught_and_nothing_else_fails(defect: str) -> None:
    make, must, may = DEFECTS[defect]
    require(look(make()), must, may)


def require(verdicts: dict[str, Verdict], must: set[str], may: set[str]) -> None:
    found = raised(verdicts)
    assert must <= set(found) <= must | may, found
    assert all(verdicts[name].advice for name in found)


@pytest.mark.parametrize("model", ["standard", "pgd-at", "trades"])
def test_what_is_shipped_raises_no_flag_at_a_first_look(model: str) -> None:
    verdicts = look(SOUND[model](), SHORT)
    assert {name: v.evidence for name, v in verdicts.items() if v.outcome != "pass"} == {}


@pytest.mark.slow
@pytest.mark.parametrize("model", SOUND)
def test_a_sound_model_raises_no_flag(model: str) -> None:
    verdicts = look(SOUND[model]())
    assert not raised(verdicts)
    assert not raised(verdicts, "warn")
    missing = {name: v.evidence for name, v in verdicts.items() if v.outcome == "not-applicable"}
    assert set(missing) <= {"finite-differences"} if model == "declared-quantiser" else not missing, missing


def test_gradients_that_ripple_are_shattered() -> None:
    assert "gradient-shattering" in raised(look_at(DEFECTS["rippled"][0](), "gradient-shattering"), "warn")


def look_at(made: Subject, *names: str) -> dict[str, Verdict]:
    return {check.name: check.of_model(made) for check in CHECKS if check.name in names}


@pytest.mark.slow
def test_the_overfitted_model_is_what_it_is_meant_to_be() -> None:
    """One step leaves most examples, many steps none: D1 is not about that."""
    made = SOUND["overfitted"]()
    one, many = (made.attack(name)[0].cell.robust().mean() for name in ("rbl/fgsm", "rbl/pgd"))
    assert one > 0.4
    assert many < 0.05


def test_where_the_scale_of_logits_is_the_reason_a_temperature_shows_it() -> None:
    verdict = look_at(DEFECTS["distilled"][0](), "loss-dependence")["loss-dependence"]
    assert "temperature: 0 at 10, 0 at 100" in verdict.evidence
    assert "attack the logits" in verdict.advice


def test_autoattack_calls_the_same_signs_by_its_names() -> None:
    quantised = look_at(DEFECTS["quantised"][0](), "zero-gradients", "black-box-stronger")
    assert "(AutoAttack's flag: Zero gradient)" in quantised["zero-gradients"].evidence
    assert "(AutoAttack's flag: Square Attack" in quantised["black-box-stronger"].evidence
    noisy = look_at(DEFECTS["noisy-logits"][0](), "randomness-undeclared")
    assert "(AutoAttack's flag: Randomized defenses)" in noisy["randomness-undeclared"].evidence


class NotANumber(nn.Module):
    """The base behind a square root of a square, whose gradient at 0 is 0 / 0."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x.square().sqrt())


def test_a_gradient_that_is_not_a_number_is_no_gradient() -> None:
    verdicts = look_at(subject(NotANumber(shipped("standard"))), "zero-gradients", "finite-differences", "gradient-shattering")
    assert set(raised(verdicts)) == {"zero-gradients", "finite-differences"}
    assert verdicts["gradient-shattering"].outcome == "not-applicable"


@pytest.mark.parametrize("trait", ["stochastic", "rejects"])
def test_a_declared_trait_is_respected(trait: str) -> None:
    """Noise is averaged over; refusing everything that is not sure is no defect."""
    module = zoo.noisy(0.1) if trait == "stochastic" else zoo.Refusing(shipped("pgd-at"))
    made = subject(module, n=8, **{trait: True})
    verdicts = {check.name: check.of_model(made) for check in CHECKS if check.cost == "cheap"}
    verdicts |= look_at(made, "one-step-stronger", "unbounded-attack")
    assert {name: v.evidence for name, v in verdicts.items() if v.outcome != "pass"} == {}
    assert ("declared stochastic" in verdicts["randomness-undeclared"].evidence) == (trait == "stochastic")


def test_random_numbers_of_the_batch_are_not_taken_for_coupling() -> None:
    """A stochastic defense may draw from torch's generator, whose numbers do depend on the batch."""
    made = subject(Wrapped(shipped("standard"), after=lambda z: z + 0.1 * torch.randn_like(z)), stochastic=True)
    verdict = look_at(made, "batch-coupling")["batch-coupling"]
    assert (verdict.outcome, verdict.evidence) == (
        "not-applicable",
        "it draws from torch's generator, so that batches differ anyway",
    )


def test_what_is_declared_without_gradient_is_not_asked_for_one() -> None:
    made = subject(zoo.quantised(), differentiable=False)
    verdicts = look_at(made, "interrupted-graph", "zero-gradients", "finite-differences", "black-box-stronger")
    assert {v.outcome for v in verdicts.values()} == {"not-applicable"}
    assert {v.evidence for v in verdicts.values()} == {"declared non-differentiable, without a surrogate"}


@pytest.mark.parametrize("threat", ["l2:0.6", "l1:2.0", "union:linf:0.15+l2:0.6", "unrestricted"])
def test_other_threat_models_are_attacked_where_they_can_be(threat: str) -> None:
    verdicts = look_at(subject(shipped("standard"), n=16, threat=threat), "unbounded-attack", "one-step-stronger")
    ball = threat.partition(":")[0] in ("l2", "l1")
    assert {v.outcome for v in verdicts.values()} == ({"pass"} if ball else {"not-applicable"})
    assert all(v.evidence for v in verdicts.values())
