"""Standard training, PGD adversarial training and TRADES: losses against closed forms, modes, and what training achieves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rbl_defenses
from rbl_defenses.architectures import small_cnn
from rbl_defenses.awp import AWP
from rbl_defenses.image_defense import AdversariallyTrained, ImageDefense
from rbl_defenses.mart import Mart
from rbl_defenses.pgd_at import PGDTraining, Rotated
from rbl_defenses.presets import preset
from rbl_defenses.standard import Standard
from rbl_defenses.trades import Trades
from robustbench_lite import DatasetBundle, DatasetInfo, TrainedDefense, UsageError, losses
from robustbench_lite.data import fetch
from robustbench_lite.testing import Linear
from robustbench_lite.training import Context, Run, craft, train
from robustbench_lite.weights import file_hash, read_card

INFO = DatasetInfo(name="mine", classes=("a", "b"), shape=(1, 4, 4))
DIGITS = DatasetInfo(name="digits", classes=tuple("0123456789"), shape=(1, 8, 8), mean=(0.3,), std=(0.4,))


def context(defense: ImageDefense, info: DatasetInfo = INFO, epoch: float = 1e9) -> Context:
    """After the ramp, unless an epoch is given."""
    return Context(epoch, defense.recipe(info), info)


def grey(n: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images far enough from 0 and 1 for a ball of 0.2, and labels of two classes."""
    g = torch.Generator().manual_seed(seed)
    return 0.4 + 0.2 * torch.rand(n, 1, 4, 4, generator=g), torch.randint(0, 2, (n,), generator=g)


def binary(seed: int = 0, scale: float = 0.3) -> Linear:
    """Two logits -w.x/2 and w.x/2, up to a constant."""
    model = Linear.binary((1, 4, 4), seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def lead(model: Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """By how much the second logit leads (n,), and the most that one unit of linf can change of it: the l1 norm of w."""
    w = model.weight[1] - model.weight[0]
    return x.flatten(1) @ w + model.bias[1] - model.bias[0], w.abs().sum()


# ------------------------------------------------------------------------------------------------------------------ losses


def test_standard_training_minimises_the_cross_entropy() -> None:
    model, (x, y) = binary(), grey()
    found = Standard().loss(model, x, y, context(Standard()))
    margin = (2 * y - 1) * lead(model, x)[0]
    torch.testing.assert_close(found, F.softplus(-margin).mean())


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.2])
def test_pgd_training_minimises_the_cross_entropy_at_the_worst_point(eps: float) -> None:
    """For a linear model of two classes the worst point of the ball lowers the margin by eps ||w||_1."""
    defense = PGDTraining(eps=eps, steps=10, step=0.1)
    model, (x, y) = binary(), grey()
    found = defense.loss(model, x, y, context(defense))
    difference, slope = lead(model, x)
    torch.testing.assert_close(found, F.softplus(-((2 * y - 1) * difference - eps * slope)).mean())


def test_mix_weighs_the_clean_loss() -> None:
    model, (x, y) = binary(), grey()

    def loss(mix: float) -> Tensor:
        defense = PGDTraining(eps=0.1, steps=10, step=0.1, mix=mix)
        return defense.loss(model, x, y, context(defense))

    torch.testing.assert_close(loss(1.0), F.cross_entropy(model(x), y))
    torch.testing.assert_close(loss(0.3), 0.3 * loss(1.0) + 0.7 * loss(0.0))


def test_trades_adds_the_divergence_at_the_point_that_maximises_it() -> None:
    """For a linear model of two classes, its two local maxima in the ball have leads d - eps ||w||_1 and d + eps ||w||_1."""
    defense = Trades(eps=0.2, steps=10, step=0.1, beta=3.0)
    model = binary()
    for i in range(8):
        x, y = (t[i : i + 1] for t in grey())
        found = defense.loss(model, x, y, context(defense)) - F.cross_entropy(model(x), y)
        difference, slope = lead(model, x)
        p = torch.stack([-difference, difference], 1).sigmoid()

        def divergence(change: Tensor, difference: Tensor = difference, p: Tensor = p) -> Tensor:
            moved = difference + change
            return (p * (p.log() - F.logsigmoid(torch.stack([-moved, moved], 1)))).sum()

        either = torch.stack([3 * divergence(-0.2 * slope), 3 * divergence(0.2 * slope)])
        assert (either - found).abs().min() < 1e-5 * found.abs()


