"""The conformance suite of attacks: what the core relies on, on models whose answers are known."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from robustbench_lite.composition import surrogate_selectors
from robustbench_lite.errors import AccessError
from robustbench_lite.registry import Registry
from robustbench_lite.specs import BALLS, UNRESTRICTED
from robustbench_lite.testing.attack_subject import (
    BUDGET,
    CUT,
    CUT_STOCHASTIC,
    MOST,
    SAME,
    AttackSubject,
    Run,
    error_in_words,
    hint_for,
)
from robustbench_lite.testing.checks import Failed, Outcome, Skipped, Suite, plural
from robustbench_lite.testing.common import COMMON
from robustbench_lite.testing.problems import N, Problem
from robustbench_lite.testing.toys import CoinFlip, Constant, Masked, NotANumber

ATTACK_SUITE: Suite[AttackSubject] = Suite("attack", *COMMON)
_check = ATTACK_SUITE.check


def check_attack(registry: Registry, selector: str, device: str = "cpu") -> list[Outcome]:
    """Run the conformance suite on an attack."""
    return list(ATTACK_SUITE.run(AttackSubject(registry, selector, device)))


# ---------------------------------------------------------------------------------------------------------- does it run


@_check
def access(subject: AttackSubject) -> None:
    """It asks the defense for no more than the access that its spec declares."""
    for threat in subject.threats(subject.base):
        error = subject.run(subject.base, threat).error
        if isinstance(error, AccessError):
            raise Failed(error.message, fix=error.hint)


@_check
def runs(subject: AttackSubject) -> None:
    """It runs in every norm that its spec declares."""
    if not subject.threats(subject.base):
        raise Failed("a minimal-norm attack works in one norm at a time", fix="declare norms=('linf',), or another ball")
    for threat in subject.threats(subject.base):
        run = subject.run(subject.base, threat)
        if run.error is not None and not isinstance(run.error, AccessError):
            raise Failed(f"{run.called}: {error_in_words(run.error)}", fix=hint_for(run.error))


@_check
def shape_and_type(subject: AttackSubject) -> None:
    """It returns one point per image, with the images' shape and type."""
    for run in subject.plain():
        proposal = run.proposal
        if not isinstance(proposal, Tensor):
            raise Failed(f"{run.called}: it returned {type(proposal).__name__}", fix="return a tensor of the shape of x")
        if proposal.shape != run.x.shape or proposal.dtype != run.x.dtype:
            raise Failed(
                f"{run.called}: it returned {proposal.dtype} of shape {tuple(proposal.shape)}, not "
                f"{run.x.dtype} of shape {tuple(run.x.shape)}",
                fix="return one point per row of x, the clean image where there is nothing better",
            )


@_check
def other_shapes(subject: AttackSubject) -> None:
    """It takes colour images that are not square."""
    problem = Problem.make(len(subject.base.linear.bias), (3, 6, 8), n=6)
    for threat in subject.threats(problem):
        _require_shape(subject, subject.completed(problem, threat))


@_check
def one_example(subject: AttackSubject) -> None:
    """It takes a single image."""
    for threat in subject.threats(subject.base):
        _require_shape(subject, subject.completed(subject.base, threat, rows=[N - 1]))


@_check
def few_classes(subject: AttackSubject) -> None:
    """It works with as few classes as its spec says (min_classes)."""
    classes = max(2, subject.declared.min_classes)
    for threat in subject.threats(subject.base):
        problem = _few_classes(subject)
        usual = subject.completed(subject.base, threat)  # what goes wrong there has another reason
        limits = threat if subject.minimal else problem.threat(threat.norm)
        run = subject.run(problem, limits, budget=None if usual.unattributed else CUT)
        if run.error is not None:
            raise Failed(
                f"{run.called}: {error_in_words(run.error)}",
                fix=f"declare min_classes={classes + 1} in its AttackSpec, or use what works with {classes} classes",
            )
        _require_shape(subject, run)


def _few_classes(subject: AttackSubject) -> Problem:
    cached: Problem = subject.__dict__.setdefault("_few", Problem.make(max(2, subject.declared.min_classes), seed=1))
    return cached


# ------------------------------------------------------------------------------------------------- what does it return


