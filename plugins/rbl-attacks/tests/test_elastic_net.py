"""EAD and the delayed elastic net: how near they come, and what their parameters mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_networks import fixture, judged_sizes, minimal_sizes
from linear_problem import distances, problem
from torch import Tensor, nn

from rbl_attacks import search
from rbl_attacks.delayed_elastic_net import DelayedElasticNet
from rbl_attacks.ead import ElasticNet
from rbl_attacks.search import Smallest
from robustbench_lite import Randomness, Target, Threat
from robustbench_lite.testing import make_target

Attack = ElasticNet | DelayedElasticNet


def on_the_linear_model(attack: Attack, norm: str) -> tuple[Tensor, Tensor]:
    """The images and the points found."""
    model, x, y = problem()
    threat = Threat.parse(norm)
    target, rng = make_target(model, x, y, threat, goal="minimal-norm")
    x_adv = attack(target, x, y, threat, rng)
    assert threat.in_box(x_adv).all()
    return x, x_adv


def ratios(attack: Attack, norm: str) -> np.ndarray:
    """Sizes over the closed form."""
    x, x_adv = on_the_linear_model(attack, norm)
    assert ((x_adv != x).flatten(1).any(1)).all()
    return Threat.parse(norm).size(x, x_adv).numpy() / distances(norm)


def set_up(name: str, count: int, norm: str) -> tuple[nn.Module, Tensor, Tensor, Threat, Target, Randomness]:
    """The first ``count`` images of a golden network."""
    model, x, y = fixture(name)
    threat = Threat.parse(norm)
    target, rng = make_target(model, x[:count], y[:count], threat, goal="minimal-norm")
    return model, x[:count], y[:count], threat, target, rng


# ------------------------------------------------------------------------------------------------------------------ EAD


@pytest.mark.parametrize(
    ("name", "median", "mean"),
    [("std", 1.5982, 1.6401), pytest.param("at", 1.3876, 1.4425, marks=pytest.mark.slow)],
)
def test_ead_is_as_good_as_the_published_implementation(name: str, median: float, mean: float) -> None:
    sizes = minimal_sizes(name, "l1", ElasticNet(steps=500, beta=1e-2))
    assert sizes.isfinite().all()
    assert sizes.median().item() == pytest.approx(median, rel=0.04)
    assert sizes.mean().item() == pytest.approx(mean, rel=0.04)


def test_ead_on_a_linear_model_and_what_beta_is_worth() -> None:
    """It stops short of the optimum, by as much as foolbox's with 9 x 1000 steps; more weight on l1 brings it nearer."""
    strong, weak = (ratios(ElasticNet(steps=500, beta=beta), "l1") for beta in (1e-2, 1e-3))
    assert strong.min() >= 1 - 1e-5
    assert np.median(strong) == pytest.approx(1.1215, rel=0.02)
    assert np.median(weak) == pytest.approx(1.5600, rel=0.02)


def test_ead_without_an_l1_term_finds_the_nearest_point_in_l2() -> None:
    found = ratios(ElasticNet(steps=300, beta=0.0, rule="en"), "l2")
    assert found.min() >= 1 - 1e-5
    assert np.median(found) <= 1.01
    assert found.max() <= 1.05


