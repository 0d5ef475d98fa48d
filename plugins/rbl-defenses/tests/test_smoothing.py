"""Randomized smoothing: the certificate against closed forms and against attacks; the vote and its gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rbl_defenses.randomized_smoothing import RandomizedSmoothing, Smoothed, lower_bound
from rbl_defenses.standard import Standard
from robustbench_lite import DatasetBundle, DatasetInfo, Randomness, losses
from robustbench_lite.data import fetch
from robustbench_lite.deployed import Deployed
from robustbench_lite.randomness import keyed_draws
from robustbench_lite.testing import Linear
from robustbench_lite.training import train

INFO = DatasetInfo(name="mine", classes=("a", "b"), shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("hits", "n", "p", "sigma", "radius"),
    [
        (100_000, 100_000, 0.99993092, 0.25, 0.95286),
        (100_000, 100_000, 0.99993092, 0.5, 1.90573),
        (99_000, 100_000, None, 0.25, 0.57250),
        (99_000, 100_000, None, 0.5, 1.14500),
        (600, 1000, 0.551075, 0.5, 0.064189),
    ],
)
def test_the_bound_and_the_radius_of_given_counts(hits: int, n: int, p: float | None, sigma: float, radius: float) -> None:
    module = Counted(hits, n, sigma)
    classes, radii = module.certify(torch.zeros(1, 1, 1, 1), n0=10, n=n, alpha=1e-3)
    assert classes.tolist() == [1]
    assert radii.item() == pytest.approx(radius, abs=2e-5 * max(1, radius))
    if p is not None:
        assert lower_bound(np.array([hits]), n, 1e-3)[0] == pytest.approx(p, abs=1e-6)


class Counted(Smoothed):
    """Class 1 gets all of the votes that choose, and ``hits`` of those that are counted."""

    def __init__(self, hits: int, n: int, sigma: float) -> None:
        super().__init__(nn.Identity(), sigma, 1)
        self.hits, self.n = hits, n

    def counts(self, x: Tensor, n: int) -> Tensor:
        return torch.tensor([[0, n]]) if n != self.n else torch.tensor([[n - self.hits, self.hits]])


def test_all_right_gives_the_root_of_alpha_and_none_right_gives_nothing() -> None:
    assert lower_bound(np.array([1000]), 1000, 1e-3)[0] == pytest.approx(1e-3 ** (1 / 1000))
    assert lower_bound(np.array([0]), 1000, 1e-3)[0] == 0


def test_it_abstains_up_to_one_half_and_counts_fresh_draws() -> None:
    for hits, expected in ((500, -1), (549, -1), (551, 1)):  # P(X >= 550) = 0.0009 under a fair coin
        classes, radii = Counted(hits, 1000, 0.5).certify(torch.zeros(1, 1, 1, 1), n0=10, n=1000, alpha=1e-3)
        assert classes.item() == expected
        assert (radii.item() > 0) == (expected == 1)
    # What is chosen on 10 draws and never seen again is not certified: a pixel that depends on how many draws were asked for.
    classes, _ = Counted(0, 1000, 0.5).certify(torch.zeros(1, 1, 1, 1), n0=10, n=1000, alpha=1e-3)
    assert classes.item() == -1


def test_on_a_linear_model_no_radius_exceeds_the_distance_to_the_plane_and_most_come_near() -> None:
    """There the smoothed defense is the model itself, and its exact radius the distance |w.x + b| / ||w||."""
    model = Linear.binary()
    w, b = model.weight[1] - model.weight[0], model.bias[1] - model.bias[0]
    x = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    distance = ((x.flatten(1) @ w + b).abs() / w.norm()).double().detach()
    module = RandomizedSmoothing(sigma=0.5)(INFO, model.eval())
    torch.manual_seed(0)
    with torch.no_grad():
        classes, radii = module.certify(x, n0=50, n=2000, alpha=1e-3)  # type: ignore[operator]
        answers = model(x).argmax(1)
    kept = classes >= 0
    assert (classes[kept] == answers[kept]).all()
    assert int((radii > distance).sum()) <= 3
    assert (radii[kept] > 0).all()
    # The 0.1 % quantile of so many draws costs about 3.1 standard errors of the estimated probability.
    near = distance[kept].clamp(max=0.8)
    assert (near - radii[kept]).median() < 0.08
    # It abstains near the plane: where 50 draws choose the wrong class, or 2000 cannot tell. At 0.25, a half of sigma, a draw
    # is right with probability 0.69, and most of 50 are wrong in one case of 400.
    assert (distance[~kept] < 0.25).all()


def test_predict_abstains_where_a_fair_coin_is_likely_and_answers_otherwise() -> None:
    model = Linear(torch.tensor([[-1.0], [1.0]]), torch.zeros(2))
    module = Smoothed(model, 1.0, 1)
    x = torch.tensor([0.0, 1.0, -1.0, 0.02]).view(4, 1, 1, 1)
    torch.manual_seed(0)
    assert module.predict(x, 1000, 1e-3).tolist() == [-1, 1, 0, -1]


def test_votes_are_normally_distributed_margins() -> None:
    """For a linear model, the share of votes is the normal distribution's at margin / (sigma ||w||)."""
    model = Linear(torch.tensor([[-1.0, 0.5], [1.0, 0.5]]), torch.zeros(2))
    x = torch.tensor([[[[0.3, 0.9]]]])
    torch.manual_seed(0)
    share = Smoothed(model, 0.5, 1).counts(x, 20_000)[0, 1].item() / 20_000
    expected = 0.5 * (1 + math.erf(0.3 / 0.5 / math.sqrt(2)))
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 20_000)


