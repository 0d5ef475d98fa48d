from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lite import CellFailed, Threat
from robustbench_lite.deployed import Deployed
from robustbench_lite.judge import Judge, Verdict, energy_entropy
from robustbench_lite.ledger import Ledger
from robustbench_lite.results import REJECTED, SOURCES
from robustbench_lite.target import Target
from robustbench_lite.testing import CoinFlip, Linear

# One value per image; class 1 above 0.5.
MODEL = Linear(torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 0.0]))
X = torch.tensor([0.45, 0.30, 0.60, 0.55]).view(4, 1, 1, 1)
Y = torch.tensor([0, 0, 1, 0])  # the last one is a clean error
LINF = Threat.parse("linf:0.1")


def judged(
    proposal: object, threat: Threat = LINF, seen: list[Tensor] | None = None, model: nn.Module = MODEL, minimal: bool = False
) -> Verdict:
    """The verdict on a proposal for the three correct examples, after the target saw some points of them."""
    deployed = Deployed(model, num_classes=2)
    ids = torch.arange(4)
    judge = Judge(deployed, X, Y, ids, passes=1, key="0")
    rows = judge.correct.nonzero()[:, 0]
    ledger = Ledger(X[rows], Y[rows], threat, minimal=minimal, rejects=False, budget=None)
    target = Target(deployed, ledger, access="scores", key="0", ids=ids[rows])
    for points in seen or []:
        target.logits(points)
    return judge.judge(ledger, proposal, threat)


def proposal(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def reasons(verdict: Verdict) -> list[str]:
    return [REJECTED[code] for code in verdict.arrays["rejected"]]


def test_accepts_what_is_inside_and_misclassified_and_nothing_else() -> None:
    verdict = judged(proposal(0.53, 0.38, 0.52))
    assert verdict.arrays["success"].tolist() == [True, False, False, False]
    assert reasons(verdict) == ["accepted", "not misclassified", "not misclassified", "not attacked: clean error"]
    assert verdict.arrays["clean_correct"].tolist() == [True, True, True, False]
    assert verdict.arrays["adv_pred"].tolist() == [1, 0, 1, 1]
    assert verdict.arrays["size"].tolist() == pytest.approx([0.08, float("inf"), float("inf"), float("inf")], abs=1e-6)
    assert verdict.x_adv.flatten().tolist() == pytest.approx([0.53, 0.30, 0.60, 0.55])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
        (1.5, "outside the box"),
        (-0.1, "outside the box"),
        (0.9, "outside the threat model"),
        (0.55 + 1e-4, "outside the threat model"),
    ],
)
def test_a_bad_point_is_not_adversarial_and_the_reason_is_kept(value: float, reason: str) -> None:
    verdict = judged(proposal(value, 0.30, 0.60))
    assert not verdict.arrays["success"].any()
    assert reasons(verdict)[0] == reason
    assert verdict.x_adv[0].item() == pytest.approx(0.45)


@pytest.mark.parametrize("bad", [torch.zeros(3, 1, 1, 2), torch.zeros(2, 1, 1, 1), torch.zeros(3, 1, 1, 1).double(), "text", 7])
def test_a_wrong_shape_or_dtype_is_not_adversarial(bad: object) -> None:
    verdict = judged(bad)
    assert not verdict.arrays["success"].any()
    assert reasons(verdict)[:3] == ["wrong shape or dtype"] * 3


def test_rounding_to_float32_is_forgiven_and_more_is_not() -> None:
    x = torch.tensor([[[[0.6]]]])
    inside = x - 0.1
    assert bool(LINF.contains(x, inside))
    assert not bool(LINF.contains(x, inside - 1e-6))


def test_a_point_that_was_found_and_lost_counts() -> None:
    verdict = judged(X[:3].clone(), seen=[proposal(0.53, 0.3, 0.6)])
    assert verdict.arrays["success"].tolist() == [True, False, False, False]
    assert SOURCES[verdict.arrays["source"][0]] == "best seen by the target"
    assert reasons(verdict)[0] == "not misclassified"


def test_an_attack_that_raised_keeps_what_its_target_saw() -> None:
    verdict = judged(None, seen=[proposal(0.53, 0.3, 0.52), proposal(0.45, 0.3, 0.499)])
    assert verdict.arrays["success"].tolist() == [True, False, False, False]  # 0.499 is 0.101 away from 0.6
    assert reasons(verdict)[:3] == ["nothing proposed"] * 3