def test_ead_never_leaves_the_image_where_beta_is_larger_than_any_step() -> None:
    x, x_adv = on_the_linear_model(ElasticNet(steps=30, search_steps=3, beta=1.0), "l1")
    assert torch.equal(x_adv, x)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_ead_ends_runs_that_never_leave_the_image_and_nothing_changes_by_that(
    confidence: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against runs to their last step, as a stochastic defense gets them; one gradient shows that a constant is too small."""
    attack = ElasticNet(steps=60, search_steps=5, beta=0.05, confidence=confidence, abort_early=False)
    runs = []
    for to_the_last in (True, False):
        _, x, y, threat, target, rng = set_up("std", 40, "l1")
        with monkeypatch.context() as patched:
            if to_the_last:
                patched.setattr(Target, "stochastic", True)
                patched.setattr(search, "Smallest", lambda x, confidence, _: Smallest(x, confidence, stochastic=False))
            runs.append((attack(target, x, y, threat, rng), target))
    (plain, plain_target), (found, target) = runs
    assert torch.equal(plain, found)
    assert torch.equal(plain_target.best(x), target.best(x))
    assert int((found != x).flatten(1).any(1).sum()) > 0
    assert (plain_target.forwards == 5 * 2 * 60).all()
    short = plain_target.backwards - target.backwards  # rounds of one gradient instead of 60
    assert (short % 59 == 0).all()
    assert (short > 0).all()
    assert torch.equal(target.forwards, plain_target.forwards - short // 59 * 119)


@pytest.mark.parametrize("rule", ["l1", "en"])
def test_ead_rules_choose_by_what_they_say(rule: str) -> None:
    """Each rule is at least as good as the other in its own measure, on most images by more than rounding."""
    sizes = {}
    for chosen in ("l1", "en"):
        x, x_adv = on_the_linear_model(ElasticNet(steps=100, beta=1e-2, rule=chosen), "l1")  # type: ignore[arg-type]
        delta = (x_adv - x).flatten(1)
        l1 = delta.abs().sum(1)
        sizes[chosen] = l1 if rule == "l1" else 1e-2 * l1 + delta.square().sum(1)
    other = sizes["en" if rule == "l1" else "l1"]
    assert (sizes[rule] <= other * (1 + 1e-5)).all()


def test_ead_keeps_the_confidence_that_is_asked_for() -> None:
    model, x, y, threat, target, rng = set_up("std", 20, "l1")
    x_adv = ElasticNet(steps=100, beta=1e-2, confidence=2.0)(target, x, y, threat, rng)
    logits = model(x_adv)
    margin = logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0]
    found = (x_adv != x).flatten(1).any(1)
    assert found.float().mean() > 0.9
    assert (margin[found] >= 2.0 - 1e-4).all()


# -------------------------------------------------------------------------------------------------- delayed elastic net


def test_delayed_without_penalties_is_adam_without_bias_correction() -> None:
    """Up to its first adversarial point, at which one extra step ends the search."""
    model, x, y, threat, target, rng = set_up("std", 12, "l2")
    x_adv = DelayedElasticNet(lr=3e-3, l1=0, l2=0, extra=1)(target, x, y, threat, rng)
    for i in range(12):
        point, mean, square = x[i : i + 1], torch.zeros_like(x[:1]), torch.zeros_like(x[:1])
        while True:
            leaf = point.clone().requires_grad_()
            shares = model(leaf).softmax(1)[0]
            lead = shares[y[i]] - torch.cat([shares[: y[i]], shares[y[i] + 1 :]]).max()
            if lead < 0:
                break
            (gradient,) = torch.autograd.grad(lead, leaf)
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            point = (point - 3e-3 * mean / (square.sqrt() + 1e-8)).clamp(0, 1)
        assert (x_adv[i] - point[0]).abs().max() < 1e-4


@pytest.mark.parametrize("space", ["probabilities", "logits"])
def test_delayed_on_a_linear_model(space: str) -> None:
    attack = DelayedElasticNet(lr=1e-3, l1=0, l2=0.1, extra=1500, steps=3000, loss_space=space)  # type: ignore[arg-type]
    found = ratios(attack, "l2")
    assert found.min() >= 1 - 1e-5
    assert np.median(found) <= 1.05
    far = distances("l2") > np.median(distances("l2"))  # where steps are short beside the distance
    assert found[far].max() <= 1.05


@pytest.mark.parametrize("norm", ["l2", "l1", "l0", "linf"])
def test_delayed_gets_no_worse_with_more_steps(norm: str) -> None:
    sizes = []
    for extra in (1, 30, 200):
        _, x, y, threat, target, rng = set_up("std", 40, norm)
        attack = DelayedElasticNet(lr=2e-3, l1=1e-2, l2=1e-2, extra=extra)
        sizes.append(threat.size(x, attack(target, x, y, threat, rng)))
        assert target.broken.all()
    assert (sizes[1] <= sizes[0] * (1 + 1e-4)).all()
    assert (sizes[2] <= sizes[1] * (1 + 1e-4)).all()
    if norm != "linf":  # which the penalties do not speak of
        assert sizes[2].median() < 0.95 * sizes[0].median()


@pytest.mark.parametrize(
    ("plain", "asking_for_more"),
    [
        (ElasticNet(steps=60, beta=1e-2), ElasticNet(steps=60, beta=1e-2, confidence=2.0)),
        (ElasticNet(steps=60, beta=0.1), ElasticNet(steps=60, beta=0.1, rule="en")),
        (DelayedElasticNet(lr=2e-3, steps=400, extra=50), DelayedElasticNet(n=3, lr=2e-3, steps=400, extra=50)),
        (
            DelayedElasticNet(lr=2e-3, steps=400, extra=50),
            DelayedElasticNet(goal="phishing", confidence=0.9, lr=2e-3, steps=400, extra=50),
        ),
    ],
)
def test_what_more_is_asked_for_shows_in_the_judged_result(
    plain: ElasticNet | DelayedElasticNet, asking_for_more: ElasticNet | DelayedElasticNet
) -> None:
    """The judge takes smaller points that the target saw, as long as any adversarial point will do, and only then."""
    model, x, y, threat, target, rng = set_up("at", 30, "l1")
    assert (judged_sizes(plain, model, x, y, threat) <= minimal_sizes("at", "l1", plain, rows=slice(0, 30))).all()
    x_adv = asking_for_more(target, x, y, threat, rng)
    found = (x_adv != x).flatten(1).any(1)
    assert found.float().mean() > 0.5
    judged = judged_sizes(asking_for_more, model, x, y, threat)
    assert torch.equal(judged, torch.where(found, threat.size(x, x_adv), torch.inf))
    assert (judged > judged_sizes(plain, model, x, y, threat)).float().mean() > 0.5


def test_delayed_values_that_would_cross_the_image_stay_at_it() -> None:
    """Without extra steps every value has moved; with them, many are exactly those of the image again."""
    _, x, y, threat, target, rng = set_up("std", 40, "l1")
    settings = {"lr": 2e-3, "l1": 0.1, "l2": 0.0}
    first = DelayedElasticNet(extra=1, **settings)(target, x, y, threat, rng)  # type: ignore[arg-type]
    _, x, y, threat, target, rng = set_up("std", 40, "l1")
    last = DelayedElasticNet(extra=300, **settings)(target, x, y, threat, rng)  # type: ignore[arg-type]
    changed_first, changed_last = ((p != x).flatten(1).sum(1) for p in (first, last))
    assert changed_last.double().median() < 0.6 * changed_first.double().median()


@pytest.mark.parametrize(("space", "least"), [("probabilities", 0.5), ("logits", 1.0)])
def test_delayed_rank_brings_n_classes_before_the_label(space: str, least: float) -> None:
    """On probabilities mostly, not always: where one class has taken them all, the others have no gradient left."""
    model, x, y, threat, target, rng = set_up("std", 20, "l2")
    attack = DelayedElasticNet(n=3, lr=2e-3, steps=1000, loss_space=space)  # type: ignore[arg-type]
    x_adv = attack(target, x, y, threat, rng)
    logits = model(x_adv)
    found = (x_adv != x).flatten(1).any(1)
    assert ((logits > logits.gather(1, y[:, None])).sum(1) >= 3)[found].all()
    assert found.float().mean() >= least
    nearest = minimal_sizes("std", "l2", DelayedElasticNet(lr=2e-3), rows=slice(0, 20))
    assert (threat.size(x, x_adv) > nearest)[found].all()


@pytest.mark.parametrize("confidence", [0.95, 0.3])
@pytest.mark.parametrize("space", ["probabilities", "logits"])
def test_delayed_phishing_reaches_its_class_with_confidence(space: str, confidence: float) -> None:
    model, x, y, threat, target, rng = set_up("at", 30, "l2")
    attack = DelayedElasticNet(goal="phishing", n=2, lr=2e-3, extra=100, confidence=confidence, loss_space=space)  # type: ignore[arg-type]
    x_adv = attack(target, x, y, threat, rng)
    aim = model(x).scatter(1, y[:, None], -torch.inf).topk(2, dim=1).indices[:, 1]
    share = model(x_adv).softmax(1)
    found = (x_adv != x).flatten(1).any(1)
    assert found.all()
    assert torch.equal(share.argmax(1), aim)
    assert (share.gather(1, aim[:, None]) > confidence - 1e-5).all()


def test_delayed_on_a_saturated_softmax_needs_the_logits() -> None:
    class Saturated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = 1e4 * base(x)
            return logits

    base, x, y = fixture("std")
    x, y, threat = x[:30], y[:30], Threat.parse("l2")
    found = {}
    for space in ("probabilities", "logits"):
        target, rng = make_target(Saturated(), x, y, threat, goal="minimal-norm")
        attack = DelayedElasticNet(lr=2e-3, steps=400, extra=50, loss_space=space)  # type: ignore[arg-type]
        x_adv = attack(target, x, y, threat, rng)
        found[space] = (base(x_adv).argmax(1) != y).float().mean().item()
    assert found == {"probabilities": 0.0, "logits": 1.0}
