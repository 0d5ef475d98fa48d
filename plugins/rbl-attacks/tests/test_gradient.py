"""The family of fixed-budget gradient attacks: what each of them is, and where it comes back to another one."""

from __future__ import annotations

import math

import pytest
import torch
from golden_networks import Affine, fixture
from linear_problem import distances, margins, problem
from never_beaten import never_beaten
from torch import Tensor, nn

from rbl_attacks.apgd import APGDCE, APGDDLR, APGDT
from rbl_attacks.ascent import Climb
from rbl_attacks.bim import BIM
from rbl_attacks.geometry import in_ball
from rbl_attacks.mifgsm import MIFGSM
from rbl_attacks.msd import MSD, _best
from rbl_attacks.pgd import PGD
from rbl_attacks.schedule import Euclidean, Sparse
from robustbench_lite import InvalidParameter, InvalidThreat, Threat, losses
from robustbench_lite.deployed import Deployed
from robustbench_lite.registry import load
from robustbench_lite.resolve import resolve_attack
from robustbench_lite.runner import run_shard
from robustbench_lite.testing import CoinFlip, Constant, Linear, make_target
from robustbench_lite.testing.closed_form import lowest_margin
from robustbench_lite.testing.toys import NotANumber

UNION = "union:linf:0.05+l2:0.4+l1:2"


class Tent(nn.Module):
    """Adversarial where the mean of the image is within 0.04 of 0.62, and the loss rises towards 0.62 from both sides."""

    def forward(self, x: Tensor) -> Tensor:
        lead = 0.04 - (x.flatten(1).mean(1) - 0.62).abs()
        return torch.stack([torch.zeros_like(lead), lead], 1)


