"""The distances that attacks are measured by agree with the closed forms, one example at a time, and with search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from robustbench_lite.testing import Linear, Problem
from robustbench_lite.testing.closed_form import smallest_eps
from robustbench_lite.testing.problems import distances


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [2, 4])
def test_distances_are_the_closed_form_to_the_nearest_class(norm: str, classes: int) -> None:
    problem = Problem.make(classes, (2, 3, 3), n=6, seed=5)
    weight, bias = problem.linear.weight.detach().numpy(), problem.linear.bias.detach().numpy()
    for image, label, found in zip(problem.x, problem.y.tolist(), problem.distances(norm), strict=True):
        x = image.double().flatten().numpy()
        others = [k for k in range(classes) if k != label]
        expected = min(smallest_eps(x, weight[label] - weight[k], float(bias[label] - bias[k]), norm) for k in others)
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tiny", [0.0, 1e-40, 1e-12])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_values_of_no_or_hardly_any_weight_stay_where_they_are(norm: str, tiny: float) -> None:
    """Classes 0 and 1 have a third of their weights in common, or nearly so."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2, 12, generator=generator)
    weight[:, ::3] = torch.tensor([[tiny], [0.0]])
    x = (torch.rand(8, 1, 3, 4, generator=generator) * 1.5 - 0.25).clamp(0, 1)
    model = Linear(weight, -weight.sum(1) / 2)
    y = model(x).argmax(1)
    w, b = (weight[0] - weight[1]).double().numpy(), float(model.bias.detach().double().diff())
    for image, label, found in zip(x, y.tolist(), distances(model, x, y, norm), strict=True):
        sign = 1 - 2 * label
        expected = smallest_eps(image.double().flatten().numpy(), sign * w, -sign * b, norm)
        assert found == pytest.approx(expected, rel=1e-6)


def test_l0_distance_is_the_least_number_of_pixels_by_trying_all() -> None:
    problem = Problem.make(2, (2, 2, 3), n=12, seed=1)
    model, x, y = problem.linear, problem.x.double(), problem.y
    for i, found in enumerate(problem.distances("l0")):
        w = (model.weight[y[i]] - model.weight[1 - y[i]]).view(2, 2, 3)
        worst = torch.where(w > 0, 0.0, 1.0).double()
        fewest = np.inf
        for count in range(1, 7):
            for pixels in itertools.combinations(range(6), count):
                mask = torch.zeros(6, dtype=torch.bool)
                mask[list(pixels)] = True
                point = torch.where(mask.view(2, 3), worst, x[i])
                if model(point[None]).argmax(1) != y[i]:
                    fewest = min(fewest, count)
        assert found == fewest


def test_images_that_nothing_can_change_are_infinitely_far() -> None:
    problem = Problem.make(2, (1, 2, 2), n=4)
    with torch.no_grad():
        problem.linear.bias[0] += 100
    zeros = torch.zeros_like(problem.y)
    assert np.isinf(distances(problem.linear, problem.x, zeros, "l2")).all()


def test_most_images_can_be_beaten_at_the_generous_radius() -> None:
    problem = Problem.make(3)
    for norm in ("linf", "l2", "l1", "l0"):
        assert (problem.distances(norm) <= problem.threat(norm).eps).mean() > 0.8
    assert str(problem.threat("union")).startswith("union:linf:")
    assert str(problem.threat("unrestricted")) == "unrestricted"