def test_trades_without_its_weight_or_its_ball_is_standard_training() -> None:
    model, (x, y) = small_cnn(INFO, width=4), grey()
    clean = Standard().loss(model, x, y, context(Standard()))
    assert torch.equal(Trades(beta=0.0).loss(model, x, y, context(Trades(beta=0.0))), clean)
    none = Trades(eps=0.0)
    torch.testing.assert_close(none.loss(model, x, y, context(none)), clean)


def test_the_gradient_of_trades_goes_through_both_predictions() -> None:
    defense = Trades(eps=0.2, steps=3, step=0.1, beta=3.0)
    model, (x, y) = binary(), grey()
    torch.manual_seed(5)
    found = torch.autograd.grad(defense.loss(model, x, y, context(defense)), list(model.parameters()))
    torch.manual_seed(5)
    reference = model(x).softmax(1).detach()
    x_adv = craft(
        model,
        x,
        lambda z: (reference * (reference.log() - z.log_softmax(1))).sum(1),
        eps=0.2,
        step=0.1,
        steps=3,
        start="gaussian",
    )
    p, q = model(x).softmax(1), model(x_adv).softmax(1)
    by_hand = F.cross_entropy(model(x), y) + 3.0 * (p * (p.log() - q.log())).sum(1).mean()
    for a, b in zip(found, torch.autograd.grad(by_hand, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_trades_has_a_finite_gradient_where_a_probability_underflows() -> None:
    defense = Trades(eps=0.2, steps=2, step=0.1)
    model, (x, y) = binary(scale=1000.0), grey()
    assert (model(x).softmax(1) == 0).any()
    loss = defense.loss(model, x, y, context(defense))
    grads = torch.autograd.grad(loss, list(model.parameters()))
    assert loss.isfinite()
    assert all(bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_mart_is_its_formula_at_the_worst_point(eps: float) -> None:
    """For a linear model of two classes the worst point's lead is known, and with it both predictions."""
    defense = Mart(eps=eps, steps=10, step=0.1, beta=3.0)
    model, (x, y) = binary(), grey()
    found = defense.loss(model, x, y, context(defense))
    difference, slope = lead(model, x)
    margin = (2 * y - 1) * difference
    p, q = margin.sigmoid(), (margin - eps * slope).sigmoid()  # of the true class: clean, and under attack
    boosted = -q.log() - (1.0001 - (1 - q) + 1e-12).log()
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(found, (boosted + 3 * divergence * (1.0000001 - p)).mean(), rtol=1e-4, atol=1e-5)


def test_marts_gradient_goes_through_both_predictions_and_the_weight() -> None:
    defense = Mart(eps=0.1, steps=3, step=0.05, beta=3.0)
    model, (x, y) = binary(), grey()
    now = context(defense)
    found = torch.autograd.grad(defense.loss(model, x, y, now), list(model.parameters()))
    x_adv = now.once("x_adv", lambda: x)
    p, q = model(x).softmax(1), model(x_adv).softmax(1)
    right = (torch.arange(8), y)
    by_hand = -q[right].log() - (1.0001 - q[(torch.arange(8), 1 - y)]).log()
    by_hand = by_hand + 3 * (p * (p / q).log()).sum(1) * (1 - p[right])
    for a, b in zip(found, torch.autograd.grad(by_hand.mean(), list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- options of pgd-at


@pytest.mark.parametrize("eps", [0.05, 0.3])
def test_in_l2_the_worst_point_lowers_the_margin_by_the_length_of_the_weights(eps: float) -> None:
    defense = PGDTraining(eps=eps, norm="l2", steps=40, step=eps / 2)
    model, (x, y) = binary(), grey()
    found = defense.loss(model, x, y, context(defense))
    length = (model.weight[1] - model.weight[0]).norm()
    torch.testing.assert_close(
        found, F.softplus(-((2 * y - 1) * lead(model, x)[0] - eps * length)).mean(), rtol=1e-4, atol=1e-5
    )
    assert (defense.recipe(INFO).norm, defense.recipe(INFO).eps) == ("l2", eps)
    assert [PGDTraining(norm="l2").recipe(info).eps for info in (DIGITS, INFO)] == [0.6, 0.5]


def test_the_model_may_be_led_away_from_its_own_prediction() -> None:
    model, (x, y) = binary(), grey()
    guess = model(x).argmax(1)
    assert (guess != y).any()
    defense = PGDTraining(eps=0.1, steps=10, step=0.1, target="prediction")
    found = defense.loss(model, x, y, context(defense))
    difference, slope = lead(model, x)
    moved = difference - 0.1 * slope * (2 * guess - 1)  # away from the guess, whatever the label
    torch.testing.assert_close(found, F.softplus(-(2 * y - 1) * moved).mean())


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_smoothing_gives_the_wrong_classes_their_share(smoothing: float) -> None:
    logits, y = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    target = torch.full((6, 5), smoothing / 4)
    target[torch.arange(6), y] = 1 - smoothing
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(PGDTraining(label_smoothing=smoothing).outer(logits, y), expected)


def test_the_share_of_labels_asked_for_is_drawn_anew_from_all_classes() -> None:
    torch.manual_seed(0)
    y = torch.zeros(1000, dtype=torch.int64)
    noisy = PGDTraining(label_noise=0.4).noisy(y, 10)
    counts = torch.bincount(noisy, minlength=10)
    assert abs(int(counts[0]) - 640) < 5 * math.sqrt(400 * 0.1 * 0.9)  # a tenth of the 400 drawn are as they were
    assert all(abs(int(c) - 40) < 5 * math.sqrt(400 * 0.1 * 0.9) for c in counts[1:])
    assert not y.any()
    assert torch.equal(PGDTraining(label_noise=0.0).noisy(y + 3, 10), y + 3)


def test_noise_is_in_the_outer_loss_alone_and_the_same_in_both_of_its_parts() -> None:
    defense = PGDTraining(eps=0.1, steps=10, step=0.1, label_noise=1.0, mix=0.5)
    model, (x, y) = binary(), grey()
    now = context(defense)
    found = defense.loss(model, x, y, now)
    labels = now.once("labels", lambda: y)
    assert (labels != y).any()
    difference, slope = lead(model, x)
    away = difference - 0.1 * slope * (2 * y - 1)  # crafted against the true labels
    expected = [F.softplus(-(2 * labels - 1) * d).mean() for d in (difference, away)]
    torch.testing.assert_close(found, sum(expected) / 2)


def test_half_a_batch_tells_turns_apart_under_attack() -> None:
    torch.manual_seed(0)
    defense = PGDTraining(width=4, eps=0.1, steps=2, rotation=2.0)
    model = defense.architecture(DIGITS)
    head = defense.auxiliary(model, DIGITS)
    assert isinstance(head, nn.Linear)
    assert head.out_features == 4
    now = Context(1e9, defense.recipe(DIGITS), DIGITS, run=Run(None, head))
    x, y = torch.rand(8, 1, 8, 8), torch.randint(0, 10, (8,))
    model.eval()
    found = defense.loss(model, x, y, now)
    first, second = now.once("x_adv", lambda: x), now.once("turned_adv", lambda: x)
    turns = now.once("turns", lambda: y)
    turned = torch.stack([torch.rot90(image, int(k), (1, 2)) for image, k in zip(x[4:], turns, strict=True)])
    assert 0 < (second - turned).abs().max() <= 0.1 + 1e-6
    assert 0 < (first - x[:4]).abs().max() <= 0.1 + 1e-6
    expected = F.cross_entropy(model(first), y[:4]) + 2 * F.cross_entropy(Rotated(model, head)(second), turns)
    torch.testing.assert_close(found, expected)
    assert PGDTraining().auxiliary(model, DIGITS) is None
    with pytest.raises(UsageError, match="rotation wants square images, not 3x4"):
        defense.auxiliary(model, DatasetInfo(name="mine", classes=("a", "b"), shape=(1, 3, 4)))


# --------------------------------------------------------------------------------------------------- crafting, modes, radius


ADVERSARIAL: list[Callable[[], AdversariallyTrained]] = [PGDTraining, Trades, Mart]


@pytest.mark.parametrize("make", ADVERSARIAL)
def test_crafting_is_in_evaluation_mode_and_leaves_no_trace(make: Callable[[], AdversariallyTrained]) -> None:
    defense, model, (x, y) = make(), small_cnn(INFO, width=4), grey(16)
    seen: list[tuple[bool, Tensor]] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0].detach().clone())))
    before = x.clone()
    model.train()
    defense.loss(model, x, y, context(defense))
    steps = defense.inner(context(defense))["steps"]
    modes = [mode for mode, _ in seen]
    outer = 1 if isinstance(defense, PGDTraining) else 2
    assert modes.count(True) == outer  # x (but for PGD) and x', each once, in training mode
    assert modes.count(False) == steps + isinstance(defense, Trades)  # the steps, and for TRADES the reference
    assert all(module.training for module in model.modules())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [int(m.num_batches_tracked or 0) for m in norms] == [outer] * len(norms)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(x, before)


@pytest.mark.parametrize("make", ADVERSARIAL)
def test_what_is_trained_on_lies_in_the_ball_and_the_box_and_is_harder(make: Callable[[], AdversariallyTrained]) -> None:
    defense, model = make(), small_cnn(DIGITS, width=4)
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(32, 1, 8, 8, generator=g).round(), torch.randint(0, 10, (32,), generator=g)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()) if module.training else None)
    defense.loss(model, x, y, context(defense, DIGITS))
    x_adv = seen[-1]
    assert (x_adv - x).abs().max() <= 0.15 + 1e-6
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert (x_adv - x).abs().mean() > 0.03  # half of the ball lies outside the box
    model.eval()
    with torch.no_grad():
        if not isinstance(defense, Trades):
            assert losses.cross_entropy(model(x_adv), y).mean() > losses.cross_entropy(model(x), y).mean()
        else:
            noise = (x + 0.15 * torch.randn(x.shape, generator=g).sign()).clamp(0, 1)
            p = model(x).softmax(1)
            found, by_chance = (F.kl_div(model(z).log_softmax(1), p, reduction="batchmean") for z in (x_adv, noise))
            assert found > 2 * by_chance


