"""AR-AT: two branches of batch norm, an alignment in one direction, and what is deployed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rbl_defenses.ar_at import ARAT, aligned, asymmetric_distance, features
from rbl_defenses.resnets import ResNet
from rbl_defenses.split_norm import SplitNorm, clean_branch, split, split_norms
from robustbench_lite import DatasetBundle, DatasetInfo
from robustbench_lite.training import Context, keeping_buffers, train

Batch = tuple[Tensor, Tensor]
Contexts = Callable[..., Context]


def measured(defense: ARAT, model: nn.Module, context: Context) -> Context:
    defense.begin_epoch(model, context)
    return context


@pytest.fixture
def model(digits: DatasetBundle, batch: Batch) -> nn.Module:
    """Untrained, with branches that differ."""
    torch.manual_seed(0)
    model = ARAT(width=4).architecture(digits.info)
    with torch.no_grad():
        for norm in split_norms(model).values():
            for parameter in norm.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    model(batch[0])
    with clean_branch(model):
        model(batch[0] + 0.2)
    return model


def test_the_gradient_of_the_alignment_reaches_adversarial_features_and_predictors_only() -> None:
    torch.manual_seed(0)
    adversarial, clean = ([torch.randn(6, 8, requires_grad=True), torch.randn(6, 12, requires_grad=True)] for _ in range(2))
    predictors = nn.ModuleList([nn.Linear(8, 8), nn.Linear(12, 12)])
    found = asymmetric_distance(predictors, adversarial, clean)
    by_hand = 0.0
    for p, a, c in zip(predictors, adversarial, clean, strict=True):
        for i in range(6):
            u, v = p(a[i]), c[i]
            by_hand += (1 - u @ v / (u.norm() * v.norm())).item() / 6 / 2
    assert found.item() == pytest.approx(by_hand, rel=1e-5)
    slopes = torch.autograd.grad(found, [*adversarial, *predictors.parameters(), *clean], allow_unused=True)
    assert all(s is not None and s.abs().max() > 0 for s in slopes[:-2])
    assert slopes[-2:] == (None, None)


def test_only_the_adversarial_pass_is_pulled(model: nn.Module, batch: Batch, context_of: Contexts) -> None:
    """In the whole loss, too: the clean branch's own parameters feel nothing of the alignment, the others do."""
    x, y = batch
    slopes = []
    for weight in (0.0, 10.0):
        defense = ARAT(width=4, alignment=weight)
        torch.manual_seed(3)
        context = measured(defense, model, context_of(defense, model))
        context.once("x_adv", lambda: (x + 0.1).clamp(0, 1))
        norms = list(split_norms(model).values())
        own = [p for n in norms for p in (*n.clean.parameters(), *n.wrapped.parameters())]
        with keeping_buffers(model):
            slopes.append(torch.autograd.grad(defense.loss(model, x, y, context), own))
    changed = [not torch.allclose(a, b, atol=1e-7) for a, b in zip(*slopes, strict=True)]
    assert changed == [False, False, True, True] * 3


def test_without_alignment_it_is_adversarial_training_mixed_by_the_clean_accuracy(
    model: nn.Module, batch: Batch, context_of: Contexts
) -> None:
    x, y = batch
    defense = ARAT(width=4, alignment=0.0)
    context = measured(defense, model, context_of(defense, model))
    x_adv = context.once("x_adv", lambda: (x + 0.1).clamp(0, 1))
    acc = context.state["clean_accuracy"]
    assert 0 < acc < 1
    with keeping_buffers(model):
        found = defense.loss(model, x, y, context)
        with clean_branch(model):
            clean = F.cross_entropy(model(x), y)
        torch.testing.assert_close(found, acc * F.cross_entropy(model(x_adv), y) + (1 - acc) * clean)


