"""Checks that attack the model themselves, with attacks of the installed plugins: the core has none of its own.

Each runs a few attacks on the subject and looks at them as at stored results (``compare``). The white box is APGD on the
cross-entropy and on the targeted difference of logits ratio, so that a scale of the logits that hides one does not hide both.
One run of PGD would often stop short of what Square, or ten restarts, find on a sound model: that would flag the attack.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_lite import losses as objectives
from robustbench_lite.deployed import Deployed
from robustbench_lite.diagnostics import compare
from robustbench_lite.diagnostics.catalogue import Finding, NotApplicable
from robustbench_lite.diagnostics.runs import RANDOM_POINTS, Case, Mask
from robustbench_lite.diagnostics.subject import Subject
from robustbench_lite.specs import BALLS
from robustbench_lite.threat import Threat

PGD = "rbl/pgd[steps=40]"
MARGIN = "rbl/pgd[steps=40,loss=margin]"
DLR = "rbl/pgd[steps=40,loss=dlr]"
APGD = "rbl/apgd-ce[steps=100]"
WHITE_BOX = (APGD, "rbl/apgd-t[steps=20,targets=3]")
# For a comparison of radii a shorter one does.
QUICK_WHITE_BOX = ("rbl/apgd-ce[steps=20]", "rbl/apgd-t[steps=20,targets=3]")
LONGER = ("rbl/apgd-ce[steps=400]", "rbl/apgd-ce[steps=100,restarts=5]")
BLACK_BOX = "rbl/square[queries=1000]"
TRANSFER = "rbl/transfer"
RANDOM = f"{RANDOM_POINTS}[draws=1000]"
ONE_STEP = "rbl/fgsm"

# Radii at which robust accuracy must fall, in units of the threat model's; the last one is half the box.
RADII = (0.25, 0.5, 1.0, 2.0)
TEMPERATURES = (10, 100, 1000)


def one_step(subject: Subject) -> Finding:
    """D1, by FGSM and PGD."""
    return compare.one_step(_case(subject, ONE_STEP, PGD))


def black_box(subject: Subject) -> Finding:
    """D2, by Square with 1000 queries for each example that the white box leaves."""
    return compare.black_box(subject.case(BLACK_BOX, after=_case(subject, *WHITE_BOX)))


def transfer(subject: Subject) -> Finding:
    """D3, by points crafted on standard training."""
    return compare.transfer(_case(subject, *WHITE_BOX, TRANSFER))


def random_search(subject: Subject) -> Finding:
    """D8, by 1000 random points of the ball for each example that the white box leaves."""
    return compare.random_search(subject.case(RANDOM, after=_case(subject, *WHITE_BOX)))


def more_steps(subject: Subject) -> Finding:
    """D9, by four times the steps of APGD, and by five restarts."""
    return compare.more_steps(_case(subject, APGD, *LONGER))


def unbounded(subject: Subject) -> Finding:
    """D4: the white box, where the ball is the whole box, beats every example that is classified correctly."""
    case = _case(subject, *WHITE_BOX, threat=whole_box(subject))
    left = _left(case)
    correct = int(case.runs[0].cell.arrays["clean_correct"].sum())
    return Finding(
        outcome="fail" if left.any() else "pass",
        evidence=f"APGD in {case.threat} leaves {int(left.sum())} of {correct} correct examples",
        value=int(left.sum()) / max(correct, 1),
        threshold=0.0,
    )


def radii(subject: Subject) -> Finding:
    """D5: robust accuracy under the white box falls with the radius, to that of a guess when half the box is allowed."""
    box, threat = whole_box(subject), _ball(subject)
    sizes = {round(factor * threat.eps) if threat.norm == "l0" else factor * threat.eps for factor in RADII}
    half = box.eps / 2
    ladder = {
        eps: _left(_case(subject, *QUICK_WHITE_BOX, threat=threat.at(eps))) for eps in sorted({*sizes, half}) if 0 < eps <= half
    }
    if len(ladder) < 2:
        raise NotApplicable(f"{threat} is half the box or more")
    found = compare.climb("APGD", ladder)
    last, n = ladder[max(ladder)], len(subject.x)
    if compare.surely(int(last.sum()), n, 1 / subject.classes):
        return Finding(
            outcome="fail",
            evidence=f"{found.evidence}: half the box is not enough to fall to 1 in {subject.classes}",
            value=float(last.mean()),
            threshold=1 / subject.classes,
        )
    return found


def losses(subject: Subject) -> Finding:
    """D10: PGD on the cross-entropy, the margin and the difference of logits ratio. Where the cross-entropy beats less, also on
    logits divided by a temperature, which tells whether their scale is the reason.
    """
    names = [PGD, MARGIN] + [DLR] * (subject.classes >= 3)
    case = _case(subject, *names)
    found = compare.loss_gap({run.label: case.robust(run) for run in case.runs})
    by_entropy = case.robust(case.runs[0])
    if found.outcome == "pass" or by_entropy.mean() <= _left(case).mean():
        return found
    cooled = {t: int(_tempered(subject, t).case(PGD).runs[0].cell.robust().sum()) for t in TEMPERATURES}
    left = ", ".join(f"{count} at {t}" for t, count in cooled.items())
    return Finding(
        outcome=found.outcome,
        evidence=f"{found.evidence}; on the cross-entropy of logits divided by a temperature: {left}",
        value=found.value,
        threshold=found.threshold,
    )


def confidence(subject: Subject) -> Finding:
    """D16, a report: how sure the model is of clean and of adversarial points, and how far from linear its loss is."""
    subject.require_attackable()
    run, points = subject.attack(PGD)
    beaten = torch.from_numpy(run.cell.arrays["success"]).to(points.device).nonzero()[:, 0]
    rows = subject.correct
    clean = subject.scores(subject.x).softmax(1).amax(1)
    said = f"mean confidence {float(clean.mean()):.2f} on clean images"
    if len(beaten):
        adversarial = subject.scores(points[beaten], beaten).softmax(1).amax(1)
        said += f", {float(adversarial.mean()):.2f} on {len(beaten)} adversarial points"
    x = subject.x[rows]
    _, loss, gradient = subject.gradient(x, objectives.margin, rows)
    step = _steepest(x, gradient, _ball(subject)) - x
    _, there, _ = subject.gradient(x + step, objectives.margin, rows)
    expected = (gradient * step).flatten(1).sum(1)
    apart = (there - loss - expected).abs() / expected.abs().clamp_min(1e-12)
    return Finding(
        outcome="pass",
        evidence=f"{said}; after one full step the margin is {_percent(apart)} off what its slope says (median)",
        value=float(apart.median()),
    )


def _percent(values: Tensor) -> str:
    return f"{100 * float(values.median()):.0f} %"


def _case(subject: Subject, *attacks: str, threat: Threat | None = None) -> Case:
    """Runs of attacks, where following gradients means something and attacks of this threat model can be compared."""
    limits = threat or subject.threat
    Case(limits, ()).require_comparable()
    subject.require_attackable()
    return subject.case(*attacks, threat=limits)


def _left(case: Case) -> Mask:
    """(n,) what all runs together leave robust."""
    found: Mask = np.logical_and.reduce([case.robust(run) for run in case.runs])
    return found


def _ball(subject: Subject) -> Threat:
    """The threat model, where it is one ball. Raises NotApplicable otherwise."""
    if subject.threat.norm not in BALLS:
        raise NotApplicable(f"{subject.threat} is no single ball")
    return subject.threat


def whole_box(subject: Subject) -> Threat:
    """The ball of the threat model's norm that holds the whole box."""
    values, pixels = math.prod(subject.info.shape), math.prod(subject.info.shape[1:])
    diameters = {"linf": 1.0, "l2": math.sqrt(values), "l1": float(values), "l0": float(pixels)}
    threat = _ball(subject)
    return threat.at(diameters[threat.norm])