def test_the_radius_and_the_step_grow_together_over_the_ramp() -> None:
    for defense in (PGDTraining(), PGDTraining(step=0.06, steps=7)):
        recipe = defense.recipe(DIGITS)
        assert (recipe.eps, recipe.epochs, recipe.shift, recipe.flip) == (0.15, 60, 1, False)
        inner = [defense.inner(Context(e, recipe, DIGITS)) for e in (0.0, 7.5, 15.0, 59.0)]
        assert [i["eps"] for i in inner] == pytest.approx([0, 0.075, 0.15, 0.15])
        full = 0.075 if defense.step is None else 0.06
        assert [i["step"] for i in inner] == pytest.approx([0, full / 2, full, full])
        assert {i["steps"] for i in inner} == {defense.steps or 5}


def test_presets_follow_the_data_set() -> None:
    def info(name: str, *shape: int) -> DatasetInfo:
        return DatasetInfo(name=name, classes=("a", "b"), shape=(shape[0], shape[1], shape[2]))

    assert (preset(info("mnist", 1, 28, 28)).eps, preset(info("mnist", 1, 28, 28)).flip) == (0.3, False)
    cifar, svhn, own = (preset(i) for i in (info("cifar10", 3, 32, 32), info("svhn", 3, 32, 32), info("mine", 1, 8, 8)))
    assert {p.eps for p in (cifar, svhn, own)} == {8 / 255}
    assert preset(info("imagenet", 3, 224, 224)).eps == 4 / 255
    assert (cifar.flip, cifar.shift) == (True, 4)
    assert (svhn.flip, svhn.shift) == (False, 4)  # a mirrored digit is another sign
    assert (own.flip, own.shift) == (False, 1)
    given = PGDTraining(eps=0.02, epochs=3, lr=0.01).recipe(info("mine", 1, 8, 8))
    assert (given.eps, given.epochs, given.lr) == (0.02, 3, 0.01)
    assert Standard().recipe(DIGITS).eps == 0.0


