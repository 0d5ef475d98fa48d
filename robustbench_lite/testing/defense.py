"""The conformance suite of defenses: what the core relies on when it deploys, attacks and judges a module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_lite import losses
from robustbench_lite.deployed import Deployed
from robustbench_lite.diagnostics.behaviour import autograd_calls
from robustbench_lite.errors import RblError
from robustbench_lite.randomness import generator_states
from robustbench_lite.registry import Registry
from robustbench_lite.resolve import ResolvedDefense
from robustbench_lite.testing.checks import Failed, Outcome, Skipped, Suite, describe, plural
from robustbench_lite.testing.common import COMMON
from robustbench_lite.testing.defense_subject import DRAWS, SAME, DefenseSubject, N
from robustbench_lite.testing.elsewhere import Elsewhere, MixedDevices
from robustbench_lite.weights import state_hash

DEFENSE_SUITE: Suite[DefenseSubject] = Suite("defense", *COMMON)
_check = DEFENSE_SUITE.check


def check_defense(
    registry: Registry, selector: str, dataset: str = "", data: Path | None = None, device: str = "cpu"
) -> list[Outcome]:
    """Run the conformance suite on a defense."""
    return list(DEFENSE_SUITE.run(DefenseSubject(registry, selector, dataset, data, device)))


# -------------------------------------------------------------------------------------------------------- is it there


@_check
def weights_found(subject: DefenseSubject) -> None:
    """Its weights for the data set are found; without them the other checks look at an untrained module."""
    _ = subject.found
    if subject.untrained:
        raise Skipped(f"no weights for {subject.images.info.name}: checked untrained", fix=subject.untrained)


@_check
def builds(subject: DefenseSubject) -> None:
    """Its factory builds a torch.nn.Module, and a wrapper wraps what it is given."""
    _ = subject.found
    try:
        subject.build()
    except RblError as error:
        raise Failed(error.message, fix=error.hint) from error


@_check
def same_module_twice(subject: DefenseSubject) -> None:
    """It builds the same module every time: workers build it anew, and its state is part of a result's key."""
    first = subject.original
    if state_hash(first) != state_hash(subject.build()):
        raise Failed("two builds have different weights", fix="load all weights from a file, or seed a generator of its own")


# ------------------------------------------------------------------------------------------------- what does it return


@_check
def logits_shape(subject: DefenseSubject) -> None:
    """It returns one logit per image and class, and one more where it may refuse (rejects)."""
    module, x = subject.module, subject.x
    for n in (len(x), 1):
        with torch.no_grad():
            logits = module(x[:n])
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != (n, subject.columns):
            extra = f" and one to refuse, {subject.columns} in all" if subject.built.rejects else ""
            raise Failed(
                f"it returned {shape} for {plural(n, 'image')}",
                fix=f"return {subject.images.info.num_classes} logits{extra}: shape (n, {subject.columns})",
            )


@_check
def float32(subject: DefenseSubject) -> None:
    """It computes in float32 where its input is float32."""
    logits = subject.logits(subject.module, subject.x)
    if logits.dtype != torch.float32:
        raise Failed(f"its logits are {logits.dtype}", fix="return float32: half precision makes rounding a defense")


@_check
def finite(subject: DefenseSubject) -> None:
    """Its logits are finite, on real images and on black, grey and white ones."""
    x = torch.cat([subject.x, *(torch.full_like(subject.x[:1], level) for level in (0.0, 0.5, 1.0))])
    bad = ~subject.logits(subject.module, x).isfinite().all(1)
    if bool(bad.any()):
        where = "images" if bool(bad[:N].any()) else "plain black, grey or white images"
        raise Failed(
            f"it gives NaN or infinite logits on {int(bad.sum())} of {len(bad)} {where}", fix="divide by no zero range"
        )


@_check
def logits_not_probabilities(subject: DefenseSubject) -> None:
    """It returns logits, not probabilities: a softmax at the end hides the gradient from attacks."""
    logits = subject.logits(subject.module, subject.x)
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all()):
        raise Failed("every row is non-negative and sums to 1", fix="return what goes into the softmax, or its logarithm")


