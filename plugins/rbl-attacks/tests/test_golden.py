"""On two fixed networks, every attack is as strong as the published implementation of it. See golden/README.md."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from golden_networks import EXAMPLE, fixture, robust_accuracy
from torch import Tensor

from rbl_attacks import objectives, windows
from rbl_attacks.apgd import APGDCE, APGDDLR, APGDT
from rbl_attacks.bim import BIM
from rbl_attacks.fgsm import FGSM
from rbl_attacks.mifgsm import MIFGSM
from rbl_attacks.pgd import PGD
from rbl_attacks.square import Square
from robustbench_lite import Threat
from robustbench_lite.testing import make_target


def test_the_networks_are_as_published() -> None:
    assert len(fixture("std")[1]) == pytest.approx(390, abs=1)
    assert len(fixture("at")[1]) == pytest.approx(396, abs=1)


FGSM_PUBLISHED = [
    ("std", "linf:0.12", 0.3725),
    ("std", "linf:0.2", 0.0350),
    ("at", "linf:0.12", 0.8475),
    ("at", "linf:0.2", 0.5625),
]


@pytest.mark.parametrize(("name", "threat", "published"), FGSM_PUBLISHED)
def test_fgsm_on_torch_cross_entropy(name: str, threat: str, published: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(objectives._LOSSES, "ce", partial(F.cross_entropy, reduction="none"))
    assert robust_accuracy(name, threat, FGSM()) == pytest.approx(published, abs=1.1 * EXAMPLE)


@pytest.mark.parametrize(("name", "threat", "published"), FGSM_PUBLISHED)
def test_fgsm_on_accurate_gradients_is_no_weaker(name: str, threat: str, published: float) -> None:
    """Torch's cross-entropy loses the gradient's direction where a network is confident; ours does not (see losses.py)."""
    assert robust_accuracy(name, threat, FGSM()) <= published + EXAMPLE


@pytest.mark.parametrize("attack", [BIM(), BIM(stop_on_success=True)], ids=["last point", "any point"])
@pytest.mark.parametrize(
    ("name", "threat", "published"),
    [("std", "linf:0.12", 0.3100), ("std", "linf:0.2", 0.0050), ("at", "linf:0.12", 0.8125), ("at", "linf:0.2", 0.4000)],
)
def test_bim(name: str, threat: str, published: float, attack: BIM) -> None:
    assert robust_accuracy(name, threat, attack) == pytest.approx(published, abs=1.1 * EXAMPLE)


MIFGSM_PUBLISHED = [
    ("std", "linf:0.12", 0.3425),
    ("std", "linf:0.2", 0.0175),
    ("at", "linf:0.12", 0.8350),
    ("at", "linf:0.2", 0.4800),
]


@pytest.mark.parametrize(("name", "threat", "published"), MIFGSM_PUBLISHED)
def test_mifgsm_on_torch_cross_entropy(name: str, threat: str, published: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(objectives._LOSSES, "ce", partial(F.cross_entropy, reduction="none"))
    assert robust_accuracy(name, threat, MIFGSM()) == pytest.approx(published, abs=1.1 * EXAMPLE)


@pytest.mark.parametrize(("name", "threat", "published"), MIFGSM_PUBLISHED)
def test_mifgsm_on_accurate_gradients_is_no_weaker(name: str, threat: str, published: float) -> None:
    assert robust_accuracy(name, threat, MIFGSM()) <= published + EXAMPLE


@pytest.mark.parametrize(
    ("name", "threat", "published"),
    [("std", "linf:0.12", 0.3100), ("std", "linf:0.2", 0.0050), ("at", "linf:0.12", 0.8150), ("at", "linf:0.2", 0.3900)],
)
def test_pgd_from_a_random_start(name: str, threat: str, published: float) -> None:
    attack = PGD(steps=40, step=Threat.parse(threat).eps / 10)
    assert robust_accuracy(name, threat, attack) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize(
    ("name", "threat", "published"),
    [
        ("std", "linf:0.12", 0.3175),
        ("std", "linf:0.2", 0.0050),
        ("std", "l2:1.0", 0.0100),
        ("std", "l1:4.0", 0.0000),
        ("at", "linf:0.12", 0.8050),
        ("at", "linf:0.2", 0.3600),
        ("at", "l2:1.0", 0.0750),
        ("at", "l1:4.0", 0.0000),
    ],
)
def test_apgd_ce(name: str, threat: str, published: float) -> None:
    """Within a point of the reference, or stronger by two at most: under l2:1.0 the reference's own seeds spread 1.5 points."""
    found = robust_accuracy(name, threat, APGDCE(finish=False))
    assert published - 0.02 <= found <= published + 0.01