# --------------------------------------------------------------------------------------------------------- what it achieves


def attacked(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Images after 10 steps of PGD in the linf ball."""
    torch.manual_seed(0)
    model.requires_grad_(False)
    return craft(model, x, lambda z: losses.cross_entropy(z, y), eps=eps, step=0.25 * eps, steps=10)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def test_a_short_training_learns_and_adversarial_training_lowers_the_loss_under_attack(digits: DatasetBundle) -> None:
    x, y = fetch(digits.test, range(200))
    clean, under_attack = {}, {}
    for name, defense in {
        "standard": Standard(width=8, epochs=8),
        "pgd-at": PGDTraining(width=8, epochs=8, eps=0.1, steps=3),
        "trades": Trades(width=8, epochs=8, eps=0.1, steps=3),
        "mart": Mart(width=8, epochs=8, eps=0.1, steps=3),
    }.items():
        model = train(defense, digits, seed=0).module
        clean[name] = accuracy(model, x, y)
        x_adv = attacked(model, x, y, 0.1)
        with torch.no_grad():
            under_attack[name] = F.cross_entropy(model(x_adv), y).item()
    assert min(clean.values()) > 0.8  # chance is 0.1
    assert all(under_attack[name] < 0.5 * under_attack["standard"] for name in ("pgd-at", "trades", "mart"))


@pytest.mark.parametrize("defense", [Standard(width=2, epochs=1), PGDTraining(width=2, epochs=1), Trades(width=2, epochs=1)])
def test_the_same_seed_gives_the_same_weights(defense: ImageDefense, digits: DatasetBundle) -> None:
    a, b, other = (train(defense, digits, seed=seed).module.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["1.weight"], other["1.weight"])


SHIPPED = Path(rbl_defenses.__file__).parent / "weights" / "digits"


@pytest.mark.parametrize(
    ("name", "defense", "least", "most"),
    [
        ("standard", Standard(), 0.0, 0.1),
        ("pgd-at", PGDTraining(), 0.6, 1.0),
        ("trades", Trades(), 0.6, 1.0),
        ("mart", Mart(), 0.6, 1.0),
        ("awp", AWP().around(PGDTraining()), 0.6, 1.0),
    ],
)
def test_shipped_weights_load_and_are_what_their_cards_say(
    name: str, defense: TrainedDefense, least: float, most: float, digits: DatasetBundle
) -> None:
    """least, most: accuracy under PGD-10 in linf 0.15 on 200 test images, with room for the binomial error (about 0.06)."""
    path = SHIPPED / f"{name}.safetensors"
    card, beside = read_card(path), json.loads(path.with_suffix(".json").read_text())
    assert beside == {**card, "sha256": file_hash(path)}
    declared = {spec.name: spec for spec in rbl_defenses.rbl_defenses()}[name]
    assert (card["defense"], card["version"]) == (f"rbl/{name}", declared.version)
    assert card["dataset"] == {"name": "digits", "fingerprint": digits.fingerprint}
    assert card["recipe"]["eps"] == defense.recipe(digits.info).eps
    model = defense(digits.info, path)
    assert not model.training
    x, y = fetch(digits.test, range(200))
    assert accuracy(model, x, y) > 0.95
    assert least <= accuracy(model, attacked(model, x, y, 0.15), y) <= most
    assert math.isclose(card["held_out"]["clean"], card["history"][-1]["clean"], abs_tol=1e-4)
