"""How a defense is asked: in micro-batches, over several draws, through a surrogate, and for the least of several losses."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lite import AccessError, PluginError, Target, losses, randn_like, randn_per_pass
from robustbench_lite.testing import CoinFlip, Linear, make_target


@pytest.mark.parametrize("micro_batch", [1, 7, 64, 256])
def test_micro_batches_change_no_result(small_cnn: nn.Module, images: Tensor, micro_batch: int) -> None:
    y = small_cnn(images).argmax(1)
    whole, _ = make_target(small_cnn, images, y, "linf:0.1", micro_batch=300)
    parts, _ = make_target(small_cnn, images, y, "linf:0.1", micro_batch=micro_batch)
    for one, other in zip(
        whole.loss_and_grad(images, losses.margin, y), parts.loss_and_grad(images, losses.margin, y), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-6)
    assert torch.equal(whole.labels(images), parts.labels(images))


class Hungry(nn.Module):
    """Runs out of memory above ``limit`` images."""

    def __init__(self, base: nn.Module, limit: int) -> None:
        super().__init__()
        self.base, self.limit, self.sizes = base, limit, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        out: Tensor = self.base(x)
        return out


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(small_cnn: nn.Module, images: Tensor) -> None:
    y = small_cnn(images).argmax(1)
    hungry = Hungry(small_cnn, 40)
    target, _ = make_target(hungry, images, y, "linf:0.1")
    plain, _ = make_target(small_cnn, images, y, "linf:0.1")
    _, value, grad = target.loss_and_grad(images, losses.cross_entropy, y)
    _, expected, expected_grad = plain.loss_and_grad(images, losses.cross_entropy, y)
    assert torch.allclose(value, expected, atol=1e-6)
    assert torch.allclose(grad, expected_grad, atol=1e-6)
    assert target.forwards.tolist() == [1] * 300
    hungry.sizes.clear()
    target.logits(images)
    assert max(hungry.sizes) <= 40  # what fits is remembered


def test_out_of_memory_with_one_image_is_raised(small_cnn: nn.Module, images: Tensor) -> None:
    hungry = Hungry(small_cnn, 1)
    target, _ = make_target(hungry, images, small_cnn(images).argmax(1), "linf:0.1")
    hungry.limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        target.logits(images)


def test_other_errors_of_a_defense_come_through(images: Tensor) -> None:
    class Raising(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
            return x.flatten(1)[:, :3]

    target, _ = make_target(Raising(), images, torch.zeros(300, dtype=torch.int64), "linf:0.1")
    with pytest.raises(RuntimeError, match="mat1"):
        target.logits(images)


def test_a_wrong_number_of_logits_is_a_readable_error(images: Tensor) -> None:
    class Growing(nn.Module):
        columns = 3

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, : self.columns]

    model = Growing()
    target, _ = make_target(model, images, torch.zeros(300, dtype=torch.int64), "linf:0.1")
    model.columns = 4
    with pytest.raises(PluginError, match=r"returned \(300, 4\)"):
        target.logits(images)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(4).round_().div_(4).flatten(1)[:, :3]


def test_a_defense_that_changes_its_input_in_place_is_refused(images: Tensor) -> None:
    """Its input is the judge's own image: points would count as outside the threat model, and so as robust."""
    y = torch.zeros(300, dtype=torch.int64)
    for micro_batch in (None, 7):
        target, _ = make_target(InPlace(), images.clone(), y, "linf:0.1", micro_batch=micro_batch)
        for ask in (target.logits, target.labels, target):
            with pytest.raises(PluginError, match="changes its input in place") as refused:
                ask(images.clone())
            assert "copy" in str(refused.value.hint)


