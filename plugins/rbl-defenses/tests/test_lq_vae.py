"""LQ-VAE and BoS: their losses by hand, what fitting achieves, and what gradients see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rbl_defenses.architectures import small_cnn
from rbl_defenses.bos import BoS, from_uniform
from rbl_defenses.jpeg import JPEG
from rbl_defenses.lq_vae import LQVAE, Filter, Purified
from rbl_defenses.standard import Standard
from robustbench_lite import DatasetBundle, DatasetInfo
from robustbench_lite.data import fetch
from robustbench_lite.registry import load
from robustbench_lite.resolve import resolve_defense
from robustbench_lite.testing import Linear
from robustbench_lite.training import Context, train

INFO = DatasetInfo(name="mine", classes=("a", "b"), shape=(1, 8, 8))


def images(n: int = 20, channels: int = 1, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------------------------- LQ-VAE


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 5, 11), (1, 1, 1)])
def test_the_filter_fits_every_size_and_stays_in_the_box(shape: tuple[int, int, int]) -> None:
    info = DatasetInfo(name="mine", classes=("a", "b"), shape=shape)
    found = Filter(info, latents=4, levels=5, width=3).eval()(torch.rand(6, *shape))
    assert found.shape == (6, *shape)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("levels", [2, 3, 6])
def test_codes_are_squashed_and_rounded_to_equal_levels_with_the_gradient_of_the_squashing(levels: int) -> None:
    vae = Filter(INFO, latents=3, levels=levels, width=2)
    z = torch.linspace(-4, 4, 201).view(-1, 3).requires_grad_()
    code = vae.quantise(z, straight=True)
    assert torch.equal(code, vae.quantise(z, straight=False))
    grid = torch.linspace(-1, 1, levels)
    nearest = grid[(z.detach().tanh().flatten()[:, None] - grid).abs().argmin(1)].view_as(z)
    torch.testing.assert_close(code.detach(), nearest, atol=1e-6, rtol=0)
    (grad,) = torch.autograd.grad(code.sum(), z)
    torch.testing.assert_close(grad, 1 - z.detach().tanh() ** 2)


def test_the_encoder_is_lipschitz() -> None:
    """Every layer has spectral norm 1 at most; those of convolutions are of their matrices, as is usual."""
    torch.manual_seed(0)
    vae = Filter(INFO, latents=4, levels=6, width=8)
    for _ in range(60):
        vae.train()(images())
    for layer in (vae.encoder[0], vae.encoder[2], vae.mean, vae.log_variance):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_the_loss_is_the_squared_error_plus_beta_times_the_divergence_from_a_normal_distribution() -> None:
    torch.manual_seed(0)
    vae, x = Filter(INFO, latents=4, levels=6, width=4).eval(), images()
    hidden = vae.encoder(x)
    posterior = torch.distributions.Normal(vae.mean(hidden), (vae.log_variance(hidden) / 2).exp())
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    losses = []
    for beta in (0.0, 1.0):
        torch.manual_seed(1)
        losses.append(vae.loss(x, beta))
    torch.testing.assert_close(losses[1] - losses[0], divergence, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        vae.log_variance.bias.fill_(-30.0)  # no noise is left
    torch.testing.assert_close(vae.loss(x, 0.0), (vae(x) - x).square().sum((1, 2, 3)).mean(), rtol=1e-3, atol=1e-3)


def test_gradients_pass_through_the_rounding_and_the_surrogate_of_the_base() -> None:
    torch.manual_seed(0)
    base = JPEG(quality=40)(INFO, small_cnn(INFO, width=4).eval())
    module = LQVAE(width=4).architecture(INFO, base).eval().requires_grad_(False)
    x = images().requires_grad_()
    assert torch.equal(module(x), module.surrogate(x))  # type: ignore[operator]
    (none,) = torch.autograd.grad(module(x).sum(), x, allow_unused=True)
    assert none is None or none.abs().max() == 0
    (grad,) = torch.autograd.grad(module.surrogate(x)[:, 0].sum(), x)  # type: ignore[operator]
    assert (grad.flatten(1).abs().sum(1) > 0).all()


def test_a_fitted_filter_reconstructs_unseen_digits_and_keeps_most_answers(
    trained_once: Callable[[str], Path], digits: DatasetBundle
) -> None:
    trained_once("lq-vae[steps=500,width=16]")
    module = resolve_defense(load(), "lq-vae[steps=500,width=16]", digits.info).build()
    assert isinstance(module, Purified)
    x, y = fetch(digits.test, range(200))
    with torch.no_grad():
        seen = module.filter(x)
        variance = (x - x.mean(0)).square().mean()
        assert (seen - x).square().mean() < 0.5 * variance
        assert (module(x).argmax(1) == y).float().mean() > 0.6
        assert torch.equal(module(x), module.base(seen))


# ---------------------------------------------------------------------------------------------------------------------- BoS


def context(defense: BoS, epoch: float = 1e9) -> Context:
    return Context(epoch, defense.recipe(INFO), INFO)


def binary() -> Linear:
    return Linear.binary((1, 8, 8))


def test_divergence_from_the_uniform_distribution() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, -1.0]])
    p = logits.softmax(1)
    expected = (torch.full_like(p, 1 / 3) * ((1 / 3) / p).log()).sum(1)
    torch.testing.assert_close(from_uniform(logits), expected)
    assert from_uniform(logits)[0] == pytest.approx(0, abs=1e-6)


def test_samples_descend_to_the_level_and_leave_the_model_as_it_is() -> None:
    model, x = binary(), 0.4 + 0.2 * images()
    model.train()
    for level in (0.6, 0.9):
        torch.manual_seed(0)
        start = BoS(steps=0, noise=0.1).samples(model, x)
        torch.manual_seed(0)
        found = BoS(steps=400, step=1e-3, noise=0.1, level=level, repulsion=0.0).samples(model, x)
        confidence = model(found).softmax(1).amax(1)
        before = model(start).softmax(1).amax(1)
        assert (confidence - level).abs().max() < 0.02
        assert (confidence - level).abs().mean() < 0.2 * (before - level).abs().mean()
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_repulsion_takes_samples_away_from_their_image() -> None:
    model, x = binary(), 0.4 + 0.2 * images()
    distances = []
    for repulsion in (0.0, 1.0):
        torch.manual_seed(0)
        distances.append((BoS(repulsion=repulsion, noise=0.1).samples(model, x) - x).flatten(1).norm(dim=1))
    assert (distances[1] > distances[0]).all()


def test_the_loss_adds_the_divergence_at_the_samples_after_the_warm_up() -> None:
    defense, model, x = BoS(weight=0.7, epochs=10, warmup=0.2), binary(), images()
    y = torch.arange(20) % 2
    clean = Standard().loss(model, x, y, context(defense))
    assert torch.equal(defense.loss(model, x, y, context(defense, epoch=1.9)), clean)
    assert torch.equal(BoS(weight=0.0).loss(model, x, y, context(defense)), clean)
    torch.manual_seed(3)
    found = defense.loss(model, x, y, context(defense, epoch=2.0))
    torch.manual_seed(3)
    torch.testing.assert_close(found, clean + 0.7 * from_uniform(model(defense.samples(model, x))).mean())


def test_training_lowers_the_confidence_outside_of_the_data_and_not_on_it(digits: DatasetBundle) -> None:
    """Compared with standard training: mean confidence on noise and on inverted images."""
    x, _ = fetch(digits.test, range(200))
    outside = torch.cat([1 - x, torch.rand(x.shape, generator=torch.Generator().manual_seed(0))])
    confident = {}
    for name, defense in {"standard": Standard(width=8, epochs=10), "bos": BoS(width=8, epochs=10, warmup=0.2)}.items():
        model = train(defense, digits, seed=0).module
        with torch.no_grad():
            confident[name] = [model(z).softmax(1).amax(1).mean().item() for z in (x, outside)]
    assert confident["bos"][0] > 0.8
    assert confident["bos"][1] < confident["standard"][1] - 0.15
