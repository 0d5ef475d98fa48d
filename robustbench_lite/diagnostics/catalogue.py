"""The checks: what each is called, what it costs, what to try where it fails, and where its code is.

Codes D1 to D17 collect the known signs of robustness that is only apparent: those of Athalye et al. (2018, arXiv:1802.00420),
the checklist of Carlini et al. (2019, arXiv:1902.06705) and the flags of AutoAttack (Croce & Hein, 2020, arXiv:2003.01690),
whose names stand with the checks that match them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from robustbench_lite.errors import CellFailed, RblError, UnknownName, did_you_mean
from robustbench_lite.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

# Raise it with any change that can change a verdict: it is part of the key of stored ones.
VERSION = 1

Cost = Literal["results", "cheap", "expensive"]


class NotApplicable(Exception):
    """The check cannot be made here; the message says why, in words."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check saw. advice: where it is more to the point than the check's own."""

    outcome: Outcome
    evidence: str
    value: float | None = None
    threshold: float | None = None
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check.

    code: where it stands in the list. cost: ``results`` (stored results are enough), ``cheap`` (a few passes over the model) or
    ``expensive`` (attacks of its own). results, probe: its functions of a ``runs.Case`` and of a ``subject.Subject``, as
    ``module:function`` below this package; empty where there is none. autoattack: what AutoAttack calls the same sign.
    """

    code: str
    name: str
    title: str
    advice: str
    cost: Cost
    results: str = ""
    probe: str = ""
    autoattack: str = ""

    def of_results(self, case: Any) -> Verdict | None:
        """The verdict on stored results; None where the check looks at the model alone."""
        return self._verdict(self.results, case) if self.results else None

    def of_model(self, subject: Any) -> Verdict:
        """The verdict on a model. Whatever goes wrong on the way, but for a time-out, is a verdict: not applicable, and why."""
        return self._verdict(self.probe, subject)

    def verdict(self, found: Finding) -> Verdict:
        """A finding under this check's name, with what to try where something is wrong."""
        raised = found.outcome in ("warn", "fail")
        flag = f" (AutoAttack's flag: {self.autoattack})" if raised and self.autoattack else ""
        return Verdict(
            check=self.name,
            outcome=found.outcome,
            evidence=found.evidence + flag,
            advice=(found.advice or self.advice) if raised else "",
            value=None if found.value is None or math.isnan(found.value) else float(found.value),
            threshold=found.threshold,
        )

    def not_applicable(self, reason: str) -> Verdict:
        """The verdict where it cannot be made."""
        return Verdict(check=self.name, outcome="not-applicable", evidence=reason)

    def _verdict(self, place: str, argument: Any) -> Verdict:
        try:
            return self.verdict(_load(place)(argument))
        except NotApplicable as reason:
            return self.not_applicable(str(reason))
        except RblError as error:
            if isinstance(error, CellFailed) and error.status == "timeout":
                raise
            return self.not_applicable(f"it could not be made: {error.message}")
        except Exception as error:
            said = (str(error).splitlines() or [""])[0]
            return self.not_applicable(f"it could not be made: {type(error).__name__}: {said}")


def _load(place: str) -> Callable[[Any], Finding]:
    module, _, function = place.partition(":")
    found: Callable[[Any], Finding] = getattr(importlib.import_module(f"robustbench_lite.diagnostics.{module}"), function)
    return found


