"""Carlini and Wagner's attack, and the search for its constant."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_networks import fixture, judged_sizes, minimal_sizes
from torch import Tensor

from rbl_attacks.adam import Adam
from rbl_attacks.cw import CarliniWagner
from rbl_attacks.search import ConstantSearch
from robustbench_lite import Threat
from robustbench_lite.testing import Linear, make_target
from robustbench_lite.testing.problems import Problem

FREE = Threat("l2", math.inf)


def ratios(attack: CarliniWagner) -> np.ndarray:
    """Size over distance, on a linear model and images so far from the faces of the box that none is in the way.

    A step of 0.01 in w moves such an image by up to 0.035: what is not much farther than that is not resolved.
    """
    model = Linear.binary((3, 8, 8))
    x = 0.5 + 0.5 * (torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5)
    w = (model.weight[1] - model.weight[0]).detach().double()
    margin = (x.double().flatten(1) @ w + (model.bias[1] - model.bias[0]).detach().double()).abs()
    away = margin / w.norm()
    x, away = x[away > 0.1], away[away > 0.1]
    assert len(x) >= 16
    y = model(x).argmax(1)
    target, rng = make_target(model, x, y, FREE, goal="minimal-norm")
    x_adv = attack(target, x, y, FREE, rng)
    assert FREE.in_box(x_adv).all()
    assert (model(x_adv).argmax(1) != y).all()
    return (FREE.size(x, x_adv) / away).numpy()


def test_the_constant_grows_tenfold_until_it_is_enough_and_is_bisected_from_then_on() -> None:
    search = ConstantSearch(torch.zeros(3), first=1e-3, rounds=5)
    answers = [(False, True, False), (False, False, False), (True, True, False), (False, True, False), (True, True, False)]
    seen = []
    for constant, found in zip(search, answers, strict=True):
        seen.append(constant.tolist())
        search.learn(torch.tensor(found))
    assert torch.tensor(seen).T.tolist() == [
        pytest.approx([1e-3, 1e-2, 1e-1, 0.055, 0.0775]),
        pytest.approx([1e-3, 5e-4, 7.5e-4, 6.25e-4, 5.625e-4]),
        pytest.approx([1e-3, 1e-2, 1e-1, 1.0, 10.0]),
    ]


def test_a_long_search_ends_with_the_smallest_constant_that_worked() -> None:
    search = ConstantSearch(torch.zeros(2), first=1.0, rounds=10)
    last = torch.zeros(2)
    for constant in search:
        last = constant
        search.learn(torch.stack([constant[0] >= 3, torch.tensor(False)]))
    assert 3 <= last[0] < 3.1
    assert last[1] == 1e10


def test_adam_is_torch_adam_whoever_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    start, slopes = torch.randn(4, 3, generator=generator), torch.randn(12, 4, 3, generator=generator)
    theirs = start.clone().requires_grad_()
    reference = torch.optim.Adam([theirs], lr=0.05)
    ours, adam, kept = start.clone(), Adam(start), torch.arange(4)
    for number, slope in enumerate(slopes):
        theirs.grad = slope.clone()
        reference.step()
        if number == 5:
            alive = torch.tensor([True, False, True, True])
            ours, kept = ours[alive], kept[alive]
            adam.keep(alive)
        ours = ours - adam.move(slope[kept], 0.05)
    assert torch.allclose(ours, theirs.detach()[kept], atol=1e-6)


def test_on_a_linear_model_it_is_exact() -> None:
    found = ratios(CarliniWagner(steps=1000))
    assert found.min() >= 1 - 1e-6
    assert np.median(found) <= 1.001
    assert found.max() <= 1.02


def test_confidence_is_kept_at_every_success() -> None:
    model, x, y = (part[:40] if isinstance(part, Tensor) else part for part in fixture("std"))
    sizes = []
    for confidence in (0.0, 2.0):
        attack = CarliniWagner(steps=100, search_steps=4, lr=0.05, constant=0.1, confidence=confidence)
        target, rng = make_target(model, x, y, FREE, goal="minimal-norm")
        x_adv = attack(target, x, y, FREE, rng)
        logits = model(x_adv)
        label = logits.gather(1, y[:, None])[:, 0]
        lead = logits.scatter(1, y[:, None], -math.inf).amax(1) - label
        changed = (x_adv != x).flatten(1).any(1)
        assert changed.sum() > 35
        assert (lead[changed] > confidence - 1e-5).all()
        sizes.append(FREE.size(x, x_adv)[changed].median())
        judged = judged_sizes(attack, model, x, y, FREE)
        assert torch.equal(judged[changed], FREE.size(x, x_adv)[changed]), "whatever smaller points the target saw"
        assert judged[~changed].isinf().all()
    assert sizes[1] > 1.1 * sizes[0]


def test_runs_that_make_no_progress_end_early() -> None:
    model, x, y = (part[:20] if isinstance(part, Tensor) else part for part in fixture("std"))
    passes, sizes = [], []
    for abort_early in (False, True):
        attack = CarliniWagner(steps=200, search_steps=4, lr=0.05, constant=0.1, abort_early=abort_early)
        target, rng = make_target(model, x, y, FREE, goal="minimal-norm")
        sizes.append(FREE.size(x, attack(target, x, y, FREE, rng)))
        passes.append(target.forwards + target.backwards)
    assert passes[0].tolist() == [attack.passes(10)] * 20
    assert passes[1].float().mean() < 0.95 * passes[0].float().mean()
    assert passes[1].unique().numel() > 1  # each example by itself
    assert sizes[1].median() < 1.05 * sizes[0].median()


PUBLISHED = [("std", 0.5257), ("at", 0.7100)]


# The other one takes as long, and is compared on all digits below.
@pytest.mark.parametrize(("name", "published"), PUBLISHED[1:])
def test_on_forty_digits(name: str, published: float) -> None:
    """The published median of all lies within three standard errors, in ranks, of the median of the first forty."""
    sizes = minimal_sizes(name, "l2", CarliniWagner(steps=500), rows=slice(40)).sort().values
    assert sizes.isfinite().all()
    assert sizes[10] <= published <= sizes[29]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "published"), PUBLISHED)
def test_on_all_digits(name: str, published: float) -> None:
    sizes = minimal_sizes(name, "l2", CarliniWagner(steps=500))
    assert sizes.isfinite().all()
    assert sizes.median().item() == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 1, 5)])
def test_images_of_any_size_end_at_the_same_bits_alone_and_together(shape: tuple[int, ...]) -> None:
    """Where an image's values do not fill whole vectors, its place in the batch decides how float32's atanh rounds."""
    problem = Problem.make(5, shape, 9)
    model, x, y, threat = problem.model, problem.x, problem.y, Threat.parse("l2")

    def points(of: Tensor) -> Tensor:
        target, rng = make_target(model, x[of], y[of], threat, ids=of, goal="minimal-norm")
        return CarliniWagner(steps=30, search_steps=2, lr=0.05)(target, x[of], y[of], threat, rng)

    together = points(torch.arange(9))
    assert torch.equal(together, torch.cat([points(torch.tensor([i])) for i in range(9)]))