def test_the_balance_is_the_clean_branch_in_evaluation_mode_on_training_images(
    model: nn.Module, digits: DatasetBundle, context_of: Contexts
) -> None:
    defense = ARAT(width=4)
    context = context_of(defense, model)
    before = copy.deepcopy(model.state_dict())
    model.train()
    defense.begin_epoch(model, context)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    x, y = context.examples(1000)
    with torch.no_grad():
        model.eval()
        deployed = (model(x).argmax(1) == y).float().mean().item()
        with clean_branch(model):
            assert context.state["clean_accuracy"] == (model(x).argmax(1) == y).float().mean().item() != deployed


def test_after_an_epoch_the_branches_differ_and_the_adversarial_one_is_deployed(digits: DatasetBundle) -> None:
    model = train(ARAT(width=3, epochs=1), digits, seed=0).module
    for norm in split_norms(model).values():
        assert (norm.clean.running_mean - norm.wrapped.running_mean).abs().max() > 1e-2
        assert (norm.clean.weight - norm.wrapped.weight).abs().max() > 0
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        deployed = model(x)
        with clean_branch(model):
            oracle = model(x)
        for norm in split_norms(model).values():
            norm.clean.weight.zero_()
        assert torch.equal(model(x), deployed)
    assert (oracle - deployed).abs().min() > 1e-4


def test_clean_images_stay_as_they_are_and_adversarial_ones_in_their_ball(
    model: nn.Module, batch: Batch, context_of: Contexts
) -> None:
    """The authors' attack adds its noise to the clean images in place, and so doubles the radius."""
    x, y = batch
    before = x.clone()
    defense = ARAT(width=4)
    context = measured(defense, model, context_of(defense, model))
    defense.loss(model, x, y, context)
    assert torch.equal(x, before)
    x_adv = context.once("x_adv", lambda: x)
    assert 0.1 < (x_adv - before).abs().max() <= 0.15 + 1e-6


def test_features_are_what_comes_out_of_the_norms_after_relu_and_the_mean_over_positions() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid())
    split(layers)
    x = torch.rand(5, 1, 6, 6)
    with features([layers[1]]) as seen:
        layers(x)
    layers(x)
    with keeping_buffers(layers):
        expected = layers[1](layers[0](x)).clamp(min=0).flatten(2).mean(2)
    torch.testing.assert_close(seen, [expected])


def test_the_layers_are_those_of_the_paper() -> None:
    def names(network: str) -> list[str]:
        with torch.device("meta"):
            model = ARAT(network=network).architecture(  # type: ignore[arg-type]
                DatasetInfo(name="cifar10", classes=tuple("0123456789"), shape=(3, 32, 32))
            )
        chosen = aligned(model)
        return [name for name, module in split_norms(model).items() if module in chosen]

    assert names("resnet-18") == [f"stages.3.{block}.bn{i}" for block in (0, 1) for i in (1, 2)]
    wide = [f"stages.2.{block}.bn{i}" for block in range(5) for i in (1, 2)]
    assert names("wide-resnet-34-10") == [*wide, "last.0"]
    assert len(names("small-cnn")) == 3
    weights = {
        net: ARAT(network=net)._weight(DatasetInfo(name="cifar10", classes=("a",), shape=(3, 32, 32)))  # type: ignore[arg-type]
        for net in ("resnet-18", "wide-resnet-34-10")
    }
    assert weights == {"resnet-18": 30.0, "wide-resnet-34-10": 100.0}


@pytest.mark.parametrize("preact", [False, True])
def test_it_works_on_residual_networks(preact: bool, batch: Batch, context_of: Contexts) -> None:
    x, y = batch
    info = DatasetInfo(name="mine", classes=tuple("0123456789"), shape=(1, 8, 8))
    model = ResNet(info, (4, 4, 8), 1, preact=preact)
    split(model)
    assert not any(
        isinstance(m, nn.BatchNorm2d) for name, m in model.named_modules() if not name.endswith((".clean", ".wrapped"))
    )
    assert sum(isinstance(m, SplitNorm) for m in model.modules()) == (5 if preact else 6)
    defense = ARAT(eps=0.1, steps=1)
    context = measured(defense, model, context_of(defense, model, info=info))
    assert defense.loss(model, x, y, context).isfinite()