CHECKS = (
    Check(
        code="D1",
        name="one-step-stronger",
        title="one step beats more examples than many steps",
        advice="smooth the loss or take smaller steps: an iterative attack should do at least as well as one step",
        cost="expensive",
        results="compare:one_step",
        probe="attacks:one_step",
    ),
    Check(
        code="D2",
        name="black-box-stronger",
        title="an attack without gradients beats what gradients do not",
        advice="offer a surrogate of what hides the gradient (BPDA), or attack the logits; give square more queries",
        cost="expensive",
        results="compare:black_box",
        probe="attacks:black_box",
        autoattack="Square Attack improves the robustness evaluation",
    ),
    Check(
        code="D3",
        name="transfer-stronger",
        title="points made on another model beat more than gradients of this one",
        advice="offer a surrogate of what hides the gradient (BPDA), or attack the logits",
        cost="expensive",
        results="compare:transfer",
        probe="attacks:transfer",
    ),
    Check(
        code="D4",
        name="unbounded-attack",
        title="an attack that may change everything does not beat everything",
        advice="offer a surrogate (BPDA), attack the logits, or take more steps: without a limit every attack must succeed",
        cost="expensive",
        probe="attacks:unbounded",
    ),
    Check(
        code="D5",
        name="radius-monotonicity",
        title="a larger radius helps less, or robustness outlasts every radius",
        advice="take more steps and restarts, or attack the logits",
        cost="expensive",
        results="compare:radii",
        probe="attacks:radii",
    ),
    Check(
        code="D6",
        name="zero-gradients",
        title="gradients are exactly zero, or not finite",
        advice="offer a surrogate of what stops the gradient: differentiable=False and a method surrogate(x) (BPDA)",
        cost="cheap",
        probe="gradients:zero",
        autoattack="Zero gradient",
    ),
    Check(
        code="D7",
        name="gradient-shattering",
        title="gradients at nearly equal points have nothing in common",
        advice="average gradients over noise around the point, or offer a smooth surrogate (BPDA)",
        cost="cheap",
        probe="gradients:shattering",
    ),
    Check(
        code="D8",
        name="random-search",
        title="random points beat what gradients do not",
        advice="offer a surrogate of what hides the gradient (BPDA), or attack the logits",
        cost="expensive",
        results="compare:random_search",
        probe="attacks:random_search",
    ),
    Check(
        code="D9",
        name="more-steps-help",
        title="more steps or restarts still beat more",
        advice="take more steps and restarts: the attack has not converged",
        cost="expensive",
        results="compare:more_steps",
        probe="attacks:more_steps",
    ),
    Check(
        code="D10",
        name="loss-dependence",
        title="what is beaten depends on the loss that is climbed",
        advice="attack the logits by the margin or the difference of logits ratio, which know no scale",
        cost="expensive",
        results="compare:losses",
        probe="attacks:losses",
    ),
    Check(
        code="D11",
        name="finite-differences",
        title="the gradient does not say how the loss changes",
        advice="offer a smooth surrogate: differentiable=False and a method surrogate(x) (BPDA)",
        cost="cheap",
        probe="gradients:finite_differences",
    ),
    Check(
        code="D12",
        name="randomness-undeclared",
        title="passes over one input differ, and the defense is not declared stochastic",
        advice="use EOT: declare stochastic=True and draw with robustbench_lite.randn_like",
        cost="cheap",
        probe="behaviour:randomness",
        autoattack="Randomized defenses",
    ),
    Check(
        code="D13",
        name="dynamic-inference",
        title="a forward pass optimises, or changes the model's state",
        advice="attack it adaptively, through the optimisation (arXiv:2202.13711); keep no state between passes",
        cost="cheap",
        probe="behaviour:dynamic",
        autoattack="Optimization at inference time",
    ),
    Check(
        code="D14",
        name="probabilities-not-logits",
        title="the outputs are probabilities",
        advice="attack the logits: return what goes into the softmax",
        cost="cheap",
        probe="behaviour:probabilities",
        autoattack="Softmax output is given",
    ),
    Check(
        code="D15",
        name="interrupted-graph",
        title="autograd finds no way from the logits back to the image",
        advice="offer a surrogate: differentiable=False and a method surrogate(x) (BPDA), or do not detach",
        cost="cheap",
        probe="gradients:interrupted",
    ),
    Check(
        code="D16",
        name="confidence-and-linearity",
        title="how sure the model is of adversarial points, and how linear its loss is (a report)",
        advice="",
        cost="expensive",
        probe="attacks:confidence",
    ),
    Check(
        code="D17",
        name="batch-coupling",
        title="an image's logits depend on the other images of the batch",
        advice="use no statistics of the batch (batch norm in training mode, ranks, means over images)",
        cost="cheap",
        probe="behaviour:coupling",
    ),
    Check(
        code="D17",
        name="training-mode",
        title="parts of the model stay in training mode",
        advice="do not override train() or eval()",
        cost="cheap",
        probe="behaviour:training_mode",
    ),
    Check(
        code="D17",
        name="input-range",
        title="the model is better on images in another range than [0, 1]",
        advice="take images in [0, 1] and normalise inside the module",
        cost="cheap",
        probe="behaviour:input_range",
    ),
    Check(
        code="classes",
        name="few-classes",
        title="whether there are enough classes for all losses (a report)",
        advice="",
        cost="cheap",
        probe="behaviour:few_classes",
    ),
    Check(
        code="judge",
        name="unstable-evaluation",
        title="examples seen beaten are not beaten when they are looked at again",
        advice="declare stochastic=True if it draws random numbers; otherwise look for what depends on the batch",
        cost="results",
        results="compare:unstable",
    ),
    Check(
        code="judge",
        name="silent-success",
        title="an attack found adversarial points and returned others",
        advice="let the attack return the best point that it saw (target.best)",
        cost="results",
        results="compare:silent_success",
    ),
    Check(
        code="judge",
        name="untried-examples",
        title="every point proposed for an example broke a rule: outside the threat model or the box, or not finite",
        advice="mend the attack (rbl check NAME shows where; threat.project keeps a point inside), or add one that is sound",
        cost="results",
        results="compare:untried_examples",
    ),
    Check(
        code="judge",
        name="undefined-answers",
        title="the defense's logits are not finite at points that attacks proposed",
        advice="mend the defense so that every image gets an answer (rbl check NAME shows where its outputs stop being finite)",
        cost="results",
        results="compare:undefined_answers",
    ),
)