@_check
def finite(subject: AttackSubject) -> None:
    """Every value of its points is finite."""
    for run in subject.plain():
        bad = ~run.points.flatten(1).isfinite().all(1)
        if bool(bad.any()):
            raise Failed(
                f"{run.called}: {_of(bad)} hold NaN or infinity", fix="look for divisions by a norm or a range that may be zero"
            )


@_check
def inside_the_box(subject: AttackSubject) -> None:
    """Every value of its points is in [0, 1]."""
    for run in subject.plain():
        points = run.points.nan_to_num(0.5, 0.5, 0.5)
        bad = ~run.threat.in_box(points)
        if bool(bad.any()):
            raise Failed(
                f"{run.called}: {_of(bad)} leave [0, 1]: values from {float(points.min()):.4g} to {float(points.max()):.4g}",
                fix="return threat.project(x, x_adv), or clamp to [0, 1] as the last step",
            )


@_check
def inside_the_ball(subject: AttackSubject) -> None:
    """Its points are inside the threat model, up to rounding (fixed-budget attacks)."""
    if subject.minimal:
        raise Skipped("a minimal-norm attack is given no radius")
    for run in _measured(subject):
        x = run.x
        points = torch.where(run.points.isfinite(), run.points, x)
        bad = ~run.threat.contains(x, points)
        if bool(bad.any()):
            largest = float(run.threat.size(x, points).max())
            raise Failed(
                f"{run.called}: {_of(bad)} are outside the threat model, the farthest at {largest:.6g}",
                fix="return threat.project(x, x_adv)",
            )


# ------------------------------------------------------------------------------------------- on what does it depend


@_check
def same_seed_same_points(subject: AttackSubject) -> None:
    """Two runs with the same seed return the same points."""
    for threat in subject.threats(subject.base):
        runs = [subject.completed(subject.base, threat, again=k) for k in range(2)]
        _require_same(runs[0], runs[1], "two runs with one seed", "draw all random numbers from rng")


