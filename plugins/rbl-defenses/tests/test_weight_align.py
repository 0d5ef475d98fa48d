"""WeightAlign: what a filter becomes, where its gradient goes, and that it can do what batch norm does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import rbl_defenses
from rbl_defenses.standard import Standard
from rbl_defenses.weight_align import Aligned, WeightAlign
from robustbench_lite import DatasetBundle

SHIPPED = Path(rbl_defenses.__file__).parent / "weights" / "digits"


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def test_filters_have_mean_0_and_the_variance_of_he_initialisation_times_their_gain() -> None:
    torch.manual_seed(0)
    aligned = Aligned(5)
    with torch.no_grad():
        aligned.gain.copy_(torch.tensor([1.0, 2.0, 0.5, -1.0, 0.0]))
    found = aligned(3 * torch.randn(5, 4, 3, 3) + 0.7).flatten(1)
    torch.testing.assert_close(found.mean(1), torch.zeros(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.var(1, unbiased=False), 2 / 36 * aligned.gain.detach() ** 2, rtol=1e-4, atol=1e-7)


def test_neither_the_mean_nor_the_scale_of_a_filter_matters_nor_gets_a_gradient() -> None:
    torch.manual_seed(0)
    aligned, w = Aligned(5), torch.randn(5, 4, 3, 3, requires_grad=True)
    torch.testing.assert_close(aligned(w), aligned(7 * w - 2), rtol=1e-4, atol=1e-6)
    target = torch.randn(5, 4, 3, 3)
    slope, gain = torch.autograd.grad((aligned(w) * target).sum(), (w, aligned.gain))
    along = (slope * (w - w.mean((1, 2, 3), keepdim=True))).sum((1, 2, 3))
    torch.testing.assert_close(slope.sum((1, 2, 3)), torch.zeros(5), rtol=0, atol=1e-5)
    assert along.abs().max() < 1e-4 * slope.abs().sum()
    assert (slope.flatten(1).norm(dim=1) > 0).all()
    assert (gain != 0).all()


def test_it_can_answer_what_a_network_with_batch_norm_answers(digits: DatasetBundle) -> None:
    """For filters of mean 0: their length, and the statistics of batch norm, go into gains and biases."""
    plain = Standard()(digits.info, SHIPPED / "standard.safetensors")
    aligned = WeightAlign().around(Standard()).architecture(digits.info).eval()
    assert not [module for module in aligned.modules() if isinstance(module, nn.BatchNorm2d)]
    norms = [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]
    linear = [[m for m in model.modules() if isinstance(m, nn.Linear)] for model in (plain, aligned)]
    with torch.no_grad():
        for conv, norm, other in zip(convolutions(plain), norms, convolutions(aligned), strict=True):
            conv.weight.sub_(conv.weight.mean((1, 2, 3), keepdim=True))
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert other.bias is not None
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            parts = other.parametrizations.weight  # type: ignore[union-attr]
            parts.original.copy_(100 * conv.weight)  # so that EPS is nothing beside it
            parts[0].gain.copy_(scale * conv.weight.flatten(1).norm(dim=1) / 2**0.5)
            other.bias.copy_(norm.bias - scale * norm.running_mean)
        for one, other_layer in zip(*linear, strict=True):
            other_layer.load_state_dict(one.state_dict())
        x = torch.rand(8, 1, 8, 8)
        torch.testing.assert_close(aligned(x), plain(x), rtol=1e-3, atol=1e-3)


def test_batch_norm_may_stay(digits: DatasetBundle) -> None:
    kept = WeightAlign(batch_norm=True).around(Standard()).architecture(digits.info)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in kept.modules()) == 3
    assert all(conv.bias is None for conv in convolutions(kept))
    torch.testing.assert_close(
        convolutions(kept)[1].weight.flatten(1).norm(dim=1), torch.full((32,), 2**0.5), rtol=1e-3, atol=0
    )


def test_in_training_an_image_does_not_feel_the_others_of_its_batch(digits: DatasetBundle) -> None:
    model = WeightAlign().around(Standard()).architecture(digits.info).train()
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)