def _steepest(x: Tensor, gradient: Tensor, threat: Threat) -> Tensor:
    """The point of ball and box that one full step along the gradient reaches."""
    direction = gradient.sign() if threat.norm == "linf" else gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return threat.project(x, x + 2 * max(threat.eps, 1.0) * direction.nan_to_num())


class _Cooled(nn.Module):
    """The module with its logits divided by a temperature; its surrogate as well, where it has one."""

    def __init__(self, module: nn.Module, temperature: float) -> None:
        super().__init__()
        self.module = module
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x)
        return logits / self.temperature

    def surrogate(self, x: Tensor) -> Tensor:
        """The module's own surrogate."""
        logits: Tensor = self.module.surrogate(x)  # type: ignore[operator]
        return logits / self.temperature


def _tempered(subject: Subject, temperature: float) -> Subject:
    """The subject with its logits divided by a temperature."""
    deployed = subject.deployed
    cooled = Deployed(
        _Cooled(deployed.module, temperature),
        num_classes=deployed.num_classes,
        stochastic=deployed.stochastic,
        differentiable=subject.differentiable,
        rejects=deployed.rejects,
        micro_batch=deployed.micro_batch,
        name=f"{deployed.name} / {temperature}",
    )
    other = copy.copy(subject)
    other.deployed, other._runs = cooled, {}
    return other
