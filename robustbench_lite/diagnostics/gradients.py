"""Checks of gradients: whether there are any, whether they are zero, and whether they say how the loss changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from robustbench_lite import losses
from robustbench_lite.diagnostics.catalogue import Finding, NotApplicable
from robustbench_lite.diagnostics.compare import POINT, surely
from robustbench_lite.diagnostics.subject import FEW, Subject
from robustbench_lite.randomness import Randomness
from robustbench_lite.verdict import Outcome

TINY = 1e-12
# Largest moves of a value between points whose gradients are compared, and the similarity below which nothing is shared.
NEAR = (0.1 / 255, 0.3 / 255, 1 / 255)
ALIKE = 0.1
# By how much of their length logits may change between these points, for them to count as nearly equal.
LITTLE = 0.1
STEPS = (1e-3, 1e-2)
WRONG = 0.1


def interrupted(subject: Subject) -> Finding:
    """D15: autograd reaches the image, through the surrogate where one is declared."""
    problem = subject.interruption
    through = "the surrogate's" if subject.deployed.surrogate is not None else "the"
    evidence = problem or f"{through} gradient reaches the image"
    return Finding(outcome="fail" if problem else "pass", evidence=evidence)


def zero(subject: Subject) -> Finding:
    """D6: the share of examples whose gradient at the clean image is zero, nearly zero or not finite, by three losses."""
    subject.require_gradients()
    rows = subject.correct
    counts: dict[str, int] = {}
    for name, loss in _losses(subject.classes).items():
        _, _, gradient = subject.gradient(subject.x[rows], loss, rows)
        size = gradient.flatten(1).abs().sum(1)
        counts[name] = int((~(size >= TINY) | ~gradient.flatten(1).isfinite().all(1)).sum())
    worst = max(counts.values())
    outcome: Outcome = "fail" if surely(worst, len(rows), POINT) else "warn" if worst else "pass"
    logits_help = worst > 0 and counts["cross-entropy"] == worst and max(counts["margin"], counts.get("dlr", 0)) == 0
    said = ", ".join(f"{count} by the {name}" for name, count in counts.items())
    return Finding(
        outcome=outcome,
        evidence=f"zero or not finite on {said}, of {len(rows)} examples",
        value=worst / len(rows),
        threshold=POINT,
        advice="attack the logits: by the margin or the difference of logits ratio, which know no scale" if logits_help else "",
    )


def shattering(subject: Subject) -> Finding:
    """D7: the similarity of gradients at the clean image and at points a fraction of a grey level away."""
    subject.require_gradients()
    rows = subject.correct[:FEW]
    x = subject.x[rows]
    logits, _, gradient = subject.gradient(x, losses.margin, rows)
    size = gradient.flatten(1).abs().amax(1)
    if int((~size.isfinite() | (size == 0)).sum()) * 2 > len(rows):
        raise NotApplicable("gradients are zero or not finite: see zero-gradients")
    medians, changes = [], []
    for number, radius in enumerate(NEAR):
        rng = Randomness("diagnostics|near", subject.ids[rows])
        noise = rng.uniform(None, x.shape[1:], draw=number, low=-radius, high=radius)
        near = x + torch.where((x + noise < 0) | (x + noise > 1), -noise, noise)  # clipped, values at the border would stay
        moved, _, other = subject.gradient(near, losses.margin, rows)
        medians.append(float(torch.cosine_similarity(gradient.flatten(1), other.flatten(1)).median()))
        changes.append(float(((moved - logits).norm(dim=1) / (logits.norm(dim=1) + TINY)).median()))
    shattered = [m for m, c in zip(medians, changes, strict=True) if m < ALIKE and c < LITTLE]
    pairs = ", ".join(f"{m:.2f} at {255 * r:.1f}/255" for m, r in zip(medians, NEAR, strict=True))
    return Finding(
        outcome="warn" if shattered else "pass",
        evidence=f"median cosine of gradients {pairs}, while logits change by {100 * max(changes):.2g} %",
        value=min(medians),
        threshold=ALIKE,
    )


def finite_differences(subject: Subject) -> Finding:
    """D11: the slope along the gradient, by autograd and by central differences of two step lengths, in double precision."""
    subject.require_gradients()
    if not subject.differentiable:
        raise NotApplicable("declared non-differentiable: a surrogate's gradient is another one by design")
    rows = subject.correct[:FEW]
    ids, x, y = subject.ids[rows], subject.x[rows].double(), subject.y[rows]
    try:
        module = copy.deepcopy(subject.deployed.module).double()
    except Exception as error:
        raise NotApplicable(f"there is no copy of it in double precision: {type(error).__name__}: {error}") from error

    def margin(points: Tensor) -> Tensor:
        with subject.same_draws(ids):
            logits = module(points)
        if logits.dtype != torch.float64:
            raise NotApplicable(f"it computes in {logits.dtype} whatever it is given")
        return losses.margin(logits[:, : subject.classes], y)

    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(margin(leaf).sum(), leaf)
    direction = _unit(gradient, ids)
    slope = (gradient * direction).flatten(1).sum(1)
    medians = []
    with torch.no_grad():
        for step in STEPS:
            measured = (margin(x + step * direction) - margin(x - step * direction)) / (2 * step)
            apart = (measured - slope).abs() / torch.maximum(measured.abs(), slope.abs()).clamp_min(TINY)
            medians.append(float(apart.nan_to_num(nan=1.0).median()))
    said = " and ".join(f"{100 * median:.2g} % at {step:g}" for median, step in zip(medians, STEPS, strict=True))
    return Finding(
        outcome="fail" if max(medians) > WRONG else "pass",
        evidence=f"median error of the slope along the gradient: {said}",
        value=max(medians),
        threshold=WRONG,
    )


def _unit(gradient: Tensor, ids: Tensor) -> Tensor:
    """Directions of length 1: of the gradients (n, ...), and random ones where these are zero."""
    random = Randomness("diagnostics|direction", ids).normal(None, gradient.shape[1:]).to(gradient)
    length = gradient.flatten(1).norm(dim=1).view(-1, *(1,) * (gradient.dim() - 1))
    chosen = torch.where(length > 0, gradient, random)
    unit: Tensor = chosen / chosen.flatten(1).norm(dim=1).view_as(length)
    return unit


def _losses(classes: int) -> dict[str, Callable[..., Tensor]]:
    found: dict[str, Callable[..., Tensor]] = {"cross-entropy": losses.cross_entropy, "margin": losses.margin}
    return found | ({"dlr": losses.dlr} if classes >= 3 else {})