def test_an_image_has_draws_of_its_own_in_any_batch() -> None:
    module = RandomizedSmoothing(sigma=0.4)(INFO, Linear.binary())
    x, ids = 0.5 + 0.1 * torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(6)

    def certified(rows: Tensor) -> tuple[Tensor, Tensor]:
        with keyed_draws(Randomness("metric", ids[rows]), torch.zeros_like(rows)):
            found: tuple[Tensor, Tensor] = module.certify(x[rows], n0=20, n=170, alpha=0.01)  # type: ignore[operator]
            return found

    whole = certified(ids)
    for rows in (torch.tensor([3]), torch.tensor([5, 0, 2])):
        part = certified(rows)
        assert torch.equal(part[0], whole[0][rows])
        assert torch.equal(part[1], whole[1][rows])


# ------------------------------------------------------------------------------------------------------ the vote as a defense


class Mixed(nn.Module):
    """Three classes whose order depends on the noise."""

    def forward(self, x: Tensor) -> Tensor:
        return 40 * x.flatten(1)


def test_a_pass_answers_with_the_majority_and_ties_go_to_the_mean_probability() -> None:
    x = 0.5 + 0.1 * torch.rand(50, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    module = Smoothed(Mixed(), 0.1, 4)
    ids = torch.arange(50)

    def keyed(run: nn.Module | object) -> Tensor:
        with keyed_draws(Randomness("cell", ids), torch.zeros_like(ids)):
            found: Tensor = run(x)  # type: ignore[operator]
            return found

    with keyed_draws(Randomness("cell", ids), torch.zeros_like(ids)):
        noisy = module._noisy(x, 4, module.base)
    votes = torch.nn.functional.one_hot(noisy.argmax(2), 3).sum(0)
    logits, mean = keyed(module), keyed(module.surrogate)
    torch.testing.assert_close(mean, noisy.softmax(2).mean(0).log())
    torch.testing.assert_close(logits.softmax(1), votes / 4, atol=3e-4, rtol=0)
    most = votes == votes.amax(1, keepdim=True)
    assert most.gather(1, logits.argmax(1)[:, None]).all()
    tied = most.sum(1) > 1
    assert tied.any()
    expected = mean.masked_fill(~most, -math.inf).argmax(1)
    assert torch.equal(logits.argmax(1)[tied], expected[tied])


def test_votes_without_a_doubt_still_have_finite_logits_and_a_gradient_to_climb() -> None:
    model = Linear(1000 * torch.eye(3), torch.zeros(3))
    x, y = torch.tensor([[0.9, 0.1, 0.3]]).view(1, 3, 1, 1), torch.tensor([0])
    module = Smoothed(model, 0.05, 8)
    deployed = Deployed(module, num_classes=3, stochastic=True, differentiable=False)
    ids = torch.zeros(1, dtype=torch.int64)
    scores, _, grad = deployed.loss_and_grad(x, losses.margin, (y,), passes=2, key="cell", ids=ids, draw=ids)
    assert scores.isfinite().all()
    assert scores.argsort(1, descending=True).tolist() == [[0, 2, 1]], "classes without votes are ordered all the same"
    assert grad.flatten()[0] < 0 < grad.flatten()[2], "away from the label, towards the runner-up"


# ------------------------------------------------------------------------------------ certified against attacked, on digits


@pytest.fixture(scope="module")
def noisy(digits: DatasetBundle) -> nn.Module:
    """Digits, trained under noise as the paper has it."""

    class UnderNoise(Standard):
        def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: object) -> Tensor:
            return super().loss(model, x + 0.25 * torch.randn_like(x), y, context)  # type: ignore[arg-type]

    return train(UnderNoise(width=8, epochs=12), digits, seed=0).module.requires_grad_(False)


def test_no_attack_within_the_certified_radius_succeeds(noisy: nn.Module, digits: DatasetBundle) -> None:
    """At each radius, certified accuracy is at most the accuracy under an l2 attack of that radius."""
    x, y = fetch(digits.test, range(100))
    module = RandomizedSmoothing(sigma=0.25, draws=32)(digits.info, noisy)
    torch.manual_seed(0)
    classes, radii = module.certify(x, n0=50, n=1000, alpha=1e-3)  # type: ignore[operator]
    right = classes == y
    assert right.float().mean() > 0.6
    certified = []
    for eps in (0.15, 0.3, 0.45):
        x_adv = x.clone()
        for _ in range(12):
            leaf = x_adv.requires_grad_()
            (grad,) = torch.autograd.grad(losses.cross_entropy(module.surrogate(leaf), y).sum(), leaf)  # type: ignore[operator]
            step = x_adv.detach() + 0.25 * eps * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp(min=1e-12)
            delta = step - x
            length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            x_adv = x + delta * (eps / length.clamp(min=eps))
        found = module.predict(x_adv.detach(), 1000, 1e-3)  # type: ignore[operator]
        inside = right & (radii >= eps)
        assert ((found == y) | (found == -1))[inside].all(), "an answer within the radius is the certified one"
        certified.append(inside.float().mean().item())
        assert certified[-1] <= (found == y).float().mean().item()
    assert certified == sorted(certified, reverse=True)
    assert certified[0] > 0.2
