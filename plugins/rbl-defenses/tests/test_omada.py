"""OMADA: the latent space, the paths in it, and what is taken from them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from rbl_defenses.latent_space import DIVERGENCE, LatentSpace
from rbl_defenses.omada import OMADA
from rbl_defenses.standard import Standard
from robustbench_lite import DatasetBundle
from robustbench_lite.data import fetch
from robustbench_lite.training import Context, keeping_buffers, train

Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def space() -> LatentSpace:
    """Fitted to digits for a moment."""
    from pathlib import Path

    from rbl_datasets.digits import Digits

    digits = Digits()(Path())
    torch.manual_seed(0)
    space = LatentSpace((1, 8, 8), 10, 16)
    space.fit(*fetch(digits.train, range(1000)), steps=300, vary=lambda x: x)
    return space


def test_its_loss_is_the_weighted_evidence_bound_and_the_cross_entropy_of_the_latent_classifier(batch: Batch) -> None:
    x, y = batch
    torch.manual_seed(0)
    space = LatentSpace((1, 8, 8), 10, 4)
    torch.manual_seed(1)
    found = space.loss(x, y)
    torch.manual_seed(1)
    mean, log_variance = space.encode(x)
    posterior = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
    z = posterior.rsample()
    prior = Independent(Normal(torch.zeros(4), torch.ones(4)), 1)
    likelihood = Independent(Bernoulli(space.decode(z), validate_args=False), 3).log_prob(x)
    expected = (DIVERGENCE * kl_divergence(posterior, prior) - likelihood).mean() + F.cross_entropy(space.classifier(z), y)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_fitted_space_decodes_what_it_encodes_and_tells_classes_apart(space: LatentSpace, digits: DatasetBundle) -> None:
    x, y = fetch(digits.train, range(1000, 1200))
    z, _ = space.encode(x)
    assert (space.decode(z) - x).square().mean() < 0.5 * (x.mean(0) - x).square().mean()
    assert (space.classifier(z).argmax(1) == y).float().mean() > 0.85
    assert not any(p.requires_grad for p in space.parameters())


def test_paths_descend_the_cross_entropy_of_the_other_class_and_reach_it(space: LatentSpace, digits: DatasetBundle) -> None:
    x, y = fetch(digits.train, range(200))
    target = (y + 1) % 10
    z = space.encode(x)[0]
    path = space.path(z, target, steps=20, step=0.2)
    assert path.shape == (21, 200, 16)
    assert torch.equal(path[0], z)
    leaf = z.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(space.classifier(leaf), target, reduction="sum"), leaf)
    torch.testing.assert_close(path[1], z - 0.2 * slope)
    losses = torch.stack([F.cross_entropy(space.classifier(p), target) for p in path])
    assert (losses.diff() < 0).all()
    assert (space.classifier(path[-1]).argmax(1) == target).float().mean() > 0.9


@pytest.mark.parametrize("sampling", ["uniform", "entropy", "boundary"])
def test_points_are_taken_from_the_path_as_asked(sampling: str, space: LatentSpace, digits: DatasetBundle) -> None:
    x, y = fetch(digits.train, range(100))
    defense = OMADA(sampling=sampling)  # type: ignore[arg-type]
    torch.manual_seed(7)
    images, labels = defense.vary(space, x, y)
    assert images.shape == x.shape
    assert 0 <= images.min() <= images.max() <= 1
    torch.testing.assert_close(labels.sum(1), torch.ones(100))
    torch.manual_seed(7)
    target = (y + torch.randint(1, 10, y.shape)) % 10
    path = space.path(space.encode(x)[0], target, steps=20, step=defense.path_step)
    p = space.classifier(path).softmax(2)
    rows = torch.arange(100)
    entropy, gap = -(p * p.log()).sum(2), (p[:, rows, y] - p[:, rows, target]).abs()
    taken = {"uniform": None, "entropy": entropy.argmax(0), "boundary": gap.argmin(0)}[sampling]
    if taken is None:
        at = (p - labels).abs().sum(2).argmin(0)
        assert set(at.tolist()) == set(range(21))  # from one end to the other
        assert (target != y).all()
        taken = at
    torch.testing.assert_close(labels, p[taken, rows])
    torch.testing.assert_close(images, space.decode(path[taken, rows]))


def test_without_its_weight_it_is_standard_training_and_with_it_adds_soft_labels(
    space: LatentSpace, small: nn.Module, batch: Batch, context_of: Callable[..., Context]
) -> None:
    x, y = batch
    images, labels = (x + 0.1).clamp(0, 1), torch.rand(len(x), 10).softmax(1)

    def loss(defense: OMADA | Standard) -> Tensor:
        context = context_of(defense, small)
        context.once("varied", lambda: (images, labels))
        with keeping_buffers(small):
            return defense.loss(small, x, y, context)

    with keeping_buffers(small):
        soft = -(labels * small(images).log_softmax(1)).sum(1).mean()
    assert torch.equal(loss(OMADA(weight=0.0)), loss(Standard()))
    torch.testing.assert_close(loss(OMADA(weight=0.5)), loss(Standard()) + 0.5 * soft)


def test_the_latent_space_is_made_first_and_then_left_alone(digits: DatasetBundle) -> None:
    made: list[nn.Module] = []

    class Seen(OMADA):
        def auxiliary(self, *given: object) -> nn.Module:
            made.append(super().auxiliary(*given))  # type: ignore[arg-type]
            return made[-1]

    untrained = LatentSpace((1, 8, 8), 10, 16).state_dict()
    result = train(Seen(width=3, epochs=1, latent_steps=30), digits, seed=0)
    assert all(p.grad is not None and not p.requires_grad for p in made[0].parameters())
    assert not any(torch.equal(untrained[n], v) for n, v in made[0].state_dict().items())
    assert {p.shape for p in made[0].parameters()}.isdisjoint({p.shape for p in result.module.parameters() if p.dim() > 1})
