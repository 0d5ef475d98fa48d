"""ASCL: the contrastive loss against its definition, and the whole."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rbl_defenses.architectures import with_features
from rbl_defenses.ascl import ASCL, Distance, Selection, contrastive_loss
from rbl_defenses.pgd_at import PGDTraining
from robustbench_lite.training import Context, keeping_buffers

Batch = tuple[Tensor, Tensor]


def by_definition(z: Tensor, y: list[int], p: list[int], selection: str, distance: str, temperature: float) -> float:
    n, unit = len(y), [v / v.norm() for v in z]

    def s(i: int, j: int) -> float:
        d = {
            "linf": (unit[i] - unit[j]).abs().max(),
            "l1": (unit[i] - unit[j]).abs().sum(),
            "l2": (unit[i] - unit[j]).norm(),
            "cosine": 1 - unit[i] @ unit[j],
        }[distance]
        return -float(d) / temperature

    total = 0.0
    for i in range(n):
        positives = [j for j in range(n) if j != i and y[j] == y[i]]
        negatives = [j for j in range(n) if y[j] != y[i]]
        if selection == "hard":
            negatives = [j for j in negatives if p[j] == y[i]]
        if selection in ("soft", "leaking"):
            negatives = [j for j in negatives if p[j] == p[i]]
        if selection == "leaking":
            positives = [j for j in positives if p[j] == p[i]]
        below = sum(math.exp(s(i, k)) for k in positives + negatives)
        total -= sum(math.log(math.exp(s(i, j)) / below) for j in positives) / max(1, len(positives))
    return total / n


@pytest.mark.parametrize("selection", ["all", "hard", "soft", "leaking"])
@pytest.mark.parametrize("distance", ["linf", "l1", "l2", "cosine"])
def test_the_contrastive_loss_is_its_definition(selection: Selection, distance: Distance) -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(14, 5, generator=g, dtype=torch.float64).requires_grad_()
    y = torch.randint(0, 3, (14,), generator=g)
    predicted = torch.where(torch.rand(14, generator=g) < 0.6, y, torch.randint(0, 3, (14,), generator=g))
    found = contrastive_loss(z, y, predicted, selection=selection, distance=distance, temperature=0.2)
    expected = by_definition(z.detach(), y.tolist(), predicted.tolist(), selection, distance, 0.2)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    (slope,) = torch.autograd.grad(found, z)
    assert slope.isfinite().all()
    assert slope.abs().max() > 0


def test_anchors_without_anyone_add_nothing_and_no_nan() -> None:
    z = torch.randn(4, 3, requires_grad=True)
    y, predicted = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 1, 2])
    found = contrastive_loss(z, y, predicted, selection="leaking", distance="linf", temperature=0.2)
    (slope,) = torch.autograd.grad(found, z)
    assert found.item() == pytest.approx(0, abs=1e-6)  # the two that have each other have nobody else
    assert slope.isfinite().all()
    nobody = contrastive_loss(z, torch.arange(4), torch.arange(4), selection="all", distance="linf", temperature=0.2)
    assert nobody.item() == 0


def test_it_falls_as_classes_gather_and_part() -> None:
    y = torch.tensor([0, 1] * 4)
    spread = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    gathered = F.one_hot(y, 6) + 0.01 * spread

    def loss(z: Tensor) -> float:
        return contrastive_loss(z, y, y * 0, selection="leaking", distance="l2", temperature=0.2).item()

    assert loss(gathered) < 1.2 < loss(spread)  # log 3: three positives that are equally near
    assert loss(gathered) == pytest.approx(math.log(3), abs=0.05)


def test_the_loss_is_the_sum_of_its_parts(small: nn.Module, batch: Batch, context_of: Callable[..., Context]) -> None:
    x, y = batch
    x_adv = (x + 0.1).clamp(0, 1)
    torch.manual_seed(0)
    defense = ASCL(clean=0.7, contrast=0.5, smoothness=3.0, size=6)
    context = context_of(defense, small)
    context.once("x_adv", lambda: x_adv)
    inside = [*small.parameters(), *context.auxiliary.parameters()]
    with keeping_buffers(small):
        found = defense.loss(small, x, y, context)
        assert all(s is not None for s in torch.autograd.grad(found, inside, allow_unused=True))
        adversarial, hidden_adv = with_features(small, x_adv)
        logits, hidden = with_features(small, x)
    p, q = logits.softmax(1), adversarial.softmax(1)
    contrast = contrastive_loss(
        context.auxiliary(torch.cat([hidden, hidden_adv])),
        torch.cat([y, y]),
        torch.cat([logits, adversarial]).argmax(1),
        selection="leaking",
        distance="linf",
        temperature=0.2,
    )
    parts = F.cross_entropy(adversarial, y) + 0.7 * F.cross_entropy(logits, y)
    parts = parts + 3.0 * (p * (p.log() - q.log())).mean() + 0.5 * contrast
    torch.testing.assert_close(found, parts)


def test_without_its_terms_it_is_adversarial_training(
    small: nn.Module, batch: Batch, context_of: Callable[..., Context]
) -> None:
    x, y = batch
    values = []
    for defense in (ASCL(contrast=0, smoothness=0), PGDTraining(craft_mode="train")):
        context = context_of(defense, small)
        torch.manual_seed(5)
        with keeping_buffers(small):
            values.append(defense.loss(small, x, y, context))
    assert torch.equal(*values)
