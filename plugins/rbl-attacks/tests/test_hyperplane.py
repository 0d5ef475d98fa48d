"""The way to a hyperplane inside the box, against a closed form found by bisection and against scipy's linear programs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from rbl_attacks.hyperplane import to_hyperplane
from robustbench_lite import Threat
from robustbench_lite.testing import Linear
from robustbench_lite.testing.problems import distances

NORMS = ("linf", "l2", "l1")


def random_problem(seed: int, zeros: float, reach: float, n: int = 4, shape: tuple[int, ...] = (1, 4, 5)) -> tuple[Tensor, ...]:
    """Points with a third of their values at the box, normals with zeros, and gaps up to ``reach`` of what the box allows."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(2, n, *shape, generator=generator) * 1.5 - 0.25).clamp(0, 1)
    normal = torch.randn(n, *shape, generator=generator) * (torch.rand(n, *shape, generator=generator) >= zeros)
    gap = torch.rand(2, n, generator=generator) * 2 - 1
    return x, normal, gap * reach * normal.abs().flatten(1).sum(1) / 2


@given(norm=st.sampled_from(NORMS), seed=st.integers(0, 10_000), zeros=st.floats(0, 1), reach=st.floats(0, 2))
@settings(deadline=None, max_examples=50)
def test_is_the_shortest_way(norm: str, seed: int, zeros: float, reach: float) -> None:
    x, normal, gap = random_problem(seed, zeros, reach)
    step = to_hyperplane(x, normal, gap, norm)
    assert ((x + step >= -1e-6) & (x + step <= 1 + 1e-6)).all()
    assert (step.masked_select((normal == 0).expand_as(step)) == 0).all()
    size = Threat(norm, float("inf")).size(torch.zeros_like(step).flatten(0, 1), step.flatten(0, 1)).view(gap.shape)
    for k, i in np.ndindex(*gap.shape):
        there = normal[i].flatten() != 0
        origin, w, moved = (part.flatten()[there].double() for part in (x[k, i], normal[i], step[k, i]))
        if not len(w):
            continue
        here = gap[k, i].double()
        model = Linear(torch.stack([w, 0 * w]), torch.stack([here - w @ origin, 0 * here]))
        shortest = float(distances(model, origin[None], torch.tensor([0 if here > 0 else 1]), norm)[0])
        corner = torch.where(w * here > 0, -origin, 1 - origin)
        if np.isinf(shortest):
            assert torch.allclose(moved, corner, atol=1e-6)
        else:
            assert float(w @ moved) == pytest.approx(-float(here), rel=1e-5, abs=1e-5)
            assert float(size[k, i]) == pytest.approx(shortest, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_is_what_a_linear_program_finds(norm: str) -> None:
    x, normal, gap = random_problem(3, 0.2, 0.8, n=12)
    size = Threat(norm, float("inf")).size(x.flatten(0, 1) * 0, to_hyperplane(x, normal, gap, norm).flatten(0, 1))
    d = normal[0].numel()
    for number, (k, i) in enumerate(np.ndindex(*gap.shape)):
        w, origin = normal[i].double().flatten().numpy(), x[k, i].double().flatten().numpy()
        # delta = up - down; l1: the sum of both; linf: a bound t on both.
        bounds = [(0, 1 - v) for v in origin] + [(0, v) for v in origin]
        plane = np.concatenate([w, -w])
        if norm == "l1":
            found = linprog(np.ones(2 * d), A_eq=plane[None], b_eq=[-float(gap[k, i])], bounds=bounds)
        else:
            below = np.hstack([np.eye(2 * d), -np.ones((2 * d, 1))])
            found = linprog(
                np.r_[np.zeros(2 * d), 1],
                A_ub=below,
                b_ub=np.zeros(2 * d),
                A_eq=np.r_[plane, 0][None],
                b_eq=[-float(gap[k, i])],
                bounds=[*bounds, (0, None)],
            )
        assert found.success == (np.abs(w) @ np.where(w * float(gap[k, i]) > 0, origin, 1 - origin) >= abs(float(gap[k, i])))
        if found.success:
            assert float(size[number]) == pytest.approx(found.fun, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_the_scale_of_the_function_changes_nothing(norm: str, scale: float) -> None:
    x, normal, gap = random_problem(5, 0.3, 0.7)
    assert torch.allclose(to_hyperplane(x, normal * scale, gap * scale, norm), to_hyperplane(x, normal, gap, norm), atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_normal_nothing_moves(norm: str) -> None:
    x, normal, gap = random_problem(6, 0.0, 1.0)
    assert (to_hyperplane(x, torch.zeros_like(normal), gap, norm) == 0).all()
    assert (to_hyperplane(x, normal, torch.zeros_like(gap), norm) == 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_gap_without_end_leads_to_the_corner(norm: str) -> None:
    x, normal, gap = random_problem(7, 0.2, 1.0)
    step = to_hyperplane(x, normal, torch.full_like(gap, torch.inf), norm)
    corner = torch.where(normal > 0, 0.0, torch.where(normal < 0, 1.0, x))
    assert torch.allclose(x + step, corner.expand_as(x), atol=1e-6)