@_check
def batch_does_not_matter(subject: AttackSubject) -> None:
    """An example's point does not depend on the other examples, their order, or the micro-batch."""
    if subject.declared.global_rng:
        raise Skipped("its spec declares global_rng: it is run on whole shards, always in the same order")
    generator = torch.Generator().manual_seed(7)
    some = torch.randperm(N, generator=generator)[: N // 2 - 1].tolist()
    fix = "draw from rng with the rows of the examples (index=, rng.select), and take no statistics over the batch"
    for threat in subject.threats(subject.base):
        run = subject.completed(subject.base, threat)
        if not _same(run, subject.completed(subject.base, threat, again=1)):
            raise Skipped("it is not reproducible: see the check `same-seed-same-points`")
        for other, what in (
            (subject.completed(subject.base, threat, micro_batch=5), "other micro-batches"),
            (subject.completed(subject.base, threat, rows=some), "a subset in another order"),
        ):
            _require_same(run, other, what, fix)


@_check
def device_of_the_images(subject: AttackSubject) -> None:
    """It works where the images are: no operation takes a tensor of theirs and one that was made on the CPU.

    That needs no GPU: everything is on the CPU, and the images say that they are not.
    """
    fix = "give device=x.device to what makes a tensor (torch.arange, torch.zeros), and take .cpu() before .numpy()"
    for threat in subject.threats(subject.base):
        usual = subject.completed(subject.base, threat)
        run = subject.run(subject.base, threat, budget=None if usual.unattributed else CUT, elsewhere=True)
        if run.mixed is not None:
            raise Failed(f"{run.called}: {run.mixed}", fix=fix)
        if run.error is not None:
            raise Skipped(
                f"{run.called}: {error_in_words(run.error)}", fix="run the suite on a GPU: rbl check NAME --device cuda"
            )


@_check
def inputs_unchanged(subject: AttackSubject) -> None:
    """It leaves the images and labels that it is given as they are."""
    for run in subject.plain():
        if run.given is None:
            continue
        x, y = run.given
        same_x = torch.equal(x.detach().cpu(), run.x) and not x.requires_grad
        if not same_x or not torch.equal(y.cpu(), run.problem.y[run.attacked]):
            what = "labels" if same_x else "images"
            raise Failed(
                f"{run.called}: it changed the {what} in place",
                fix="work on a clone, and change nothing in place",
            )


@_check
def model_unchanged(subject: AttackSubject) -> None:
    """It leaves the model's weights, its mode and requires_grad as they are."""
    for run in subject.plain():
        if run.model.training or any(p.requires_grad for p in run.model.parameters()):
            raise Failed(f"{run.called}: it changed the mode or requires_grad of the model", fix="ask the target, nothing else")
        before = run.problem.model.state_dict()
        if any(not torch.equal(value.cpu(), before[name]) for name, value in run.model.state_dict().items()):
            raise Failed(f"{run.called}: it changed the model's weights", fix="ask the target, nothing else")


@_check
def global_state_unchanged(subject: AttackSubject) -> None:
    """It leaves the global state alone: random generators, torch's gradient mode and default type."""
    for run in subject.plain():
        before, after = run.state
        changed = [name for name in before if before[name] != after[name]]
        if subject.declared.global_rng:
            changed = [name for name in changed if "generator" not in name]
        if changed:
            fix = "use context managers such as torch.no_grad()"
            if any("generator" in name for name in changed):
                fix = "draw from rng; an attack that wraps another library may declare global_rng=True"
            raise Failed(f"{run.called}: it changed {', '.join(changed)}", fix=fix)


# ------------------------------------------------------------------------------------------------- what does it achieve


@_check
def beats_a_linear_model(subject: AttackSubject) -> None:
    """At three times the median distance it beats most images of a linear model (gradient, scores) or some (decision).

    A surrogate is the model itself here, so that of an attack that is crafted on it as much is asked.
    """
    crafted = bool(surrogate_selectors(subject.found.instance))
    if subject.declared.access == "none" or (subject.declared.access == "transfer" and not crafted):
        raise Skipped(f"an attack with access {subject.declared.access!r} promises nothing here")
    least = 1 / N if subject.declared.access == "decision" else MOST
    for run in _measured(subject):
        norm = run.threat.norm
        within = run.success
        if subject.minimal:
            within = within & (run.arrays["size"] <= run.problem.threat(norm).limit)
        if within.mean() < least:
            raise Failed(
                f"{run.called}: it beats {int(within.sum())} of {plural(len(within), 'image')}"
                + (f" within {run.problem.threat(norm)}" if subject.minimal else "")
                + ", where all but a few can be beaten",
                fix="check the sign of the loss, the step size and the projection; what the target is shown counts",
            )


@_check
def closed_form(subject: AttackSubject) -> None:
    """It beats nothing below the closed-form minimal perturbation of a linear model with two classes."""
    if subject.declared.min_classes > 2:
        raise Skipped(f"it needs {subject.declared.min_classes} classes")
    problem = _few_classes(subject)
    threats = [threat for threat in subject.threats(subject.base) if threat.norm in BALLS]
    if not threats:
        raise Skipped(f"there is no closed form for {' and '.join(subject.declared.norms)}")
    for threat in threats:
        usual = subject.completed(subject.base, threat)
        limits = threat if subject.minimal else problem.threat(threat.norm, 1.0)
        run = subject.run(problem, limits, budget=None if usual.unattributed else CUT)
        if run.error is not None:
            raise Skipped("it raises with two classes: see the check `few-classes`")
        least = problem.distances(threat.norm)
        bad = run.success & (run.arrays["size"] < least * (1 - 1e-4) - 1e-6)
        if bad.any():
            raise Failed(
                f"{run.called}: {_of(torch.from_numpy(bad))} were beaten at less than the least that is possible",
                fix="it changed the model or went around the target: ask the target, nothing else",
            )


@_check
def constant_model(subject: AttackSubject) -> None:
    """On a model that always answers the same it ends without an exception, and has no success."""
    problem = subject.base.behind("a constant model", Constant(len(subject.base.linear.bias))).labelled(0)
    for threat in subject.threats(subject.base):
        _require_no_success(subject.completed(problem, threat))


@_check
def nan_model(subject: AttackSubject) -> None:
    """On a model that answers NaN away from the clean images it ends without an exception, and has no success."""
    base = subject.base
    problem = base.behind("a model that answers NaN", NotANumber(copy.deepcopy(base.model), base.x))
    for threat in subject.threats(base):
        _require_no_success(subject.completed(problem, threat))


@_check
def masked_gradient(subject: AttackSubject) -> None:
    """On a model whose gradient is zero it ends without an exception; one that uses only scores beats some images."""
    problem = subject.base.behind("a linear model behind a staircase", Masked(copy.deepcopy(subject.base.model), levels=16))
    for threat in subject.threats(subject.base):
        run = subject.completed(problem, threat)
        if subject.declared.access == "scores" and threat.norm != UNRESTRICTED and not run.success.any():
            raise Failed(f"{run.called}: it beats nothing, though it needs no gradient", fix="see `beats-a-linear-model`")


@_check
def stochastic_model(subject: AttackSubject) -> None:
    """On a stochastic model, averaged over several draws, it ends without an exception and gives the same points again.

    Again in its first norm: `same-seed-same-points` looks at the others, and these are the longest runs of all.
    """
    base = subject.base
    problem = base.behind("a linear model with noise on its logits", CoinFlip(copy.deepcopy(base.model), sigma=0.3))
    noisy = {"stochastic": True, "eot": 2, "budget": CUT_STOCHASTIC}
    for number, threat in enumerate(subject.threats(base)):
        run = subject.completed(problem, threat, **noisy)
        if number == 0 and _same(*[subject.completed(base, threat, again=k) for k in range(2)]):
            again = subject.completed(problem, threat, again=1, **noisy)
            _require_same(run, again, "two runs with one seed", "draw all random numbers from rng")


@_check
def budget(subject: AttackSubject) -> None:
    """Under a query budget of 10 it returns what it has, or lets BudgetExceeded through; and raises nothing else."""
    if subject.declared.access == "none":
        raise Skipped("it asks the defense nothing")
    for threat in subject.threats(subject.base):
        if subject.completed(subject.base, threat).unattributed:
            raise Skipped("under a budget, queries must say whose they are: see the check `queries-attributed`")
        _require_shape(subject, subject.completed(subject.base, threat, budget=BUDGET))


@_check
def queries_attributed(subject: AttackSubject) -> None:
    """It says which examples its queries belong to, so that they are counted and what they find is kept."""
    for run in subject.plain():
        if run.unattributed:
            raise Failed(
                f"{run.called}: {plural(run.unattributed, 'row')} came without index=",
                fix="pass index= with the rows that the inputs belong to, or use target.select(rows)",
            )


# --------------------------------------------------------------------------------------------------------------- helpers


def _measured(subject: AttackSubject) -> list[Run]:
    """The plainest runs in threat models that can be measured; Skipped where there is none."""
    runs = [run for run in subject.plain() if run.threat.norm != UNRESTRICTED]
    if not runs:
        raise Skipped(f"{UNRESTRICTED} contains every image, and what the attack may do is for its own parameters to say")
    return runs


def _require_shape(subject: AttackSubject, run: Run) -> None:
    for plain in subject.plain():
        _ = plain.points  # what is wrong there is wrong in general
    proposal = run.proposal
    if not isinstance(proposal, Tensor) or proposal.shape != run.x.shape:
        got = tuple(proposal.shape) if isinstance(proposal, Tensor) else type(proposal).__name__
        raise Failed(f"{run.called}: it returned {got} for {tuple(run.x.shape)}", fix="return one point per row of x")


def _require_no_success(run: Run) -> None:
    if run.success.any():
        raise Failed(
            f"{run.called}: the judge accepted {_of(torch.from_numpy(run.success))}", fix="ask the target, nothing else"
        )


def _same(run: Run, other: Run) -> bool:
    where = {row: position for position, row in enumerate(run.attacked)}
    mine = run.points[[where[row] for row in other.attacked]]
    return torch.allclose(mine, other.points, rtol=0, atol=SAME, equal_nan=True)


def _require_same(run: Run, other: Run, what: str, fix: str) -> None:
    if not _same(run, other):
        where = {row: position for position, row in enumerate(run.attacked)}
        apart = (run.points[[where[row] for row in other.attacked]] - other.points).abs().flatten(1).amax(1)
        raise Failed(
            f"{run.called}: {what} gave other points for {_of(apart > SAME)} (by up to {float(apart.max()):.3g})", fix=fix
        )


def _of(mask: Tensor) -> str:
    return f"{int(mask.sum())} of {plural(len(mask), 'point')}"
