"""Checks of what a forward pass does besides classifying: draw, optimise, remember, look at its neighbours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from robustbench_lite.diagnostics.catalogue import Finding, NotApplicable
from robustbench_lite.diagnostics.compare import separated
from robustbench_lite.diagnostics.subject import PASSES, ROUNDING, SAME_LOGITS, Subject

PROBABILITY = 1e-5
# What every module has, and keeps for itself.
_OWN = frozenset(vars(nn.Module())) - {"training"}
# By how much another range of the inputs must be better for it to be the one that is meant.
BETTER = 0.1


def randomness(subject: Subject) -> Finding:
    """D12: plain passes over the same images agree, or the defense is declared stochastic."""
    if subject.stochastic:
        return Finding(outcome="pass", evidence="declared stochastic: attacks and judge average over its draws")
    right, apart = subject.spread
    return Finding(
        outcome="fail" if subject.random else "pass",
        evidence=f"{PASSES} passes differ by {right} right answers and by up to {apart:.2g} in logits scaled to length 1",
        value=apart,
        threshold=SAME_LOGITS,
    )


def dynamic(subject: Subject) -> Finding:
    """D13: a forward pass calls no autograd and no optimiser, and leaves the model as it was."""
    module, x = subject.deployed.module, subject.x[:2]
    with torch.no_grad(), subject.same_draws(subject.ids[:2]), autograd_calls() as calls:
        module(x)  # what is computed once and kept is there by now
        before = _state(module)
        module(x)
    after = _state(module)
    changed = sorted({name for name in {*before, *after} if before.get(name) != after.get(name)})
    said = [f"it calls {name}" for name in calls[:1]] + [f"it changes {', '.join(changed[:3])}"] * bool(changed)
    return Finding(
        outcome="fail" if said else "pass",
        evidence="; ".join(said) or "a forward pass calls no autograd and changes nothing",
    )


def probabilities(subject: Subject) -> Finding:
    """D14: the outputs are not a probability distribution."""
    logits = subject.plain[0]
    inside = bool(((logits > -PROBABILITY) & (logits < 1 + PROBABILITY)).all())
    sums = float((logits.sum(1) - 1).abs().max())
    return Finding(
        outcome="fail" if inside and sums < PROBABILITY else "pass",
        evidence=f"outputs from {float(logits.min()):.3g} to {float(logits.max()):.3g}, rows sum to 1 within {sums:.2g}",
    )


def coupling(subject: Subject) -> Finding:
    """D17: an image's logits are the same alone, in another order and in the whole batch."""
    subject.require_declared()
    if subject.coupling is None:
        raise NotApplicable("it draws from torch's generator, so that batches differ anyway")
    where, worst = subject.coupling
    return Finding(
        outcome="fail" if subject.coupled else "pass",
        evidence=f"logits differ by up to {worst:.2g} of their size where images come {where}",
        value=worst,
        threshold=ROUNDING,
    )


def training_mode(subject: Subject) -> Finding:
    """D17: after ``eval()`` no part of the model is in training mode."""
    training = [name or "the module itself" for name, part in subject.deployed.module.named_modules() if part.training]
    return Finding(
        outcome="fail" if training else "pass",
        evidence=f"in training mode after eval(): {', '.join(training[:3])}"
        if training
        else "all parts are in evaluation mode",
    )


def input_range(subject: Subject) -> Finding:
    """D17: no other usual range of the inputs gives more right answers than [0, 1]."""
    others = {"[0, 255]": subject.x * 255, "[-1, 1]": subject.x * 2 - 1}
    if subject.info.mean and subject.info.std:
        mean, std = (subject.x.new_tensor(v).view(1, -1, 1, 1) for v in (subject.info.mean, subject.info.std))
        others["mean 0 and deviation 1"] = (subject.x - mean) / std
    right = (subject.scores(subject.x).argmax(1) == subject.y).cpu().numpy()
    found = {name: (subject.scores(x).argmax(1) == subject.y).cpu().numpy() for name, x in others.items()}
    name, best = max(found.items(), key=lambda item: int(item[1].sum()))
    return Finding(
        outcome="fail" if separated(best, right, BETTER) else "pass",
        evidence=f"right on {int(right.sum())} of {len(right)} images in [0, 1], on {int(best.sum())} scaled to {name}",
        value=float(best.mean() - right.mean()),
        threshold=BETTER,
    )


def few_classes(subject: Subject) -> Finding:
    """What AutoAttack warns of: the difference of logits ratio needs three classes, its targeted form four. A report, since
    attacks climb another loss where theirs is not defined, and say so.
    """
    lost = {2: "the difference of logits ratio and its targeted form are", 3: "the targeted difference of logits ratio is"}
    if subject.classes > 3:
        return Finding(outcome="pass", evidence=f"{subject.classes} classes")
    return Finding(
        outcome="pass",
        evidence=f"with {subject.classes} classes {lost[max(subject.classes, 2)]} not defined, and another loss is climbed",
    )


@contextmanager
def autograd_calls() -> Iterator[list[str]]:
    """Names of the autograd functions and optimisers that are called while this lasts."""
    calls: list[str] = []
    places: tuple[tuple[Any, str, str], ...] = (
        (torch.autograd, "grad", "torch.autograd.grad"),
        (torch.autograd, "backward", "torch.autograd.backward"),
        (Tensor, "backward", "Tensor.backward"),
        (torch.func, "grad", "torch.func.grad"),
    )

    def noted(original: Any, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            return original(*arguments, **named)

        return call

    with ExitStack() as stack:
        for owner, attribute, name in places:
            stack.enter_context(mock.patch.object(owner, attribute, noted(getattr(owner, attribute), name)))
        stepping = register_optimizer_step_pre_hook(lambda optimiser, *_: calls.append(f"{type(optimiser).__name__}.step"))
        stack.callback(stepping.remove)
        yield calls


def _state(module: nn.Module) -> dict[str, str]:
    """A checksum of every parameter, buffer and plain attribute of a module and its parts, by name."""
    found: dict[str, str] = {}
    for place, part in module.named_modules():
        values = {**vars(part), **part._parameters, **part._buffers}
        for name, value in values.items():
            if name not in _OWN and (seen := _checksum(value)):
                found[f"{place}.{name}".lstrip(".")] = seen
    return found


def _checksum(value: object, depth: int = 2) -> str:
    """Of tensors, numbers and texts, and of lists and mappings of these; empty for anything else."""
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode() + raw).hexdigest()
    if value is None or isinstance(value, (bool, int, float, str)):
        return f"={value!r}"
    if depth and isinstance(value, dict):
        return ";".join(f"{key!r}:{_checksum(item, depth - 1)}" for key, item in value.items()) or "{}"
    if depth and isinstance(value, (list, tuple)):
        return ";".join(_checksum(item, depth - 1) for item in value) or "[]"
    return ""