@pytest.mark.parametrize(
    ("name", "threat", "published"),
    [
        ("std", "linf:0.12", 0.3425),
        ("std", "linf:0.2", 0.0100),
        ("std", "l2:1.0", 0.0150),
        ("std", "l1:4.0", 0.0075),
        ("at", "linf:0.12", 0.8250),
        ("at", "linf:0.2", 0.4200),
        ("at", "l2:1.0", 0.1150),
        ("at", "l1:4.0", 0.0050),
    ],
)
def test_apgd_dlr(name: str, threat: str, published: float) -> None:
    """As for apgd-ce. Under l2:1.0 the reference's seeds 0 to 5 leave 8.75 to 11.5 % of ``at``; published is the highest."""
    found = robust_accuracy(name, threat, APGDDLR(finish=False))
    assert published - 0.03 <= found <= published + 0.01


APGD_T = [
    ("std", "linf:0.12", 0.2875),
    ("std", "linf:0.2", 0.0000),
    ("std", "l2:1.0", 0.0000),
    ("std", "l1:4.0", 0.0000),
    ("at", "linf:0.12", 0.8000),
    ("at", "linf:0.2", 0.3225),
    ("at", "l2:1.0", 0.0375),
    ("at", "l1:4.0", 0.0000),
]
LONG = {("at", "linf:0.12"), ("at", "linf:0.2")}


@pytest.mark.parametrize(
    ("name", "threat", "published"),
    [pytest.param(*row, marks=pytest.mark.slow if row[:2] in LONG else ()) for row in APGD_T],
)
def test_apgd_t(name: str, threat: str, published: float) -> None:
    assert robust_accuracy(name, threat, APGDT(finish=False)) == pytest.approx(published, abs=0.01)


def test_apgd_t_is_no_weaker_than_apgd_dlr() -> None:
    """On the first 60 examples; ``test_apgd_t`` has all of them."""
    model, x, y = (part[:60] if isinstance(part, Tensor) else part for part in fixture("at"))
    beaten = []
    for attack in (APGDT(), APGDDLR()):
        target, rng = make_target(model, x, y, "linf:0.2")
        attack(target, x, y, Threat.parse("linf:0.2"), rng)
        beaten.append(int(target.broken.sum()))
    assert beaten[0] > beaten[1] > 0


SQUARE = [
    ("std", "linf:0.12", 0.4875),
    ("std", "linf:0.2", 0.0425),
    ("std", "l2:1.0", 0.1400),
    ("std", "l1:4.0", 0.0900),
    ("at", "linf:0.12", 0.8525),
    ("at", "linf:0.2", 0.5200),
    ("at", "l2:1.0", 0.3150),
    ("at", "l1:4.0", 0.0500),
]


@pytest.mark.parametrize(("name", "threat", "published"), SQUARE)
def test_square_is_no_weaker_than_the_reference(name: str, threat: str, published: float) -> None:
    """It is stronger, by 2 to 17 points: on 8x8 images the last row and column, which the reference leaves out, count."""
    assert robust_accuracy(name, threat, Square(queries=1000), access="scores") <= published


# They take five seconds each: two of the six, on both networks, do in the usual run.
USUAL = [("std", "l2:1.0", 0.1400), ("at", "linf:0.12", 0.8525)]


@pytest.mark.parametrize(
    ("name", "threat", "published"),
    [pytest.param(*row, marks=[pytest.mark.slow] * (row not in USUAL)) for row in SQUARE if "l1" not in row[1]],
)
def test_square_with_the_reference_windows(name: str, threat: str, published: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def corner(draw: Tensor, size: int, window: int) -> Tensor:
        return (draw * max(size - window, 1)).long()

    monkeypatch.setattr(windows, "_corner", corner)
    found = [robust_accuracy(name, threat, Square(queries=1000), access="scores", seed=seed) for seed in range(3)]
    assert sum(found) / 3 == pytest.approx(published, abs=0.03)


@pytest.mark.parametrize("threat", ["linf:0.15", "l2:1.0", "l1:4.0"])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd-ce", "square"])
def test_the_size_of_micro_batches_changes_no_result(name: str, threat: str) -> None:
    attack, access = {
        "fgsm": (FGSM(), "gradient"),
        "pgd": (PGD(steps=10), "gradient"),
        "apgd-ce": (APGDCE(steps=10), "gradient"),
        "square": (Square(queries=40), "scores"),
    }[name]
    model, x, y = (part[:24] if isinstance(part, Tensor) else part for part in fixture("at"))
    limits = Threat.parse(threat)
    points, predictions = [], []
    for size in (1, 7, 64, 256):
        target, rng = make_target(model, x, y, limits, access=access, micro_batch=size)
        points.append(attack(target, x, y, limits, rng))
        predictions.append(model(points[-1]).argmax(1))
    for point, predicted in zip(points[1:], predictions[1:], strict=True):
        assert torch.equal(predicted, predictions[0])
        assert (point - points[0]).abs().max() <= 1e-6