@_check
def better_than_chance(subject: DefenseSubject) -> None:
    """It classifies clean images better than a guess; the core refuses to attack what does not."""
    if subject.untrained:
        raise Skipped("it is untrained", fix=subject.untrained)
    if not subject.images.real:
        raise Skipped("there are no real images to tell by", fix="rbl check NAME --dataset digits")
    x, y = subject.images.x.clone(), subject.images.y
    right = int((subject.keyed()(x, torch.arange(len(x))).argmax(1) == y).sum())
    if right * subject.images.info.num_classes <= 1.5 * len(y):
        raise Failed(
            f"it is right on {right} of {len(y)} clean images of {subject.images.info.name}",
            fix="check its weights, the order of its classes, and that it takes [0, 1] images and normalises inside",
        )


# --------------------------------------------------------------------------------------- what does a forward pass change


@_check
def state_unchanged(subject: DefenseSubject) -> None:
    """A forward pass in evaluation mode changes no weight, no buffer and no mode."""
    module = subject.module
    if any(part.training for part in module.modules()):
        raise Failed("parts of it stay in training mode after eval()", fix="do not override train() or eval()")
    before = state_hash(module)
    for draw in range(2):
        subject.logits(module, subject.x, draw)
    if state_hash(module) != before or any(part.training for part in module.modules()):
        raise Failed("a forward pass changes its state or its mode", fix="keep no statistics in evaluation mode")


@_check
def input_unchanged(subject: DefenseSubject) -> None:
    """A forward pass leaves its input as it is."""
    x = subject.x
    subject.logits(subject.module, x)
    if not torch.equal(x, subject.x):
        raise Failed("it changes its input in place", fix="clone the input first, or avoid in-place operations on it")


@_check
def global_generator_unused(subject: DefenseSubject) -> None:
    """A forward pass draws nothing from torch's, numpy's or Python's global generator; randn_like draws by example instead."""
    if subject.built.stochastic:
        raise Skipped("it is stochastic: see the check `keyed-draws`")
    module, x = subject.module, subject.x
    with torch.no_grad(), subject.seeded(0):
        before = generator_states(x.device)
        module(x)
        if generator_states(x.device) != before:
            raise Failed(
                "it draws random numbers and its spec does not say stochastic=True",
                fix="declare stochastic=True, and draw with robustbench_lite.randn_like",
            )


@_check
def no_autograd_inside(subject: DefenseSubject) -> None:
    """A forward pass calls no autograd: a model that optimises its input is attacked on what it hides."""
    with autograd_calls() as calls:
        subject.logits(subject.module, subject.x[:2])
    if calls:
        raise Failed(
            f"a forward pass calls {calls[0]}",
            fix="test-time optimisation needs a protocol of its own (arXiv:2202.13711); declare differentiable=False",
        )


@_check
def batch_does_not_matter(subject: DefenseSubject) -> None:
    """An image's logits do not depend on the other images of the batch, nor on their order."""
    x, ids, keyed = subject.x, torch.arange(N), subject.keyed()
    together = keyed(x, ids)
    same = SAME * max(1.0, float(together.nan_to_num().abs().max()))  # logits in the thousands are rounded as such
    if not torch.allclose(together, keyed(x, ids), rtol=0, atol=same, equal_nan=True):
        raise Skipped(f"it is random: see the check `{'keyed-draws' if subject.built.stochastic else 'stochastic-flag'}`")
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    alone = torch.cat([keyed(x[i : i + 1], ids[i : i + 1]) for i in range(N)])
    permuted = keyed(x[order], ids[order])[order.argsort()]
    for other, what in ((alone, "alone"), (permuted, "in another order")):
        apart = float((together - other).nan_to_num().abs().max())
        if apart > same:
            fix = "use no statistics of the batch (batch norm in training mode, ranks, means over images)"
            if subject.built.stochastic:
                fix += "; draw with robustbench_lite.randn_like(x), one row per image"
            raise Failed(f"logits differ by up to {apart:.3g} where images come {what}", fix=fix)


# -------------------------------------------------------------------------------------------------- are its flags true


@_check
def stochastic_flag(subject: DefenseSubject) -> None:
    """Two passes differ exactly where its spec says stochastic."""
    passes = [subject.logits(subject.module, subject.x, draw) for draw in range(DRAWS)]
    apart = max(float((passes[0] - other).nan_to_num().abs().max()) for other in passes[1:])
    if subject.built.stochastic and apart == 0:
        raise Failed("its spec says stochastic and all passes agree", fix="declare stochastic=False, or let it draw")
    if not subject.built.stochastic and apart > 1e-6:
        raise Failed(
            f"two passes differ by up to {apart:.3g} and its spec does not say stochastic",
            fix="declare stochastic=True: then attacks average over its randomness",
        )