class Rounded(nn.Module):
    """Sees 17 levels of grey, and has the network itself as its surrogate."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x.mul(16).round().div(16))
        return out

    def surrogate(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.dlr])
@pytest.mark.parametrize(
    ("micro_batch", "stochastic", "eot", "differentiable"),
    [(None, False, 1, True), (4, False, 1, True), (None, True, 1, True), (None, True, 3, True), (None, False, 1, False)],
)
def test_a_loss_whose_derivative_is_known_gives_the_gradient_of_one_whose_is_not(
    loss: Callable[..., Tensor],
    micro_batch: int | None,
    stochastic: bool,
    eot: int,
    differentiable: bool,
    small_cnn: nn.Module,
    images: Tensor,
) -> None:
    x = images[:10]
    y = small_cnn(x).argmax(1)
    model = Rounded(small_cnn) if not differentiable else CoinFlip(small_cnn, sigma=1.0) if stochastic else small_cnn
    facts = {"micro_batch": micro_batch, "stochastic": stochastic, "eot": eot, "differentiable": differentiable}
    found = make_target(model, x, y, "linf:0.1", **facts)[0].loss_and_grad(x, loss, y)  # type: ignore[arg-type]
    plain = make_target(model, x, y, "linf:0.1", **facts)[0]  # type: ignore[arg-type]
    expected = plain.loss_and_grad(x, lambda logits, y: loss(logits, y), y)
    assert expected[2].abs().max() > 1e-3
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
        assert not one.requires_grad


def test_eot_averages_scores_and_gradients_and_counts_every_draw(images: Tensor) -> None:
    model = CoinFlip(Linear.binary((1, 8, 8)), sigma=1.0)
    x, y = images[:20], torch.zeros(20, dtype=torch.int64)
    target, _ = make_target(model, x, y, "linf:0.1", stochastic=True, eot=16)
    target.loss_and_grad(x, losses.cross_entropy, y)
    assert target.forwards.tolist() == [16] * 20
    assert target.backwards.tolist() == [16] * 20
    assert target.queries.tolist() == [1] * 20


def test_the_variance_of_an_eot_gradient_falls_as_one_over_its_draws(images: Tensor) -> None:
    model = CoinFlip(Linear.binary((1, 8, 8)), sigma=2.0)
    x, y = images[:200], torch.zeros(200, dtype=torch.int64)

    def spread(eot: int) -> float:
        target, _ = make_target(model, x, y, "linf:0.1", stochastic=True, eot=eot)
        values = torch.stack([target.loss_and_grad(x, losses.cross_entropy, y)[2].flatten(1) for _ in range(20)])
        return values.var(0).mean().item()

    assert spread(1) / spread(16) == pytest.approx(16, rel=0.25)


def test_draws_are_new_each_time_and_the_same_in_another_run(images: Tensor) -> None:
    model = CoinFlip(Linear.binary((1, 8, 8)))
    x, y = images[:10], torch.zeros(10, dtype=torch.int64)
    one, _ = make_target(model, x, y, "linf:0.1", stochastic=True)
    again, _ = make_target(model, x, y, "linf:0.1", stochastic=True)
    first, second = one.logits(x), one.logits(x)
    assert not torch.equal(first, second)
    assert torch.equal(first, again.logits(x))
    assert torch.equal(second, again.logits(x))


class Noisy(nn.Module):
    """Noise of its own for each image, and noise on the scores' scale that the images of a pass share."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, x: Tensor) -> Tensor:
        numbers, which = randn_per_pass(self.scale)
        logits: Tensor = self.base(x + 0.1 * randn_like(x))
        return logits * (self.scale + 0.1 * (numbers if which is None else numbers[which]))


@pytest.mark.parametrize("limit", [1000, 60, 13])
@pytest.mark.parametrize("micro_batch", [1, 7, 64, 300])
def test_passes_side_by_side_are_those_one_after_the_other(
    small_cnn: nn.Module, images: Tensor, micro_batch: int, limit: int
) -> None:
    x, y = images[:20], torch.arange(20) % 10
    found = []
    for size, model in ((20, Hungry(Noisy(small_cnn), 20)), (micro_batch, Hungry(Noisy(small_cnn), limit))):
        target, _ = make_target(model, x, y, "linf:0.1", stochastic=True, eot=5, micro_batch=size)
        logits = target.logits(x)
        found.append((logits, *target.loss_and_grad(x, losses.cross_entropy, y), *target.loss_and_grad(x, losses.margin, y)))
        found[-1] += target.least_loss_and_grad(x, each_class, steepness, y)[:3]
        assert target.forwards.tolist() == [20] * 20
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    widest = {1: 1, 7: 7, 64: 60, 300: 100}[micro_batch]  # 300: five passes over twenty images
    assert max(model.sizes) == (widest if limit >= 20 else min(widest, 20))  # the first pass is made alone
    assert max(model.sizes[-5:]) <= limit  # what fits is remembered


