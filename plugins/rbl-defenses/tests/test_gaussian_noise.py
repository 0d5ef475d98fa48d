"""Gaussian noise: whose numbers, how many, and which gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rbl_defenses.gaussian_noise import GaussianNoise
from rbl_defenses.jpeg import JPEG, compress
from robustbench_lite import DatasetInfo, Randomness
from robustbench_lite.deployed import Deployed
from robustbench_lite.randomness import keyed_draws

INFO = DatasetInfo(name="mine", classes=tuple("0123456789"), shape=(1, 8, 8))


class Pixels(nn.Module):
    """The image itself as logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def draws(x: Tensor, sigma: float, *, ids: Tensor, draw: int) -> Tensor:
    """What the base sees of each image in one pass under the core."""
    module = GaussianNoise(sigma=sigma)(INFO, Pixels())
    with keyed_draws(Randomness("cell", ids), torch.full_like(ids, draw)):
        seen: Tensor = module(x)
    return seen


def test_the_noise_has_mean_zero_and_the_deviation_asked_for() -> None:
    x = torch.full((100, 1, 8, 8), 0.95)
    noise = torch.cat([draws(x, 0.25, ids=torch.arange(100), draw=k) for k in range(10)]) - 0.95
    n = noise.numel()  # 64,000: the standard error of the mean is sigma / sqrt(n), that of the variance sigma^2 sqrt(2 / n)
    assert abs(noise.mean().item()) < 5 * 0.25 / n**0.5
    assert abs(noise.var().item() / 0.0625 - 1) < 5 * (2 / n) ** 0.5
    assert abs((noise.abs() < 0.25).float().mean().item() - 0.6827) < 5 * (0.6827 * 0.3173 / n) ** 0.5
    assert (noise + 0.95).max() > 1  # it is not clipped


def test_an_image_gets_its_own_numbers_whoever_else_is_in_the_batch() -> None:
    x, ids = torch.rand(10, 1, 8, 8), torch.arange(50, 60)
    whole = draws(x, 0.1, ids=ids, draw=3)
    chosen = torch.tensor([7, 2, 5])
    assert torch.equal(draws(x[chosen], 0.1, ids=ids[chosen], draw=3), whole[chosen])
    assert torch.equal(torch.cat([draws(x[i : i + 1], 0.1, ids=ids[i : i + 1], draw=3) for i in range(10)]), whole)
    assert not torch.equal(draws(x, 0.1, ids=ids, draw=4), whole)
    assert not torch.equal(draws(x[:1], 0.1, ids=ids[1:2], draw=3), whole[:1])


def test_micro_batches_change_nothing() -> None:
    x, ids, draw = torch.rand(10, 1, 8, 8), torch.arange(10), torch.zeros(10, dtype=torch.int64)
    found = []
    for micro_batch in (1, 3, 10):
        deployed = Deployed(GaussianNoise(sigma=0.3)(INFO, Pixels()), num_classes=64, stochastic=True, micro_batch=micro_batch)
        found.append(deployed.stack(x, passes=4, key="cell", ids=ids, draw=draw))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0][:, 0], found[0][:, 1])


def test_outside_the_core_every_pass_draws_anew_from_torchs_generator() -> None:
    module, x = GaussianNoise(sigma=0.1)(INFO, Pixels()), torch.rand(2, 1, 8, 8)
    torch.manual_seed(1)
    first, second = module(x), module(x)
    torch.manual_seed(1)
    assert not torch.equal(first, second)
    assert torch.equal(module(x), first)


def test_without_noise_it_is_the_base_and_gradients_pass() -> None:
    x = torch.rand(2, 1, 8, 8).requires_grad_()
    module = GaussianNoise(sigma=0.0)(INFO, Pixels())
    assert torch.equal(module(x), x.flatten(1))
    (grad,) = torch.autograd.grad(GaussianNoise(sigma=0.5)(INFO, Pixels())(x).sum(), x)
    assert torch.equal(grad, torch.ones_like(x))


def test_the_surrogate_of_the_base_is_used_and_sees_the_same_noise() -> None:
    module = GaussianNoise(sigma=0.2)(INFO, JPEG(quality=40)(INFO, Pixels()))
    x, ids = torch.rand(3, 1, 8, 8), torch.arange(3)
    values = []
    for through in (module, module.surrogate):
        with keyed_draws(Randomness("cell", ids), torch.zeros_like(ids)):
            values.append(through(x))  # type: ignore[operator]
    assert torch.equal(*values)
    seen = draws(x, 0.2, ids=ids, draw=0).view_as(x)
    assert torch.equal(values[0], compress(seen, 40).flatten(1))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(module.surrogate(leaf).sum(), leaf)  # type: ignore[operator]
    assert torch.equal(grad, torch.ones_like(x))


def test_a_negative_deviation_is_refused() -> None:
    from robustbench_lite import InvalidParameter
    from robustbench_lite.parameters import build

    with pytest.raises(InvalidParameter, match="sigma"):
        build(GaussianNoise, {"sigma": "-0.1"}, where="gaussian-noise")