def find_checks(wanted: Iterable[str]) -> tuple[Check, ...]:
    """The checks of these names or codes (all of a code), in the order of the catalogue. Raises UnknownName."""
    asked = list(wanted)
    for word in asked:
        if not any(word in (check.name, check.code) for check in CHECKS):
            known = sorted({check.name for check in CHECKS} | {check.code for check in CHECKS})
            raise UnknownName(
                f"no check {word!r}", hint=did_you_mean(word, known) or f"known: {', '.join(c.name for c in CHECKS)}"
            )
    return tuple(check for check in CHECKS if check.name in asked or check.code in asked)


def said(verdict: Verdict) -> str:
    """A verdict in one line, as tables and logs have it: ``D6 zero-gradients: ...; try: ...``."""
    code = next((check.code for check in CHECKS if check.name == verdict.check), "")
    return f"{code} {verdict.check}: {verdict.evidence}".lstrip() + (f"; try: {verdict.advice}" if verdict.advice else "")


_SEVERITY = {"not-applicable": 0, "pass": 1, "warn": 2, "fail": 3}


def combine(*groups: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """One verdict of each check: of several the worst, of equal ones the first; in the order of the catalogue.

    Where it applies nowhere the last one tells why: checks of models come after those of results, and try more.
    """
    worst: dict[str, Verdict] = {}
    for group in groups:
        for verdict in group:
            known = worst.setdefault(verdict.check, verdict)
            if _SEVERITY[verdict.outcome] > _SEVERITY[known.outcome] or verdict.outcome == known.outcome == "not-applicable":
                worst[verdict.check] = verdict
    order = {check.name: number for number, check in enumerate(CHECKS)}
    return tuple(sorted(worst.values(), key=lambda verdict: (order.get(verdict.check, len(order)), verdict.check)))