@_check
def keyed_draws(subject: DefenseSubject) -> None:
    """The same examples and draw numbers give the same logits, other draw numbers others (stochastic defenses)."""
    if not subject.built.stochastic:
        raise Skipped("it is deterministic")
    x, ids, keyed = subject.x, torch.arange(N), subject.keyed()
    first, second, other = (keyed(x, ids, draw) for draw in (0, 0, 1))
    fix = "draw with robustbench_lite.randn_like or rand_like, from no generator of its own"
    if not torch.equal(first, second):
        raise Failed("the same draw numbers gave other logits", fix=fix)
    if torch.equal(first, other):
        if torch.equal(subject.logits(subject.module, x, 0), subject.logits(subject.module, x, 1)):
            raise Skipped("it draws nothing: see the check `stochastic-flag`")
        raise Failed("all draw numbers give the same logits", fix=fix)


@_check
def gradient(subject: DefenseSubject) -> None:
    """Its gradient, or its surrogate's where it declares differentiable=False, is finite and not zero."""
    resolved = subject.built
    if not resolved.attackable_by_gradient:
        raise Skipped("it declares that there is no gradient to follow (surrogate=False)")
    module = subject.module
    subject.logits(module, subject.x[:1])
    if not resolved.differentiable and not callable(getattr(module, "surrogate", None)):
        raise Failed(
            "its spec says differentiable=False and its module has no method surrogate(x)",
            fix="add the method (robustbench_lite.bpda helps), or declare surrogate=False",
        )
    through: Any = module if resolved.differentiable else module.surrogate
    x = subject.x.requires_grad_()
    try:
        with torch.enable_grad(), subject.seeded(0):
            logits = through(x)
            (found,) = torch.autograd.grad(losses.margin(logits, logits.argmax(1).detach()).sum(), x, allow_unused=True)
    except RuntimeError as error:
        raise Failed(f"there is no gradient: {describe(error)}", fix=_no_gradient(resolved)) from error
    if logits.shape != (N, subject.columns):
        raise Failed(f"surrogate(x) returned shape {tuple(logits.shape)}", fix=f"return logits (n, {subject.columns})")
    if found is None or not bool(found.isfinite().all()):
        state = "zero" if found is None else "not finite"
        raise Failed(f"the gradient is {state}", fix=_no_gradient(resolved))
    zero = (found == 0).flatten(1).all(1)
    if 2 * int(zero.sum()) > N:
        raise Failed(f"the gradient is exactly zero on {int(zero.sum())} of {N} images", fix=_no_gradient(resolved))


@_check
def device_of_the_images(subject: DefenseSubject) -> None:
    """It works where the images are: nothing that it keeps or makes is left behind on the CPU.

    That needs no GPU: everything is on the CPU, and the module's parameters and buffers and the images say that they are not.
    """
    resolved, module, there = subject.built, subject.module, Elsewhere()
    subject.logits(module, subject.x[:1])
    module = module.cpu()
    deployed = Deployed(
        module,
        num_classes=subject.images.info.num_classes,
        stochastic=resolved.stochastic,
        differentiable=resolved.differentiable,
        rejects=resolved.rejects,
    )
    there.move(module)
    x, y, ids = there.moved(subject.x.cpu()), there.moved(subject.images.y[:N]), torch.arange(N)
    fix = "keep tensors with register_buffer, give device=x.device to what makes one, and take .cpu() before .numpy()"
    try:
        with there:
            if resolved.attackable_by_gradient:
                deployed.loss_and_grad(x, losses.margin, (y,), passes=1, key="check", ids=ids, draw=torch.zeros_like(ids))
            else:
                deployed.scores(x, passes=1, key="check", ids=ids, draw=torch.zeros_like(ids))
    except MixedDevices as error:
        raise Failed(str(error), fix=fix) from error
    except Exception as error:
        raise Skipped(describe(error)) from error


def _no_gradient(resolved: ResolvedDefense) -> str:
    if not resolved.differentiable:
        return "let surrogate(x) return logits with a useful gradient (robustbench_lite.bpda helps)"
    return "declare differentiable=False and give the module a method surrogate(x) (robustbench_lite.bpda helps)"
