"""Adaptive noise injection: a student that starts as its teacher, and how much noise goes where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rbl_defenses
from rbl_defenses.ani import ANI, MOMENTUM, AdaptiveNoise, copy_weights
from rbl_defenses.resnets import ResNet
from rbl_defenses.standard import Standard
from rbl_defenses.surgery import wrap
from robustbench_lite import DatasetBundle, DatasetInfo, UsageError
from robustbench_lite.training import Context, train

SHIPPED = Path(rbl_defenses.__file__).parent / "weights" / "digits" / "standard.safetensors"
Batch = tuple[Tensor, Tensor]
Contexts = Callable[..., Context]


@pytest.fixture
def teacher(digits: DatasetBundle) -> nn.Module:
    return Standard()(digits.info, SHIPPED).requires_grad_(False)


def test_without_noise_the_student_starts_as_its_teacher(teacher: nn.Module, batch: Batch, context_of: Contexts) -> None:
    defense = ANI(scale=0.0)
    student = defense.architecture(context_of(defense, teacher).info)
    context = context_of(defense, student, teacher=teacher, epoch=0.0)
    defense.begin_epoch(student, context)
    x, y = batch
    assert torch.equal(student.eval()(x), teacher(x))
    torch.testing.assert_close(defense.loss(student, x, y, context), F.cross_entropy(teacher(x), y))
    with torch.no_grad():
        next(iter(student.parameters())).zero_()
    defense.begin_epoch(student, replace(context, epoch=1.0))  # later epochs leave the student alone
    assert not next(iter(student.parameters())).any()


@pytest.mark.parametrize("preact", [False, True])
def test_weights_of_residual_networks_are_copied_to_where_they_belong(preact: bool) -> None:
    info = DatasetInfo(name="mine", classes=tuple("abc"), shape=(1, 8, 8))
    torch.manual_seed(0)
    teacher, student = (ResNet(info, (4, 4, 6), 1, preact=preact) for _ in range(2))
    x = torch.rand(16, 1, 8, 8)
    teacher(x)
    wrap(student, nn.BatchNorm2d, lambda norm: AdaptiveNoise(norm, 0.0))
    copy_weights(teacher, student, "teacher")
    assert torch.equal(student.eval()(x), teacher.eval()(x))


def test_a_teacher_of_another_network_is_refused(teacher: nn.Module, context_of: Contexts) -> None:
    for student in (ANI(width=3), ANI(network="resnet-18")):
        module = student.architecture(context_of(student, teacher).info)
        with pytest.raises(UsageError, match="the weights of standard do not fit the student's network"):
            copy_weights(teacher, module, "standard")


def test_the_noise_has_the_deviation_of_the_batch_in_training_and_its_average_afterwards() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 2.0, 1.0]))
    noisy = AdaptiveNoise(norm, 0.3)
    x = torch.randn(100, 3, 4, 4)
    for mode, expected in (("train", [0.5, 2.0, 1.0]), ("eval", [1 - MOMENTUM * 0.5, 1 + MOMENTUM, 1.0])):
        noisy.train(mode == "train")
        with torch.no_grad():
            plain = norm(x)
            noise = (noisy(x) - plain).transpose(0, 1).flatten(1)
        n = noise.shape[1]
        for channel, deviation in zip(noise, expected, strict=True):
            # The standard error of a variance is sigma^2 sqrt(2 / n); a batch's own deviation is sqrt(n / (n - 1)) times ours.
            assert abs(channel.var().item() / (0.3 * deviation) ** 2 - 1) < 5 * (2 / n) ** 0.5
            assert abs(channel.mean().item()) < 5 * 0.3 * deviation / n**0.5
    torch.testing.assert_close(noisy.deviation, torch.tensor([0.95, 1.1, 1.0]), rtol=1e-3, atol=0)


def test_no_gradient_flows_through_the_deviation() -> None:
    torch.manual_seed(0)
    noisy, x = AdaptiveNoise(nn.BatchNorm2d(2), 0.5), torch.randn(6, 2, 3, 3, requires_grad=True)
    weights = torch.randn(6, 2, 3, 3)
    (found,) = torch.autograd.grad((weights * noisy(x)).sum(), x)
    (plain,) = torch.autograd.grad((weights * noisy.wrapped(x)).sum(), x)
    torch.testing.assert_close(found, plain)


def test_distillation_adds_the_divergence_from_the_teacher(teacher: nn.Module, batch: Batch, context_of: Contexts) -> None:
    x, y = batch
    values, logits = [], []
    for weight in (0.0, 0.5):
        defense = ANI(distillation=weight, temperature=3.0)
        torch.manual_seed(0)
        student = defense.architecture(context_of(defense, teacher).info)
        student.register_forward_hook(lambda module, inputs, output: logits.append(output))
        values.append(defense.loss(student, x, y, context_of(defense, student, teacher=teacher)))
    assert torch.equal(*logits)
    p, q = (teacher(x).double() / 3).softmax(1), (logits[0].double() / 3).softmax(1)
    expected = 0.5 * 9 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close((values[1] - values[0]).double(), expected, rtol=1e-4, atol=1e-5)


def test_a_short_training_keeps_what_the_teacher_knew(teacher: nn.Module, digits: DatasetBundle) -> None:
    result = train(ANI(epochs=1), digits, seed=0, teacher=teacher)
    assert result.metrics["clean"] > 0.85
    other = DatasetInfo(name="mine", classes=("a", "b"), shape=(1, 8, 8))
    recipes = [ANI().recipe(info) for info in (digits.info, other)] + [ANI(epochs=4, lr=0.5).recipe(digits.info)]
    assert [(r.epochs, r.lr) for r in recipes] == [(30, 0.02), (3, pytest.approx(0.01)), (4, 0.5)]
