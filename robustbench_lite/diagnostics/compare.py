"""Checks of results: what several attacks on one defense say about each other.

Three kinds of threshold, so that a sound defense is not flagged by chance, however few the examples. A *share* of examples
counts where the lower end of its interval (Clopper and Pearson, one-sided, 95 %) is above the limit. A *gap* between two
attacks counts where it is larger than the limit and McNemar's test separates the two (p < 0.05). A gap between *losses*, some
of which is to be expected, counts where the lower end of its interval (Newcombe, paired, one-sided, 95 %) is above the limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise, permutations

import numpy as np

from robustbench_lite.diagnostics.catalogue import Finding, NotApplicable
from robustbench_lite.diagnostics.runs import ITERATIVE, RANDOM_POINTS, Case, Mask, Run
from robustbench_lite.keys import canonical_json
from robustbench_lite.statistics import clopper_pearson, difference_interval, mcnemar
from robustbench_lite.verdict import Outcome

POINT = 0.01
ALPHA = 0.05
# Shares of examples that only black-box attacks beat: where AutoAttack raises its flag, and where it costs the rank.
BLACK_BOX_WARNS, BLACK_BOX_FAILS = 0.002, 0.02
# Gaps between losses.
LOSSES_WARN, LOSSES_FAIL = 0.03, 0.10
LADDER = 5

# Names and parameters by which attacks differ in their loss, or in how long they run.
_LOSS_NAME = re.compile(r"-(ce|margin|dlr)$")
_EFFORT = ("steps", "restarts", "queries", "draws")


def surely(count: int, n: int, limit: float) -> bool:
    """Whether more than the share ``limit`` of examples is concerned, by a one-sided 95 % interval for count of n."""
    return n > 0 and clopper_pearson(count, n, 0.9).low > limit


def separated(better: Mask, worse: Mask, limit: float) -> bool:
    """Whether one attack leaves more robust than another, by more than ``limit`` and more than chance explains."""
    return float(better.mean() - worse.mean()) > limit and mcnemar(better, worse) < ALPHA


def surely_apart(better: Mask, worse: Mask, limit: float) -> bool:
    """Whether one attack leaves more robust than another by more than ``limit``, by a one-sided 95 % interval of the gap."""
    return difference_interval(better, worse, 0.9)[1].low > limit


def percent(share: float) -> str:
    """``71.2 %``."""
    return f"{100 * share:.1f} %"


def one_step(case: Case) -> Finding:
    """D1: one step along the gradient beats more than the best iterative attack by gradients."""
    case.require_comparable()
    alone = [run for run in case.here if run.white and run.alone and not run.minimal]
    single = _strongest(case, [run for run in alone if run.steps == 1], "one-step attack")
    many = _strongest(case, [run for run in alone if run.steps >= ITERATIVE], "iterative attack by gradients")
    after_one, after_many = case.robust(single), case.robust(many)
    return Finding(
        outcome="fail" if separated(after_many, after_one, POINT) else "pass",
        evidence=f"{single.label} leaves {_left(after_one)} robust, {many.label} {_left(after_many)}",
        value=float(after_many.mean() - after_one.mean()),
        threshold=POINT,
    )


def black_box(case: Case) -> Finding:
    """D2: attacks by scores or decisions beat examples that no attack by gradients beats."""
    white = case.white_box()
    found = [case.beaten_by[access] for access in ("scores", "decision") if access in case.beaten_by]
    if not found:
        raise NotApplicable("no attack by scores or decisions")
    only = np.logical_or.reduce(found) & ~white
    return _share(int(only.sum()), case.n, "only attacks by scores or decisions", BLACK_BOX_WARNS, BLACK_BOX_FAILS)


def random_search(case: Case) -> Finding:
    """D8: random points of the ball beat examples that no attack by gradients beats."""
    white = case.white_box()
    runs = [run for run in case.here if run.attack["access"] == "none" or run.attack["id"] == RANDOM_POINTS]
    if not runs:
        raise NotApplicable("no attack by random points")
    only = np.logical_or.reduce([case.beaten(run) for run in runs]) & ~white
    return _share(int(only.sum()), case.n, "only random points", 0.0, POINT)


def transfer(case: Case) -> Finding:
    """D3: points crafted on another defense beat more than all attacks by gradients together."""
    white = case.white_box()
    if "transfer" not in case.beaten_by:
        raise NotApplicable("no attack by transfer")
    foreign = case.beaten_by["transfer"]
    return Finding(
        outcome="fail" if separated(foreign, white, POINT) else "pass",
        evidence=f"transfer beats {_left(foreign)}, attacks by gradients {_left(white)}",
        value=float(foreign.mean() - white.mean()),
        threshold=POINT,
    )


def radii(case: Case) -> Finding:
    """D5, of stored results: one attack at five radii or more."""
    ladders: dict[str, dict[float, Mask]] = {}
    labels: dict[str, str] = {}
    for run in case.runs:
        if not run.minimal and run.cell.threat.norm != "union":
            name = canonical_json(run.attack)
            labels[name] = run.label
            ladders.setdefault(name, {})[run.cell.threat.eps] = case.robust(run)
    long = {name: ladder for name, ladder in ladders.items() if len(ladder) >= LADDER}
    if not long:
        raise NotApplicable(f"no attack was run at {LADDER} radii")
    found = [climb(labels[name], ladder) for name, ladder in sorted(long.items())]
    return max(found, key=lambda finding: finding.value or 0.0)


def climb(label: str, ladder: Mapping[float, Mask]) -> Finding:
    """Whether robust accuracy falls with the radius. ladder: (n,) robust examples by radius."""
    ordered = sorted(ladder.items())
    rises = [(float(more.mean() - less.mean()), less, more) for (_, less), (_, more) in pairwise(ordered)]
    worst = max(rises, key=lambda rise: rise[0])
    return Finding(
        outcome="warn" if separated(worst[2], worst[1], POINT) else "pass",
        evidence=f"{label} leaves " + ", ".join(f"{percent(float(mask.mean()))} at {eps:.3g}" for eps, mask in ordered),
        value=worst[0],
        threshold=POINT,
    )


def more_steps(case: Case) -> Finding:
    """D9: the same attack with more steps, restarts or queries beats more."""
    case.require_comparable()
    gains = [
        (float(case.robust(less).mean() - case.robust(more).mean()), less, more)
        for less, more in permutations(case.here, 2)
        if _is_longer(less, more)
    ]
    if not gains:
        raise NotApplicable("no attack was run both short and long")
    gain, less, more = max(gains, key=lambda g: g[0])
    return Finding(
        outcome="warn" if separated(case.robust(less), case.robust(more), POINT) else "pass",
        evidence=f"{less.label} leaves {_left(case.robust(less))} robust, {more.label} {_left(case.robust(more))}",
        value=gain,
        threshold=POINT,
    )


def losses(case: Case) -> Finding:
    """D10: the same attack by another loss beats more."""
    case.require_comparable()
    families: dict[str, list[Run]] = {}
    for run in case.here:
        if run.white and run.alone:
            others = {name: value for name, value in run.parameters.items() if name != "loss"}
            name = _LOSS_NAME.sub("", run.attack["id"])
            families.setdefault(canonical_json({"id": name, "parameters": others}), []).append(run)
    several = [family for family in families.values() if len(family) > 1]
    if not several:
        raise NotApplicable("no attack was run with several losses")
    found = [loss_gap({run.label: case.robust(run) for run in family}) for family in several]
    return max(found, key=lambda finding: finding.value or 0.0)


def loss_gap(robust: Mapping[str, Mask]) -> Finding:
    """Whether what is left depends on the loss. robust: (n,) by the attack's label."""
    ordered = sorted(robust.items(), key=lambda item: float(item[1].mean()))
    best, worst = ordered[0][1], ordered[-1][1]
    outcome: Outcome = "pass"
    if surely_apart(worst, best, LOSSES_WARN):
        outcome = "fail" if surely_apart(worst, best, LOSSES_FAIL) else "warn"
    return Finding(
        outcome=outcome,
        evidence="left robust: " + ", ".join(f"{_left(mask)} by {label}" for label, mask in ordered),
        value=float(worst.mean() - best.mean()),
        threshold=LOSSES_FAIL if outcome == "fail" else LOSSES_WARN,
    )