def test_of_a_minimal_norm_attack_the_smaller_of_proposed_and_seen_counts() -> None:
    verdict = judged(proposal(0.9, 0.6, 0.1), Threat.parse("linf"), seen=[proposal(0.51, 0.9, 0.6)], minimal=True)
    assert verdict.arrays["size"].tolist()[:3] == pytest.approx([0.06, 0.30, 0.50], abs=1e-6)
    assert [SOURCES[s] for s in verdict.arrays["source"]] == [
        "best seen by the target",
        "proposed by the attack",
        "proposed by the attack",
        "none",
    ]


def test_margins_probabilities_and_distances_are_of_the_accepted_point() -> None:
    arrays = judged(proposal(0.53, 0.3, 0.6)).arrays
    assert arrays["margin_clean"][0] == pytest.approx(0.05, abs=1e-6)
    assert arrays["margin_adv"][0] == pytest.approx(-0.03, abs=1e-6)
    assert arrays["p_adv"][0] == pytest.approx(1 / (1 + torch.tensor(0.03).exp().item()), abs=1e-6)
    for norm in ("linf", "l2", "l1"):
        assert arrays[norm].tolist() == pytest.approx([0.08, 0, 0, 0], abs=1e-6)
    assert arrays["l0"].tolist() == [1, 0, 0, 0]


def test_clean_nan_is_an_error_not_a_score() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x.flatten(1) > 0.58, float("nan"), x.flatten(1)).repeat(1, 2)

    with pytest.raises(CellFailed, match="1 of 4 clean images"):
        Judge(Deployed(Broken(), num_classes=2), X, Y, torch.arange(4), passes=1, key="0")


def test_nan_logits_at_the_proposed_point_are_no_success() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where((x.flatten(1) - 0.53).abs() < 1e-3, float("nan"), MODEL(x))

    verdict = judged(proposal(0.53, 0.3, 0.6), model=Broken())
    assert not verdict.arrays["success"].any()
    assert reasons(verdict)[0] == "the defense's logits are not finite"


def test_one_unlucky_draw_is_no_success_against_a_stochastic_defense() -> None:
    """Square once scored a sound stochastic model at 0 %: thousands of queries, one unlucky draw each (design.md)."""
    n = 200
    x, y = torch.full((n, 1, 1, 1), 0.2), torch.zeros(n, dtype=torch.int64)
    deployed = Deployed(CoinFlip(MODEL, sigma=0.2), num_classes=2, stochastic=True)
    judge = Judge(deployed, x, y, torch.arange(n), passes=64, key="0")
    rows = judge.correct.nonzero()[:, 0]
    ledger = Ledger(x[rows], y[rows], LINF, minimal=False, rejects=False, budget=None)
    target = Target(deployed, ledger, access="scores", key="0", ids=rows, eot=1)
    for _ in range(50):
        target.logits(x[rows] + 1e-5)  # as good as the clean image, again and again
    verdict = judge.judge(ledger, x[rows], LINF)
    assert ledger.broken.float().mean() > 0.9  # nearly every example was once misclassified by chance
    assert verdict.arrays["success"].mean() < 0.1
    assert verdict.arrays["unstable"].mean() > 0.8
    assert 0.7 < verdict.arrays["clean_rate"].mean() < 1.0


def test_the_clean_image_is_no_find_however_unlucky_its_draws() -> None:
    """With no change at all, what a stochastic defense gets wrong is its own error: it would be one of size 0."""
    n = 200
    x, y = torch.full((n, 1, 1, 1), 0.3), torch.zeros(n, dtype=torch.int64)
    deployed = Deployed(CoinFlip(MODEL, sigma=0.5), num_classes=2, stochastic=True)
    judge = Judge(deployed, x, y, torch.arange(n), passes=1, key="0")
    rows = judge.correct.nonzero()[:, 0]
    for minimal in (False, True):
        ledger = Ledger(
            x[rows], y[rows], Threat.parse("linf" if minimal else "linf:0"), minimal=minimal, rejects=False, budget=None
        )
        target = Target(deployed, ledger, access="scores", key="0", ids=rows, eot=1)
        for _ in range(20):
            target.logits(x[rows])
        assert not target.broken.any()
        verdict = judge.judge(ledger, x[rows], ledger.threat)
        assert not verdict.arrays["success"].any()
        assert set(reasons(verdict)) == {"not misclassified", "not attacked: clean error"}
        assert len(rows) < 0.9 * n, "the judge's own draws are misclassified, too"