class OnePerBatch(nn.Module):
    """One number for the whole batch, from a generator that everybody shares."""

    def __init__(self, base: nn.Module, draw: Callable[[], float]) -> None:
        super().__init__()
        self.base, self.draw, self.drawn = base, draw, list[float]()

    def forward(self, x: Tensor) -> Tensor:
        self.drawn.append(self.draw())
        logits: Tensor = self.base(x + 0.1 * randn_like(x)) * self.drawn[-1]
        return logits


@pytest.mark.parametrize(
    "draw", [lambda: float(torch.rand(())), random.random, np.random.random], ids=["torch", "python", "numpy"]
)
def test_each_pass_keeps_a_draw_of_its_own_where_the_batch_draws_one(
    small_cnn: nn.Module, images: Tensor, draw: Callable[[], float]
) -> None:
    x, y = images[:20], torch.arange(20) % 10
    model = OnePerBatch(small_cnn, draw)
    target, _ = make_target(model, x, y, "linf:0.1", stochastic=True, eot=5, micro_batch=300)
    model.drawn.clear()
    for _ in range(3):
        target.loss_and_grad(x, losses.cross_entropy, y)
    assert len(set(model.drawn)) == 15


def test_draws_do_not_depend_on_who_else_is_in_the_batch(images: Tensor) -> None:
    model = CoinFlip(Linear.binary((1, 8, 8)))
    x, y = images[:10], torch.zeros(10, dtype=torch.int64)
    whole, _ = make_target(model, x, y, "linf:0.1", stochastic=True, eot=4)
    parts, _ = make_target(model, x, y, "linf:0.1", stochastic=True, eot=4, micro_batch=3)
    expected = whole.logits(x)
    order = torch.tensor([9, 2, 4])
    assert torch.allclose(parts.logits(x[order], index=order), expected[order], atol=1e-6)
    again = torch.tensor([2, 2])  # the second and third draw of example 2, not the same draw twice
    both = parts.logits(x[again], index=again)
    assert not torch.equal(both[0], both[1])
    assert torch.allclose(both[0], whole.logits(x)[2], atol=1e-6)


def test_a_stochastic_defense_leaves_the_global_generator_alone(images: Tensor) -> None:
    class Global(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] + torch.randn(len(x), 3)

    x, y = images[:10], torch.zeros(10, dtype=torch.int64)
    target, _ = make_target(Global(), x, y, "linf:0.1", stochastic=True)
    state = torch.random.get_rng_state()
    first = target.logits(x)
    assert torch.equal(torch.random.get_rng_state(), state)
    again, _ = make_target(Global(), x, y, "linf:0.1", stochastic=True)
    assert torch.equal(first, again.logits(x))


def test_a_surrogate_gives_the_gradient_and_the_defense_itself_the_logits(images: Tensor) -> None:
    base = Linear.binary((1, 8, 8))
    model = Rounded(base)
    x, y = images[:10], torch.zeros(10, dtype=torch.int64)
    target, _ = make_target(model, x, y, "linf:0.1", differentiable=False)
    logits, _, grad = target.loss_and_grad(x, losses.margin, y)
    assert torch.allclose(logits, model(x), atol=1e-6)
    assert torch.allclose(grad.flatten(1)[0], base.weight[1] - base.weight[0], atol=1e-6)
    assert target.forwards.tolist() == [2] * 10
    assert target.backwards.tolist() == [1] * 10


def test_a_surrogate_changes_no_bit_of_the_logits() -> None:
    """Where votes tie, the rounding of a sum would let a wrong class lead."""

    class Votes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.voters = torch.randn(6, 3, 64, generator=generator)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(self.each(x).argmax(1), 3).float().mean(2 - 1)

        def each(self, x: Tensor) -> Tensor:
            return torch.einsum("vcd,nd->ncv", self.voters, x.flatten(1))

        def surrogate(self, x: Tensor) -> Tensor:
            return 100 * self.each(x).mean(2)

    x = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    model = Votes()
    exact = model(x)
    y = exact.argmax(1)
    assert (exact.topk(2).values.diff() == 0).sum() > 20, "ties"
    target, _ = make_target(model, x, y, "linf:0.1", differentiable=False)
    logits, _, grad = target.loss_and_grad(x, losses.margin, y)
    assert torch.equal(logits, exact)
    assert torch.equal(target(x), exact)
    assert (grad != 0).flatten(1).any(1).all()