def unstable(case: Case) -> Finding:
    """What the target saw beaten and the judge did not: of a deterministic defense, rounding explains a few at the most."""
    return _most(case, {run.label: run.unstable for run in case.here}, "seen beaten but not by the judge", "fail")


def silent_success(case: Case) -> Finding:
    """What attacks beat on the way and did not return. The core kept it: a defect of the attack, not of the result."""
    return _most(case, {run.label: run.lost for run in case.here}, "beaten on the way but not returned", "warn")


def untried_examples(case: Case) -> Finding:
    """Examples that count as robust where no attack proposed a point that could have beaten them: nothing was tried there."""
    left = np.logical_and.reduce([case.robust(run) for run in case.here])
    count = int((left & np.logical_and.reduce([run.refused for run in case.here])).sum())
    who = case.here[0].label if len(case.here) == 1 else f"all {len(case.here)} attacks"
    said = f"{count} of {case.n} examples count as robust because every point that {who} proposed for them broke a rule"
    return Finding(outcome=_of_share(count, case.n), evidence=said, value=count / max(case.n, 1), threshold=POINT)


def undefined_answers(case: Case) -> Finding:
    """Examples that count as robust where the defense gave no answer: a class that is not a number is not the right one."""
    left = np.logical_and.reduce([case.robust(run) for run in case.here])
    count = int((left & np.logical_or.reduce([run.undefined for run in case.here])).sum())
    said = f"the defense's logits are not finite at points proposed for {count} of {case.n} examples that count as robust"
    return Finding(outcome=_of_share(count, case.n), evidence=said, value=count / max(case.n, 1), threshold=POINT)


