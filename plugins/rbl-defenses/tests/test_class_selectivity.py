"""Class selectivity: the index against a count by hand, whose activations it is of, and which way training moves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rbl_defenses
from rbl_defenses.class_selectivity import ClassSelectivity, activations, mean_selectivity, selectivity
from rbl_defenses.resnets import ResNet
from rbl_defenses.standard import Standard
from robustbench_lite import DatasetBundle
from robustbench_lite.data import fetch
from robustbench_lite.training import Context, keeping_buffers, train

SHIPPED = Path(rbl_defenses.__file__).parent / "weights" / "digits"


def test_the_index_is_that_of_means_over_classes() -> None:
    g = torch.Generator().manual_seed(0)
    activity, y = torch.rand(40, 6, generator=g), torch.randint(0, 5, (40,), generator=g) + 2  # classes 0 and 1 are not there
    expected = []
    for unit in activity.T:
        means = [float(unit[y == label].mean()) for label in range(2, 7)]
        most = means.pop(means.index(max(means)))
        rest = sum(means) / 4
        expected.append((most - rest) / (most + rest))
    torch.testing.assert_close(selectivity(activity, y), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_a_unit_for_one_class_has_1_and_one_for_all_or_none_has_0() -> None:
    y = torch.arange(30) % 3
    activity = torch.stack([(y == 1).float(), torch.full((30,), 0.7), torch.zeros(30)], 1)
    torch.testing.assert_close(selectivity(activity, y), torch.tensor([1.0, 0.0, 0.0]), rtol=0, atol=1e-5)
    assert torch.equal(selectivity(torch.rand(8, 3), torch.full((8,), 2)), torch.zeros(3))


def test_layers_count_alike_whatever_their_size() -> None:
    y = torch.arange(20) % 2
    selective = (y == 1).float()
    wide, narrow = selective[:, None].expand(20, 7), torch.ones(20, 2, 3, 3)
    assert mean_selectivity([wide, narrow], y).item() == pytest.approx(0.5, abs=1e-5)


def test_the_loss_rewards_it_and_its_gradient_ends_before_the_last_layer(
    small: nn.Module, batch: tuple[Tensor, Tensor], context_of: Callable[..., Context]
) -> None:
    x, y = batch
    defense, parameters = ClassSelectivity(alpha=-0.7), dict(small.named_parameters())
    with keeping_buffers(small):
        found = defense.loss(small, x, y, context_of(defense, small))
        plain = Standard().loss(small, x, y, context_of(Standard(), small))
    with activations(small) as layers:
        small(x)
    assert [tuple(layer.shape[1:]) for layer in layers] == [(3, 8, 8), (6, 4, 4), (6, 4, 4), (64,)]
    index = mean_selectivity(layers, y)
    torch.testing.assert_close(found, plain + 0.7 * index)
    slopes = torch.autograd.grad(index, list(parameters.values()), allow_unused=True)
    reached = {name for name, slope in zip(parameters, slopes, strict=True) if slope is not None and slope.any()}
    assert reached == {name for name in parameters if not name.startswith("3.")}
    assert not any(module._forward_hooks for module in small.modules())


@pytest.mark.parametrize(("preact", "count"), [(False, 5), (True, 5)])
def test_activations_of_residual_networks_are_those_behind_every_relu(preact: bool, count: int, digits: DatasetBundle) -> None:
    """Of the stem, or at the end, one; in each of two blocks two, the second of which is behind the sum in the one kind."""
    torch.manual_seed(0)
    model = ResNet(replace(digits.info, name="mine"), (3, 4, 5), 1, preact=preact)
    with activations(model) as layers:
        logits = model(torch.rand(4, 1, 8, 8))
    assert len(layers) == count
    torch.testing.assert_close(model.linear(layers[-1].mean((2, 3))), logits)
    assert all(layer.min() >= 0 for layer in layers)


def test_training_moves_it_where_alpha_says(digits: DatasetBundle) -> None:
    found = [train(ClassSelectivity(alpha=a, width=4, epochs=4), digits, seed=0).metrics for a in (-1.0, 1e-9, 1.0)]
    low, plain, high = (metrics["selectivity"] for metrics in found)
    assert low < plain - 0.05 < plain + 0.05 < high
    assert min(metrics["clean"] for metrics in found) > 0.5


def test_the_shipped_weights_are_more_selective_than_those_of_standard_training(digits: DatasetBundle) -> None:
    x, y = fetch(digits.test, range(500))
    found = []
    for name, defense in (("standard", Standard()), ("class-selectivity", ClassSelectivity())):
        model = defense(digits.info, SHIPPED / f"{name}.safetensors")
        with torch.no_grad(), activations(model) as layers:
            assert F.cross_entropy(model(x), y) < 0.5
        found.append(float(mean_selectivity(layers, y)))
    assert found[1] > 1.5 * found[0]
