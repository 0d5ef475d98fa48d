"""Ensembles: mean probabilities, surrogates, refusals; and other wrappers on top of defenses that need a surrogate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rbl_defenses.ensemble import Ensemble
from rbl_defenses.jpeg import JPEG
from robustbench_lite import DatasetInfo, InvalidParameter, losses
from robustbench_lite.deployed import Deployed
from robustbench_lite.parameters import build

INFO = DatasetInfo(name="mine", classes=("a", "b", "c"), shape=(1, 8, 8))


def network(seed: int, columns: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, columns)).eval().requires_grad_(False)


def images() -> Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_it_answers_with_the_mean_of_the_probabilities() -> None:
    members, x = [network(seed) for seed in range(3)], images().requires_grad_()
    module = Ensemble()(INFO, members)
    expected = torch.stack([member(x).softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(module(x).softmax(1), expected)
    (got,) = torch.autograd.grad(module(x)[:, 0].sum(), x)
    (by_hand,) = torch.autograd.grad(expected[:, 0].log().sum(), x)
    torch.testing.assert_close(got, by_hand)


def test_confident_members_do_not_overflow() -> None:
    members = [nn.Sequential(network(seed), Times(1000.0)) for seed in range(2)]
    x = images().requires_grad_()
    logits = Ensemble()(INFO, members)(x)
    (grad,) = torch.autograd.grad(losses.cross_entropy(logits, logits.argmax(1)).sum(), x)
    assert logits.isfinite().all()
    assert grad.isfinite().all()


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_gradients_go_through_the_surrogates_of_members_that_have_one() -> None:
    plain, compressed = network(0), JPEG(quality=30)(INFO, network(1))
    module, x = Ensemble()(INFO, [plain, compressed]), images()
    y = module(x).argmax(1)
    ids = torch.arange(5)
    deployed = Deployed(module, num_classes=3, differentiable=False)
    scores, _, grad = deployed.loss_and_grad(x, losses.cross_entropy, (y,), passes=1, key="cell", ids=ids, draw=ids)
    torch.testing.assert_close(scores, module(x))
    leaf = x.clone().requires_grad_()
    both = torch.stack([plain(leaf).softmax(1), compressed.surrogate(leaf).softmax(1)]).mean(0).log()  # type: ignore[operator]
    (expected,) = torch.autograd.grad(losses.cross_entropy(both, y).sum(), leaf)
    torch.testing.assert_close(grad, expected)
    (half,) = torch.autograd.grad(losses.cross_entropy(module(leaf), y).sum(), leaf)
    assert (half - grad).abs().max() > 1e-4, "without the surrogate, half of it is missing"


def test_a_member_that_cannot_refuse_refuses_with_probability_0() -> None:
    members, x = [network(0), network(1, columns=4)], images()
    found = Ensemble()(INFO, members)(x).softmax(1)
    expected = torch.cat([members[0](x).softmax(1), torch.zeros(5, 1)], 1)
    torch.testing.assert_close(found, (expected + members[1](x).softmax(1)) / 2)


def test_one_defense_is_no_ensemble() -> None:
    with pytest.raises(InvalidParameter, match="bases"):
        build(Ensemble, {"bases": ["standard"]}, where="ensemble")