def test_a_defense_that_detaches_gives_a_zero_gradient(images: Tensor) -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :3]

    x, y = images[:10], torch.zeros(10, dtype=torch.int64)
    target, _ = make_target(Detached(), x, y, "linf:0.1")
    _, _, grad = target.loss_and_grad(x, losses.margin, y)
    assert torch.equal(grad, torch.zeros_like(x))


def each_class(logits: Tensor, y: Tensor) -> Tensor:
    """(n, C - 1): by how much each wrong class leads the label."""
    order = torch.arange(logits.shape[1] - 1).expand(len(y), -1)
    return logits.gather(1, order + (order >= y[:, None])) - logits.gather(1, y[:, None])


def steepness(loss: Tensor, grad: Tensor) -> Tensor:
    return loss.abs() / grad.flatten(1).norm(dim=1)


@pytest.mark.parametrize("micro_batch", [None, 1, 4])
def test_the_least_of_several_losses_is_what_one_call_for_each_would_find(
    labelled: tuple[nn.Module, Tensor, Tensor], micro_batch: int | None
) -> None:
    model, x, y = labelled
    target, _ = make_target(model, x, y, "linf:0.1", micro_batch=micro_batch)
    chosen = torch.tensor([4, 1, 2, 1, 0])
    logits, loss, grad = target.least_loss_and_grad(x[chosen], each_class, steepness, y[chosen], index=chosen)
    classes = logits.shape[1]
    assert target.forwards.tolist() == target.queries.tolist() == [1, 2, 1, 0, 1, 0]
    assert target.backwards.tolist() == [(classes - 1) * times for times in (1, 2, 1, 0, 1, 0)]
    columns = [
        target.loss_and_grad(x[chosen], lambda z, y, j=j: each_class(z, y)[:, j], y[chosen], index=chosen)
        for j in range(classes - 1)
    ]
    least = torch.stack([steepness(c[1], c[2]) for c in columns]).argmin(0)
    assert least.unique().numel() > 1
    row = torch.arange(len(chosen))
    assert torch.allclose(logits, model(x[chosen]), atol=1e-6)
    assert torch.allclose(loss, torch.stack([c[1] for c in columns])[least, row], atol=1e-6)
    assert torch.allclose(grad, torch.stack([c[2] for c in columns])[least, row], atol=1e-6)


def test_the_least_loss_of_a_stochastic_defense_is_of_means_over_draws(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = labelled

    def fresh() -> Target:  # the same draws each time
        return make_target(CoinFlip(model, sigma=0.3), x, y, "linf:0.1", stochastic=True, eot=3)[0]

    target = fresh()
    logits, loss, grad = target.least_loss_and_grad(x, each_class, steepness, y)
    classes = logits.shape[1]
    assert target.forwards.tolist() == [3] * len(x)
    assert target.backwards.tolist() == [3 * (classes - 1)] * len(x)
    columns = [fresh().loss_and_grad(x, lambda z, y, j=j: each_class(z, y)[:, j], y) for j in range(classes - 1)]
    least = torch.stack([steepness(c[1], c[2]) for c in columns]).argmin(0)
    row = torch.arange(len(x))
    assert torch.allclose(logits, columns[0][0], atol=1e-6)
    assert torch.allclose(loss, torch.stack([c[1] for c in columns])[least, row], atol=1e-6)
    assert torch.allclose(grad, torch.stack([c[2] for c in columns])[least, row], atol=1e-6)


def test_where_no_rank_is_finite_the_least_loss_and_its_gradient_are_zero(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = labelled
    target, _ = make_target(model, x, y, "linf:0.1")
    for rank in (torch.inf, torch.nan):
        _, loss, grad = target.least_loss_and_grad(x, each_class, lambda loss, _, rank=rank: torch.full_like(loss, rank), y)
        assert (loss == 0).all()
        assert (grad == 0).all()


def test_the_least_of_several_losses_without_a_gradient_has_gradient_zero() -> None:
    model = Linear.binary((1, 2, 2))
    x, y = torch.full((3, 1, 2, 2), 0.25), torch.zeros(3, dtype=torch.int64)
    target, _ = make_target(model, x, y, "linf:0.1")
    _, _, grad = target.least_loss_and_grad(x, lambda z, y: each_class(z.detach(), y), lambda loss, _: loss, y)
    assert (grad == 0).all()
    refused, _ = make_target(model, x, y, "linf:0.1", access="scores")
    with pytest.raises(AccessError, match="gradients"):
        refused.least_loss_and_grad(x, each_class, steepness, y)