class RefusesBright(nn.Module):
    """A model with a last column that rises with the image's brightness."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.base(x), 10 * x.flatten(1).mean(1, keepdim=True)], 1)


@pytest.mark.parametrize("attack", [BIM(), MIFGSM(), BIM(stop_on_success=True)], ids=str)
@pytest.mark.parametrize("left", [1, 40])
def test_examples_that_another_attack_has_beaten_are_left_alone(attack: BIM, left: int) -> None:
    model, x, y = few()
    target, rng = make_target(model, x, y, "linf:0.3")
    far = x.clone()
    far[left:] += 0.3 * torch.autograd.functional.jacobian(lambda z: losses.cross_entropy(model(z), y).sum(), x)[left:].sign()
    target.logits(far.clamp(0, 1))
    beaten = target.broken
    assert 0 < beaten.sum() < len(x)
    known = target.best(x)
    points = attack(target, x, y, Threat.parse("linf:0.3"), rng)
    assert torch.equal(points[beaten], known[beaten])
    assert Threat.parse("linf:0.3").contains(x, points).all()


def few(name: str = "at", n: int = 64) -> tuple[nn.Module, Tensor, Tensor]:
    model, x, y = fixture(name)
    return model, x[:n], y[:n]


def random_classes(classes: int, n: int = 24) -> tuple[Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, 36, generator=generator)
    x = torch.rand(n, 1, 6, 6, generator=generator)
    model = Linear(weight, -weight.sum(1) / 2)
    return model, x, model(x).argmax(1)


# bim and mifgsm


@pytest.mark.parametrize(("steps", "beaten_at_the_end"), [(2, True), (3, False), (4, True)])
def test_bim_is_judged_by_its_last_point_as_published(steps: int, beaten_at_the_end: bool) -> None:
    """Steps of 0.1 from 0.45 go 0.55, 0.65, 0.55, 0.65, ...: adversarial at every second of them."""
    x, y, threat = torch.full((2, 1, 3, 3), 0.45), torch.zeros(2, dtype=torch.int64), Threat("linf", 0.3)
    target, rng = make_target(Tent(), x, y, threat)
    x_adv = BIM(steps=steps, step=0.1)(target, x, y, threat, rng)
    assert x_adv.mean().item() == pytest.approx(0.65 if beaten_at_the_end else 0.55)
    assert not target.broken.any()
    assert target.forwards.tolist() == target.backwards.tolist() == [steps] * 2


def test_bim_that_stops_on_success_keeps_it_and_leaves() -> None:
    x, y, threat = torch.full((2, 1, 3, 3), 0.45), torch.zeros(2, dtype=torch.int64), Threat("linf", 0.3)
    target, rng = make_target(Tent(), x, y, threat)
    x_adv = BIM(steps=9, step=0.1, stop_on_success=True)(target, x, y, threat, rng)
    assert x_adv.mean().item() == pytest.approx(0.65)
    assert target.broken.all()
    assert target.forwards.tolist() == [3, 3]


@pytest.mark.parametrize("threat", ["linf:0.12", "l2:0.6"])
@pytest.mark.parametrize("attack", [BIM(), MIFGSM()], ids=["bim", "mifgsm"])
def test_no_random_numbers_are_drawn(attack: BIM, threat: str) -> None:
    model, x, y = few()
    points = []
    for seed in (0, 1):
        target, rng = make_target(model, x, y, threat, seed=seed)
        points.append(attack(target, x, y, Threat.parse(threat), rng))
    assert torch.equal(points[0], points[1])


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("threat", ["linf:0.12", "l2:0.6"])
def test_mifgsm_without_memory_is_bim(threat: str, stop: bool) -> None:
    model, x, y = few()
    step, points = Threat.parse(threat).eps / 5, []
    for attack in (BIM(step=step, stop_on_success=stop), MIFGSM(step=step, stop_on_success=stop, decay=0.0)):
        target, rng = make_target(model, x, y, threat)
        points.append(attack(target, x, y, Threat.parse(threat), rng))
    assert torch.equal(points[0], points[1])


@pytest.mark.parametrize("attack", [BIM(), MIFGSM()], ids=["bim", "mifgsm"])
def test_on_a_linear_model_both_end_in_the_best_corner(attack: BIM) -> None:
    """The gradient has one direction, so that summing it changes nothing."""
    model, x, y = problem()
    eps = 1.1 * float(sorted(distances("linf"))[len(x) // 2])
    threat = Threat("linf", eps)
    target, rng = make_target(model, x, y, threat)
    x_adv = attack(target, x, y, threat, rng)
    assert ((model(x_adv).argmax(1) != y).numpy() == (distances("linf") < eps)).all()
    w, b = margins(model, y)
    reached = (w * x_adv.double().flatten(1).numpy()).sum(1) + b
    best = [lowest_margin(x[i].double().flatten().numpy(), w[i], b[i], eps, "linf") for i in range(len(x))]
    assert reached == pytest.approx(best, abs=1e-4)


# pgd on the divergence


def test_pgd_on_the_divergence_finds_more_of_it_than_noise() -> None:
    model, x, y = few()
    threat = Threat("linf", 0.05)
    target, rng = make_target(model, x, y, threat)
    x_adv = PGD(loss="kl", steps=10)(target, x, y, threat, rng)
    clean = model(x)
    found = losses.divergence(model(x_adv), clean)
    by_chance = losses.divergence(model(threat.project(x, x + in_ball(x, threat, rng))), clean)
    assert found.median() > 10 * by_chance.median()


def test_pgd_on_the_divergence_is_not_drawn_to_being_refused() -> None:
    model, x, y = few(n=16)
    threat, points = Threat("linf", 0.05), []
    for defense, rejects in ((model, False), (RefusesBright(model), True)):
        target, rng = make_target(defense, x, y, threat, rejects=rejects)
        points.append(PGD(loss="kl", steps=5)(target, x, y, threat, rng))
    assert torch.equal(*points)


# apgd-dlr and apgd-t


@pytest.mark.parametrize("attack", [APGDDLR(steps=10), APGDT(steps=10, targets=2)], ids=["dlr", "t"])
def test_the_scale_of_the_logits_changes_nothing(attack: APGDDLR) -> None:
    model, x, y = few()
    points = []
    for factor in (1.0, 2.0**14):
        target, rng = make_target(Affine(model, factor), x, y, "linf:0.12")
        points.append(attack(target, x, y, Threat("linf", 0.12), rng))
    assert torch.allclose(points[0], points[1], atol=1e-6)


def test_on_a_saturated_model_the_ratio_finds_what_the_cross_entropy_cannot() -> None:
    model, x, y = few("std")
    beaten = {}
    for name, factor, attack in (
        ("plain", 1.0, APGDDLR(steps=20)),
        ("dlr", 1e4, APGDDLR(steps=20)),
        ("ce", 1e4, APGDCE(steps=20)),
    ):
        target, rng = make_target(Affine(model, factor), x, y, "linf:0.12")
        attack(target, x, y, Threat("linf", 0.12), rng)
        beaten[name] = int(target.broken.sum())
    assert beaten["dlr"] == pytest.approx(beaten["plain"], abs=1)
    assert beaten["ce"] < beaten["dlr"] - 5


@pytest.mark.parametrize(
    ("attack", "classes", "instead"),
    [("apgd-dlr", 2, "margin"), ("apgd-t", 2, "margin"), ("apgd-t", 3, "targeted cross-entropy"), ("apgd-t", 4, None)],
)
def test_too_few_classes_for_the_ratio_are_noted_and_another_loss_is_climbed(
    attack: str, classes: int, instead: str | None
) -> None:
    model, x, y = random_classes(classes)
    spec = {
        "protocol": {"eot": 1, "eval_draws": 1, "budget": None},
        "dataset": {"label": "a toy"},
        "attack": {"id": f"rbl/{attack}"},
        "threat": "l2:2",
        "seed": 0,
    }
    found = resolve_attack(load(), f"{attack}[steps=10]")
    result = run_shard(spec, Deployed(model, num_classes=classes), found, x, y, tuple(range(len(x))), 0)
    assert result.failure is None
    assert result.arrays["success"].mean() > 0.5
    assert [instead in note for note in result.notes] == [True] if instead else result.notes == ()


@pytest.mark.parametrize(("classes", "asked", "runs"), [(3, 9, 2), (5, 9, 4), (10, 4, 4)])
def test_apgd_t_aims_at_each_likely_class_once_and_never_at_the_label(classes: int, asked: int, runs: int) -> None:
    model, x, y = random_classes(classes)
    target, _ = make_target(model, x, y, "linf:0.1")
    _, goals = APGDT(targets=asked).goals(target, x, y)
    aims = torch.stack([aim for _, aim in goals], 1)
    assert aims.shape == (len(x), runs)
    assert (aims != y[:, None]).all()
    assert (model(x).gather(1, aims).diff(dim=1) <= 0).all()
    assert target.forwards.unique().tolist() == [1]


def test_more_targets_beat_all_that_fewer_beat() -> None:
    model, x, y = few("std")
    beaten = []
    for targets in (1, 3):
        target, rng = make_target(model, x, y, "linf:0.08")
        APGDT(steps=10, targets=targets)(target, x, y, Threat("linf", 0.08), rng)
        beaten.append(target.broken)
    assert (beaten[1] >= beaten[0]).all()


@pytest.mark.parametrize(("threat", "parts"), [("linf:0", 1), ("l2:0", 1), ("l1:0", 3)])
@pytest.mark.parametrize(
    ("attack", "runs", "ranked"),
    [(APGDCE(), 1, 0), (APGDDLR(restarts=2), 2, 0), (APGDT(targets=3), 3, 3)],
    ids=["ce", "dlr", "t"],
)
def test_no_more_passes_than_the_reference(attack: APGDCE, runs: int, ranked: int, threat: str, parts: int) -> None:
    """It takes 101 forward and 101 backward passes for a run (103 with the larger radii of l1), and one to rank the classes."""
    model, x, y = random_classes(5, n=4)
    target, rng = make_target(model, x, y, threat)
    attack(target, x, y, Threat.parse(threat), rng)
    assert not target.broken.any()
    assert int(target.backwards.max()) < runs * (100 + parts)
    assert int((target.forwards + target.backwards).max()) <= runs * 2 * (100 + parts) + ranked


# msd


@pytest.mark.parametrize("threat", [UNION, "union:linf:0.05+l2:0.4", "union:l2:0.4+l1:2"])
def test_msd_ends_in_one_of_the_balls(threat: str) -> None:
    model, x, y = few()
    limits = Threat.parse(threat)
    target, rng = make_target(model, x, y, limits)
    x_adv = MSD(steps=15, restarts=2)(target, x, y, limits, rng)
    assert torch.stack([part.contains(x, x_adv) for part in limits.parts]).any(0).all()
    assert limits.in_box(x_adv).all()
    assert 0 < target.broken.sum() < len(x)


@pytest.mark.parametrize(
    ("threat", "msd", "pgd"),
    [
        ("linf:0.12", MSD(steps=12, linf_step=0.2), PGD(steps=12, step=0.2 * 0.12, start="zero")),
        ("l2:0.6", MSD(steps=12, l2_step=0.2), PGD(steps=12, step=0.2 * 0.6, start="zero", finish=False)),
        (
            "l1:3",
            MSD(steps=12, l1_step=0.2, values=(6, 6)),
            PGD(steps=12, step=0.6, start="zero", sparsity=58 / 64, finish=False),
        ),
    ],
)
def test_msd_with_one_ball_is_pgd(threat: str, msd: MSD, pgd: PGD) -> None:
    model, x, y = few()
    results = []
    for attack in (msd, pgd):
        target, rng = make_target(model, x, y, threat)
        results.append((attack(target, x, y, Threat.parse(threat), rng), target.broken))
    assert torch.equal(results[0][1], results[1][1])
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)


def test_msd_goes_where_the_loss_is_highest() -> None:
    model, x, y = few(n=16)
    limits = Threat.parse("union:linf:0.02+l2:0.2")
    target, rng = make_target(model, x, y, limits)
    climb = Climb(target, x, limits, losses.cross_entropy, (y,), x)
    candidates = [part.project(x, x + in_ball(x, part, rng.child(i))) for i, part in enumerate(limits.parts)]
    chosen = _best(climb, candidates)
    each = torch.stack([losses.cross_entropy(model(points), y) for points in candidates])
    assert not target.broken.any()
    assert torch.allclose(losses.cross_entropy(model(chosen), y), each.amax(0))
    assert torch.equal(climb.best, chosen)
    assert each.argmax(0).unique().tolist() == [0, 1], "both balls win somewhere, or this shows nothing"


def test_msd_comes_near_the_best_single_ball_on_a_linear_model() -> None:
    model, x, y = problem()
    limits = Threat.parse(
        f"union:linf:{distances('linf').min() / 2}+l2:{distances('l2').min() / 2}+l1:{distances('l1').min() / 2}"
    )
    target, rng = make_target(model, x, y, limits)
    x_adv = MSD()(target, x, y, limits, rng)
    w, b = margins(model, y)
    images = x.double().flatten(1).numpy()
    best = [max(-lowest_margin(images[i], w[i], b[i], part.eps, part.norm) for part in limits.parts) for i in range(len(x))]
    optimum = torch.tensor(best).exp().log1p()
    reached = losses.cross_entropy(model(x_adv).double(), y)
    assert not target.broken.any()
    assert (reached >= 0.95 * optimum).double().mean() >= 0.9


def test_msd_says_what_it_cannot_do() -> None:
    model, x, y = random_classes(3)
    for attack, threat, error, match in (
        (MSD(), "union:l2:0.5+l0:3", InvalidThreat, "no steps under l0"),
        (MSD(values=(9, 3)), UNION, InvalidParameter, "no range"),
    ):
        target, rng = make_target(model, x, y, threat)
        with pytest.raises(error, match=match):
            attack(target, x, y, Threat.parse(threat), rng)


# for all of them


@pytest.mark.parametrize(
    ("attack", "threat"),
    [
        (BIM(), "l2:0.5"),
        (BIM(stop_on_success=True), "linf:0.5"),
        (MIFGSM(), "linf:0.5"),
        (APGDDLR(steps=8, restarts=2), "l2:0.5"),
        (APGDT(steps=8, targets=3), "l2:0.5"),
        (APGDT(steps=8, restarts=2), "l2:0.5"),
        (PGD(loss="kl"), "l2:0.5"),
        (MSD(steps=7), UNION),
    ],
)
def test_the_expected_cost_is_the_cost_of_an_example_that_is_never_beaten(attack: PGD, threat: str) -> None:
    x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(5, dtype=torch.int64)
    target, rng = make_target(never_beaten(36, 5), x, y, threat)
    attack(target, x, y, Threat.parse(threat), rng)
    assert (target.forwards + target.backwards).unique().tolist() == [attack.passes(5)]


def test_a_model_that_gives_nan_away_from_its_images_leaves_no_trace_in_the_points() -> None:
    model, x, y = random_classes(4)
    broken = NotANumber(model, x)
    for attack, threat in ((BIM(), "l2:1"), (MIFGSM(), "linf:0.1"), (APGDT(steps=5), "l2:1"), (MSD(steps=5), UNION)):
        target, rng = make_target(broken, x, y, threat)
        x_adv = attack(target, x, y, Threat.parse(threat), rng)
        assert math.isfinite(x_adv.sum().item())
        assert not target.broken.any()


@pytest.mark.parametrize(
    ("attack", "norm", "eps"), [(APGDCE(), "linf", 0.03), (APGDDLR(), "l1", 1.5), (APGDT(steps=50), "linf", 0.03)]
)
def test_points_that_came_to_rest_are_not_asked_about_again_and_nothing_changes_by_that(
    attack: APGDCE | APGDDLR | APGDT, norm: str, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = (part[:60] if isinstance(part, Tensor) else part for part in fixture("std"))
    found, targets = [], []
    for settles in (True, False):
        for schedule in (Euclidean, Sparse):
            monkeypatch.setattr(schedule, "settles", settles)
        target, rng = make_target(model, x, y, Threat(norm, eps))
        found.append(attack(target, x, y, Threat(norm, eps), rng))
        targets.append(target)
    assert torch.allclose(*found, atol=1e-6)
    fewer, all_asked = targets
    assert torch.equal(fewer.broken, all_asked.broken)
    assert 0 < int(fewer.broken.sum()) < len(x)
    assert (fewer.forwards <= all_asked.forwards).all()
    assert fewer.forwards.sum() < 0.9 * all_asked.forwards.sum()
    assert torch.equal(all_asked.forwards - fewer.forwards, all_asked.backwards - fewer.backwards)


def test_a_stochastic_defense_is_asked_about_a_point_at_rest_in_every_step() -> None:
    model, x = CoinFlip(Constant(3), sigma=0.01), torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y, queries = torch.zeros(4, dtype=torch.int64), []
    for stochastic, defense in ((True, model), (False, model.base)):
        target, rng = make_target(defense, x, y, "linf:0.1", stochastic=stochastic)
        APGDCE(steps=20)(target, x, y, Threat("linf", 0.1), rng)
        queries.append(target.queries.unique().tolist())
    assert queries == [[21], [2]]
