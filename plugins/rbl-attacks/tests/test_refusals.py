"""Defenses that can refuse to answer: attacks with a fixed budget climb what the judge counts, and refusing is no success."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from golden_networks import Attack

from rbl_attacks.apgd import APGDCE
from rbl_attacks.bim import BIM
from rbl_attacks.delayed_elastic_net import DelayedElasticNet
from rbl_attacks.fgsm import FGSM
from rbl_attacks.nes import NES
from rbl_attacks.objectives import as_judged, objective, targeted
from rbl_attacks.pgd import PGD
from rbl_attacks.rotation_translation import RotationTranslation
from rbl_attacks.spsa import SPSA
from rbl_attacks.square import Square
from robustbench_lite import Threat, losses
from robustbench_lite.testing import Linear, make_target

LABEL = torch.zeros(5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("attack", "access"),
    [
        (FGSM(), "gradient"),
        (BIM(), "gradient"),
        (PGD(steps=5), "gradient"),
        (APGDCE(steps=5), "gradient"),
        (Square(queries=30), "scores"),
        (NES(queries=60, samples=10), "scores"),
        (SPSA(steps=5, samples=10), "scores"),
    ],
)
def test_the_way_to_a_refusal_is_not_taken(attack: Attack, access: str) -> None:
    """Brighter, the defense soon refuses; darker, the wrong class gains on the label, more slowly, and not enough."""
    model = Linear(torch.tensor([[0.0], [-4.0], [10.0]]), torch.tensor([1.0, 2.9, -4.05]))
    x, threat = torch.full((5, 1, 1, 1), 0.5), Threat("linf", 0.01)
    assert (model(x + threat.eps).argmax(1) == 2).all()
    target, rng = make_target(model, x, LABEL, threat, access=access, rejects=True)
    x_adv = attack(target, x, LABEL, threat, rng)
    assert not target.broken.any()
    assert (x_adv < x).all()


@pytest.mark.parametrize("eps", [0.02, 0.05])
@pytest.mark.parametrize(("attack", "access"), [(FGSM(), "gradient"), (Square(queries=30), "scores")])
def test_where_the_wrong_class_can_win_it_does(attack: Attack, access: str, eps: float) -> None:
    """It leads the label from 0.475 on; 0.05 is enough, 0.02 is not."""
    model = Linear(torch.tensor([[0.0], [-4.0], [10.0]]), torch.tensor([1.0, 2.9, -4.05]))
    x, threat = torch.full((5, 1, 1, 1), 0.5), Threat("linf", eps)
    target, rng = make_target(model, x, LABEL, threat, access=access, rejects=True)
    x_adv = attack(target, x, LABEL, threat, rng)
    assert (model(x_adv).argmax(1) == 1).tolist() == [eps > 0.025] * 5


@pytest.mark.parametrize("space", ["probabilities", "logits"])
def test_what_leads_the_label_only_is_not_the_end(space: Literal["probabilities", "logits"]) -> None:
    """Darker, the wrong class leads the label from 0.475 on, and the refusal from 0.4667 on."""
    model = Linear(torch.tensor([[0.0], [-4.0], [-2.5]]), torch.tensor([1.0, 2.9, 2.2]))
    x, threat = torch.full((5, 1, 1, 1), 0.5), Threat.parse("linf")
    target, rng = make_target(model, x, LABEL, threat, goal="minimal-norm", rejects=True)
    x_adv = DelayedElasticNet(lr=1e-4, steps=500, loss_space=space)(target, x, LABEL, threat, rng)
    assert (model(x_adv).argmax(1) == 1).all()
    assert (x_adv > 0.46).all()


def test_a_shift_to_a_refusal_is_not_taken() -> None:
    """A bright pixel in the middle: further left the wrong class gains, further right the defense refuses."""
    weight = torch.zeros(3, 1, 3, 5)
    weight[1, 0, 1, 1], weight[2, 0, 1, 3] = 0.05, 0.1
    model = Linear(weight.flatten(1), torch.tensor([1.0, 0.9, 0.95]))
    x, threat = torch.zeros(5, 1, 3, 5), Threat.parse("unrestricted")
    x[:, 0, 1, 2] = 1.0
    target, rng = make_target(model, x, LABEL, threat, access="scores", rejects=True)
    x_adv = RotationTranslation(degrees=0, pixels=1, samples="grid")(target, x, LABEL, threat, rng)
    assert not target.broken.any()
    assert x_adv[:, 0, 1, 1].tolist() == pytest.approx([1.0] * 5)


def test_losses_are_the_cores_own_unless_the_defense_may_refuse() -> None:
    """The core knows the derivatives of its own losses. Where refusing raises the label, it is autograd that knows it."""
    model = Linear(torch.eye(5), torch.zeros(5))
    x = torch.rand(6, 1, 1, 5, generator=torch.Generator().manual_seed(0))
    logits = x.flatten(1)
    y = logits[:, :4].argmin(1)
    aim = (y + 1) % 4
    plain, _ = make_target(model, x, y, "linf:0.1")
    refusing, _ = make_target(model, x, y, "linf:0.1", rejects=True)
    assert (objective("ce", plain), objective("dlr", plain), targeted(plain)) == (
        losses.cross_entropy,
        losses.dlr,
        losses.targeted_dlr,
    )
    raised = as_judged(logits, y, 4)
    assert not torch.equal(raised, logits[:, :4])
    assert torch.equal(objective("dlr", refusing)(logits, y), losses.dlr(raised, y))
    assert torch.equal(targeted(refusing)(logits, y, aim), losses.targeted_dlr(raised, y, aim))