def _of_share(count: int, n: int) -> Outcome:
    """What follows from examples of which there should be none."""
    return "fail" if surely(count, n, POINT) else "warn" if count else "pass"


def _most(case: Case, counts: Mapping[str, int], what: str, worst: Outcome) -> Finding:
    """counts: examples by the attack's label. Draws of a stochastic defense differ, so that there nothing follows."""
    label, count = max(counts.items(), key=lambda item: item[1])
    outcome: Outcome = worst if surely(count, case.n, POINT) and not case.stochastic else "pass"
    said = f"{count} of {case.n} examples {what}, under {label}" if count else f"no example {what}, under {len(counts)} attacks"
    said += ", as is to be expected of a stochastic defense" if count and case.stochastic else ""
    return Finding(outcome=outcome, evidence=said, value=count / max(case.n, 1), threshold=POINT)


def _share(count: int, n: int, who: str, warns: float, fails: float) -> Finding:
    outcome: Outcome = "fail" if surely(count, n, fails) else "warn" if surely(count, n, warns) else "pass"
    evidence = f"{who} beat {count} of {n} examples ({percent(count / max(n, 1))})"
    return Finding(outcome=outcome, evidence=evidence, value=count / max(n, 1), threshold=fails if outcome == "fail" else warns)


def _strongest(case: Case, runs: Sequence[Run], what: str) -> Run:
    if not runs:
        raise NotApplicable(f"no {what}")
    return min(runs, key=lambda run: (float(case.robust(run).mean()), run.label))


def _is_longer(less: Run, more: Run) -> bool:
    """Whether two runs are of one attack that differs in effort alone, and the second takes no less of anything."""
    if less.attack["id"] != more.attack["id"] or not less.alone or not more.alone or less.minimal != more.minimal:
        return False
    old, new = less.parameters, more.parameters
    apart = [name for name in {*old, *new} if old.get(name) != new.get(name)]
    if not apart or not all(name in _EFFORT and name in old and name in new for name in apart):
        return False
    return all(old[name] < new[name] for name in apart)


def _left(mask: Mask) -> str:
    return f"{int(mask.sum())} of {len(mask)} ({percent(float(mask.mean()))})"
