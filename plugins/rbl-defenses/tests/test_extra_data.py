"""More data: where it comes from, its share of each batch, and what generated images are like."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probes import CIFAR, Subset
from torch import Tensor, nn

from rbl_defenses.extra_data import ExtraData
from rbl_defenses.generated_data import GeneratedData, gaussian
from rbl_defenses.standard import Standard
from robustbench_lite import DatasetBundle, UsageError
from robustbench_lite.data import fetch
from robustbench_lite.ingredients import find_ingredients
from robustbench_lite.registry import load
from robustbench_lite.resolve import resolve
from robustbench_lite.training import Context, Recipe, Run, train


@dataclass(frozen=True, kw_only=True)
class Watching(Standard):
    """Keeps what its batches are made of."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
        context.log(added=(context.index < 0).float().mean())
        return super().loss(model, x, y, context)


def test_a_share_of_each_batch_is_generated(digits: DatasetBundle) -> None:
    few_images = replace(digits, train=Subset(digits, 300))
    for share, expected in ((None, 0.5), (0.25, 0.25)):
        defense = GeneratedData(share=share, count=50).around(Watching(width=2, epochs=1, batch_size=32))
        assert train(defense, few_images).history[0]["added"] == expected
    assert GeneratedData().around(Watching()).recipe(CIFAR).extra_share == 0.7


def test_generated_images_are_of_their_class_and_of_no_others(digits: DatasetBundle) -> None:
    """Each is nearer to the mean of its class than to most others, and they spread as the class does."""
    seen = fetch(digits.test, range(500))
    now = Context(0.0, Recipe(epochs=1), digits.info, run=Run(examples=lambda n: seen))
    torch.manual_seed(0)
    drawn = GeneratedData(count=605).around(Standard()).extra_data(now)
    assert drawn is not None
    x, y = fetch(drawn, range(len(drawn)))
    assert (x.shape, x.dtype) == ((605, 1, 8, 8), torch.float32)
    assert 0 <= x.min() <= x.max() <= 1
    assert sorted(torch.bincount(y).tolist()) == [60] * 5 + [61] * 5
    means = torch.stack([seen[0][seen[1] == c].mean(0) for c in range(10)])
    nearest = torch.cdist(x.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == y).float().mean() > 0.8
    spreads = [a[b == 3].flatten(1).std(0).mean() for a, b in (seen, (x, y))]
    assert 0.7 < spreads[1] / spreads[0] < 1.1
    torch.manual_seed(1)
    other = GeneratedData(count=605).around(Standard()).extra_data(now)
    assert other is not None
    assert not torch.equal(fetch(other, [0])[0], x[:1])


def test_gaussians_keep_mean_and_covariance_of_what_they_are_fitted_to() -> None:
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=g) * 0.05
    images = (0.5 + torch.randn(3000, 4, generator=g) @ mixing).view(3000, 1, 2, 2)
    torch.manual_seed(0)
    whole, one = gaussian(images, 20_000, 1.0).flatten(1), gaussian(images, 20_000, 0.01).flatten(1)
    torch.testing.assert_close(whole.mean(0), images.flatten(1).mean(0), atol=0.003, rtol=0)
    torch.testing.assert_close(whole.T.cov(), images.flatten(1).T.cov(), atol=3e-4, rtol=0)
    values = torch.linalg.eigvalsh(one.T.cov())
    assert values[-1] > 100 * values[-2].abs()  # one component is left
    assert torch.equal(gaussian(images[:1], 3, 0.9), images[:1].expand(3, 1, 2, 2))


def test_extra_data_come_from_the_data_set_that_is_named(digits: DatasetBundle, tmp_path: Path) -> None:
    images = np.full((40, 1, 8, 8), 0.25, np.float32)
    np.savez(tmp_path / "more.npz", x_test=images, y_test=np.arange(40) % 10, x_train=images, y_train=np.arange(40) % 10)
    np.savez(tmp_path / "other.npz", x_test=images[..., :4], y_test=np.arange(40) % 10)
    selector = f"extra-data[method=standard,share=0.5,extra=arrays[path={tmp_path / 'more.npz'}]]"
    registry = load()
    found = resolve(registry, "defense", selector)
    parts = find_ingredients(registry, found, digits.info, tmp_path)
    assert parts.extra is not None
    assert parts.to_json()["extra"]["fingerprint"] == parts.extra.bundle.fingerprint

    seen: list[Tensor] = []

    @dataclass(frozen=True, kw_only=True)
    class Looking(Standard):
        def loss(self, model: nn.Module, x: Tensor, y: Tensor, context: Context) -> Tensor:
            seen.append(x[context.index < 0])
            return super().loss(model, x, y, context)

    defense = ExtraData(share=0.5, extra="x").around(Looking(width=2, epochs=1, batch_size=32))
    train(defense, replace(digits, train=Subset(digits, 100)), extra=parts.extra.bundle.train)
    assert {len(x) for x in seen} == {16}
    assert all(set(x.unique().tolist()) <= {0.0, 0.25} for x in seen)  # shifted by a pixel
    wrong = resolve(registry, "defense", selector.replace("more", "other"))
    with pytest.raises(UsageError, match=r"images of 1x8x4 in 10 classes, digits of 1x8x8"):
        find_ingredients(registry, wrong, digits.info, tmp_path)


def test_a_share_of_nothing_trains_the_weights_of_the_method_inside(digits: DatasetBundle) -> None:
    few_images, inside = replace(digits, train=Subset(digits, 100)), Standard(width=2, epochs=1, batch_size=32)
    defense = ExtraData(share=0.001, extra="x").around(inside)
    found, plain = train(defense, few_images, extra=Subset(digits, 5)).module, train(inside, few_images).module
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), plain.parameters(), strict=True))


def test_extra_data_without_a_data_set_says_how_to_name_one(digits: DatasetBundle) -> None:
    with pytest.raises(UsageError, match="needs the data set") as caught:
        train(ExtraData().around(Standard(width=2, epochs=1)), digits)
    assert "extra=" in (caught.value.hint or "")


def test_what_else_was_trained_on_is_declared() -> None:
    specs: dict[str, Any] = {entry.spec.name: entry.spec for entry in load().entries("defense")}
    assert specs["generated-data"].extra_data.startswith("generated")
    assert specs["extra-data"].extra_data
    assert not specs["score"].extra_data