def test_a_point_is_looked_at_once_also_where_the_target_saw_it_too() -> None:
    """Nearly every attack returns what its target keeps: a second look would be a second chance to be lucky."""
    n = 400
    x, y = torch.full((n, 1, 1, 1), 0.45), torch.zeros(n, dtype=torch.int64)
    deployed = Deployed(CoinFlip(MODEL, sigma=0.3), num_classes=2, stochastic=True)
    judge = Judge(deployed, x, y, torch.arange(n), passes=1, key="0")
    rows = judge.correct.nonzero()[:, 0]
    ledger = Ledger(x[rows], y[rows], LINF, minimal=False, rejects=False, budget=None)
    target = Target(deployed, ledger, access="scores", key="0", ids=rows, eot=1)
    point = x[rows] + 0.05  # on the boundary: half of the draws
    for _ in range(8):
        target.logits(point)
    same = judge.judge(ledger, target.best(x[rows]), LINF).arrays
    apart = judge.judge(ledger, point + 0.001, LINF).arrays
    beaten = {name: found["success"][found["clean_correct"]].mean() for name, found in (("same", same), ("apart", apart))}
    assert 0.4 < beaten["same"] < 0.6
    assert 0.65 < beaten["apart"] < 0.85, "two points, two looks"


def test_a_refused_adversarial_example_is_a_success_for_the_defense() -> None:
    class Refusing(nn.Module):
        """Refuses what lies within 0.04 of the boundary."""

        def forward(self, x: Tensor) -> Tensor:
            logits = MODEL(x)
            gap = (logits[:, 0] - logits[:, 1]).abs()
            return torch.cat([logits, torch.where(gap < 0.04, 5.0, -5.0)[:, None]], 1)

    deployed = Deployed(Refusing(), num_classes=2, rejects=True)
    judge = Judge(deployed, X, Y, torch.arange(4), passes=1, key="0")
    assert judge.correct.tolist() == [True, True, True, False]
    rows = judge.correct.nonzero()[:, 0]
    ledger = Ledger(X[rows], Y[rows], Threat.parse("linf:0.2"), minimal=False, rejects=True, budget=None)
    verdict = judge.judge(ledger, proposal(0.52, 0.5, 0.45), Threat.parse("linf:0.2"))
    assert verdict.arrays["success"].tolist() == [False, False, True, False]  # 0.52 is refused, 0.45 is wrong and answered


def test_logits_are_kept_of_few_classes_and_the_best_of_many() -> None:
    verdict = judged(proposal(0.53, 0.38, 0.52))
    clean = MODEL(X).detach().numpy()
    assert np.array_equal(verdict.arrays["logits_clean"], clean)
    assert verdict.arrays["logits_adv"][0] == pytest.approx([0.5, 0.53])
    assert np.array_equal(verdict.arrays["logits_adv"][1:], clean[1:])
    many = Linear(torch.linspace(-1, 1, 101)[:, None], torch.zeros(101))
    deployed, y = Deployed(many, num_classes=101), torch.tensor([100, 100, 100, 0])
    judge = Judge(deployed, X, y, torch.arange(4), passes=1, key="0")
    ledger = Ledger(X[:3], y[:3], LINF, minimal=False, rejects=False, budget=None)
    arrays = judge.judge(ledger, X[:3], LINF).arrays
    assert "logits_clean" not in arrays
    assert arrays["top5_clean"].tolist() == [[100, 99, 98, 97, 96]] * 4
    assert arrays["confidence_adv"][:3] == pytest.approx(arrays["p_clean"][:3])


def test_the_spread_of_a_change_is_its_normalised_entropy() -> None:
    """Vectors of 192 values: .1 everywhere, half of them, and a single one of .5."""
    x = torch.zeros(3, 3, 8, 8)
    x_adv = x.clone()
    x_adv[0] = 0.1
    x_adv[1].view(-1)[::2] = 0.1
    x_adv[2].view(-1)[7] = 0.5
    assert energy_entropy(x, x_adv).tolist() == pytest.approx([1.0, 0.868163, 2.6207e-5], rel=1e-4)
    # every value k times: the raw entropy grows by ln k, as does that of equal shares
    several = x_adv.repeat_interleave(4, 3)
    raw = energy_entropy(x, x_adv) * math.log(192)
    assert torch.allclose(energy_entropy(x.repeat_interleave(4, 3), several), (raw + math.log(4)) / math.log(192 * 4))


def test_what_was_not_beaten_has_no_spread_and_the_image_its_size() -> None:
    arrays = judged(proposal(0.53, 0.38, 0.52)).arrays
    assert arrays["entropy"][1:].tolist() == [0.0, 0.0, 0.0]
    assert arrays["values"].tolist() == arrays["pixels"].tolist() == [1, 1, 1, 1]
