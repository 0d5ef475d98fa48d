"""A defense as it is deployed: frozen, in evaluation mode, fed in micro-batches, averaged over its own randomness.

The judge and the target both look at a defense through this class, so that an attack is judged on what it attacked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_lite.errors import PluginError
from robustbench_lite.losses import Loss, with_slope
from robustbench_lite.randomness import Randomness, generator_states, keyed_draws
from robustbench_lite.surrogates import with_gradient_of

Forward = Callable[[Tensor], Tensor]

# One of several losses (n,) and its gradient (n, ...) -> (n,) by what it is chosen: the least, and never inf or NaN.
Rank = Callable[[Tensor, Tensor], Tensor]

# What the activations of one micro-batch may take on a CPU, where running out of memory kills instead of raising.
CPU_ACTIVATION_BYTES = 1 << 30
LARGEST_MICRO_BATCH = 512

# How many standard errors a lead over several draws must have: chance alone brings that about once in 220 tries of 16 draws.
SURE = 3.0


def misclassified(scores: Tensor, y: Tensor, rejects: bool = False) -> Tensor:
    """(n,) bool: some wrong class leads *strictly*. A tie is no success, nor are scores that are not finite.

    With ``rejects`` the last column means "refuse": a wrong class must lead that one too.
    """
    label = scores.gather(1, y[:, None])[:, 0]
    low, high = scores.aminmax(dim=1)
    if rejects:
        label = torch.maximum(label, scores[:, -1])
    return (high > label) & (high < math.inf) & (low > -math.inf)


def mean_lead(stacked: Tensor, y: Tensor, rejects: bool = False) -> tuple[Tensor, Tensor]:
    """(n,) by how much probability the best wrong class leads over the draws (n, passes, C), and (n,) bool: surely so.

    The lead is positive exactly where the average is ``misclassified``, otherwise 0. Surely: three of its standard errors.
    A search that asks for hundreds of points just beyond a boundary finds one that is misclassified on average in almost any
    number of draws.
    """
    scores = average(stacked)
    label, others = y[:, None], scores.scatter(1, y[:, None], -math.inf)
    if rejects:
        label = torch.where(scores[:, -1:] > scores.gather(1, label), scores.shape[1] - 1, label)
        others = others[:, :-1]
    either = torch.cat([others.argmax(1, keepdim=True), label], 1)[:, None].expand(-1, stacked.shape[1], -1)
    wrong, right = stacked.gather(2, either).exp().unbind(2)
    lead = wrong - right
    error = lead.std(1, correction=0) / math.sqrt(max(1, stacked.shape[1] - 1))
    found = torch.where(misclassified(scores, y, rejects), lead.mean(1).clamp_min(torch.finfo(lead.dtype).tiny), 0)
    return found, (found > SURE * error) & (found > 0)


def leads(scores: Tensor, y: Tensor, rejects: bool = False) -> Tensor:
    """(n,) by how much the best wrong class leads the label (and the refusal); 0 where none does, or scores are not finite."""
    wrong = misclassified(scores, y, rejects)
    label = scores.gather(1, y[:, None])[:, 0]
    if rejects:
        label, scores = torch.maximum(label, scores[:, -1]), scores[:, :-1]
    return torch.where(wrong, scores.amax(1) - label, 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that device or host memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def activation_bytes(module: nn.Module, image: Tensor) -> int:
    """Bytes of all module outputs for one image (1, C, H, W): what a backward pass keeps, to within a small factor."""
    total = image.numel() * image.element_size()

    def add(_: nn.Module, __: object, output: object) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    hooks = [m.register_forward_hook(add) for m in module.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[image.device] if image.is_cuda else []):
            module(image)
    finally:
        for hook in hooks:
            hook.remove()
    return total


class Deployed:
    """A defense behind one door: ``stack`` and ``scores`` without a graph, ``graph`` and ``loss_and_grad`` with one.

    module: [0, 1] NCHW in, logits out. num_classes: C. stochastic: two passes differ; then ``passes`` of them are averaged,
    as the logarithm of the mean probability. differentiable: where False, gradients are those of ``module.surrogate`` at
    the logits of the module itself (BPDA, arXiv:1802.00420). rejects: logits have C + 1 columns. micro_batch: most rows
    in one pass; estimated where None, and halved whenever memory runs out, which ``memory_history`` tells.

    ``ids`` (n,) are the examples' numbers and ``draw`` (n,) the number of each example's next pass: together with ``key``
    they fix every random number of a stochastic defense, whoever else is in the batch.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        num_classes: int,
        stochastic: bool = False,
        differentiable: bool = True,
        rejects: bool = False,
        micro_batch: int | None = None,
        name: str = "the defense",
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.num_classes = num_classes
        self.stochastic = stochastic
        self.rejects = rejects
        self.name = name
        self.micro_batch = micro_batch
        self.memory_history: list[str] = []
        self.surrogate: Forward | None = None if differentiable else getattr(module, "surrogate", None)
        # Whether all numbers that the module, and its surrogate, drew in their first pass were those of ``keyed_draws``.
        self._keyed_alone: dict[bool, bool] = {}

    def stack(self, x: Tensor, *, passes: int, key: str, ids: Tensor, draw: Tensor) -> Tensor:
        """(n, passes, C) scores of each pass: logits, or log-probabilities of a stochastic defense. No graph."""

        def run(rows: slice) -> tuple[Tensor, ...]:
            each: list[Tensor] = []
            for some in self._blocks(rows, passes, ids, draw):
                each += some.split(self._pass(some.copies(x[rows]), key, some.ids, some.draw, self.module))
            if passes == 1 and not self.stochastic:
                return (each[0][:, None],)
            return (torch.stack([e.log_softmax(1) if self.stochastic else e for e in each], 1),)

        with torch.no_grad():
            return self._in_chunks(len(x), run, passes)[0] if len(x) else x.new_zeros((0, passes, self._columns))

    def scores(self, x: Tensor, *, passes: int, key: str, ids: Tensor, draw: Tensor) -> Tensor:
        """(n, C) averaged scores. No graph."""
        if self.stochastic or passes > 1 or not len(x):
            return average(self.stack(x, passes=passes, key=key, ids=ids, draw=draw))
        with torch.no_grad():  # what a search asks for thousands of times
            return self._in_chunks(len(x), lambda rows: (self._pass(_part(x, rows), key, ids, draw, self.module),), 1)[0]

    def graph(self, x: Tensor, *, passes: int, key: str, ids: Tensor, draw: Tensor) -> Tensor:
        """(n, C) averaged scores with a graph back to ``x``."""

        def run(rows: slice) -> tuple[Tensor, ...]:
            each: list[Tensor] = []
            for some in self._blocks(rows, passes, ids, draw):
                each += some.split(self._differentiable_pass(some.copies(x[rows]), key, some.ids, some.draw))
            return (average(torch.stack([e.log_softmax(1) if self.stochastic else e for e in each], 1)),)

        return self._in_chunks(len(x), run, passes)[0] if len(x) else x.new_zeros((0, self._columns))

    def loss_and_grad(
        self, x: Tensor, loss: Loss, aux: tuple[Tensor, ...], *, passes: int, key: str, ids: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Averaged scores (n, C), and the mean over passes of the loss (n,) and of its gradient (like ``x``).

        The gradient is zero where the defense gives none (its output does not depend on the input through autograd).
        """

        def look(points: Tensor, given: Iterable[Tensor], ids: Tensor, draw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            leaf = points.detach().requires_grad_()
            with torch.enable_grad():
                logits = self._differentiable_pass(leaf, key, ids, draw)
                values, grad = _value_and_gradient(logits, leaf, loss, *given)
            return logits.detach(), values, torch.zeros_like(leaf) if grad is None else grad

        def run(rows: slice) -> tuple[Tensor, ...]:
            if passes == 1 and not self.stochastic:  # what a search asks for thousands of times
                return look(_part(x, rows), (_part(a, rows) for a in aux), ids, draw)
            each: list[Tensor] = []
            total_loss: Tensor | None = None
            total_grad: Tensor | None = None
            for some in self._blocks(rows, passes, ids, draw):
                found = look(some.copies(x[rows]), (some.copies(a[rows]) for a in aux), some.ids, some.draw)
                each += some.split(found[0])
                total_loss, total_grad = some.added(total_loss, found[1]), some.added(total_grad, found[2])
            if total_loss is None or total_grad is None:
                raise ValueError("passes must be at least 1")
            if passes == 1:
                return each[0].log_softmax(1) if self.stochastic else each[0], total_loss, total_grad
            joined = torch.stack([e.log_softmax(1) if self.stochastic else e for e in each], 1)
            return average(joined), total_loss / passes, total_grad / passes

        if not len(x):
            return x.new_zeros((0, self._columns)), x.new_zeros(0), torch.zeros_like(x)
        scores, value, grad = self._in_chunks(len(x), run, passes)
        return scores, value, grad

    def least_loss_and_grad(
        self, x: Tensor, losses: Loss, rank: Rank, aux: tuple[Tensor, ...], *, passes: int, key: str, ids: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """As ``loss_and_grad``, of that one of k losses (n, k) whose rank is least, for each example; and k.

        One pass forward and k backward. Gradients are ranked one after the other, so that no k of them are held at a time
        (but for averages over passes). Loss and gradient are zero where no rank is finite.
        """
        count = 0

        def run(rows: slice) -> tuple[Tensor, ...]:
            nonlocal count
            each: list[Tensor] = []
            values: Tensor | None = None
            gradients = iter(list[Tensor]())
            for some in self._blocks(rows, passes, ids, draw):
                leaf = some.copies(x[rows].detach()).requires_grad_()
                with torch.enable_grad():
                    logits = self._differentiable_pass(leaf, key, some.ids, some.draw)
                    columns = losses(logits, *(some.copies(a[rows]) for a in aux))
                each += some.split(logits.detach().log_softmax(1) if self.stochastic else logits.detach())
                values, found = some.added(values, columns.detach()), _gradients(columns, leaf)
                if passes > 1:
                    before: list[Tensor | None] = [*gradients] or [None] * columns.shape[1]
                    found = iter([some.added(a, b) for a, b in zip(before, found, strict=True)])
                gradients, count = found, columns.shape[1]
            if values is None:
                raise ValueError("passes must be at least 1")
            if passes > 1:
                values, gradients = values / passes, (total / passes for total in gradients)
            value, gradient = torch.zeros_like(values[:, 0]), torch.zeros_like(x[rows])
            least = torch.full_like(value, math.inf)
            for column, grad in zip(values.unbind(1), gradients, strict=True):
                size = rank(column, grad)
                nearer = size < least
                least, value = torch.where(nearer, size, least), torch.where(nearer, column, value)
                gradient = torch.where(nearer.view(-1, *(1,) * (grad.dim() - 1)), grad, gradient)
            return average(torch.stack(each, 1)), value, gradient

        if not len(x):
            return x.new_zeros((0, self._columns)), x.new_zeros(0), torch.zeros_like(x), 0
        scores, value, grad = self._in_chunks(len(x), run, passes)
        return scores, value, grad, count

    def fit_memory(self, x: Tensor) -> int:
        """Choose ``micro_batch`` from the activations of one image, unless it was given; x: (n, C, H, W), n >= 1."""
        if self.micro_batch is None:
            fits = LARGEST_MICRO_BATCH
            if not x.is_cuda:  # on a GPU the allocator raises, and halving finds the size
                fits = max(1, CPU_ACTIVATION_BYTES // activation_bytes(self.module, x[:1]))
            self.micro_batch = min(LARGEST_MICRO_BATCH, fits)
        return self.micro_batch

    @property
    def forwards_per_gradient(self) -> int:
        """Passes through the defense that one gradient takes: two with a surrogate."""
        return 2 if self.surrogate is not None else 1

    @property
    def _columns(self) -> int:
        return self.num_classes + self.rejects

    def _pass(self, x: Tensor, key: str, ids: Tensor, draw: Tensor, through: Forward) -> Tensor:
        before = None if x.is_inference() else x._version
        with self._keyed(key, ids, draw, through is self.module) if self.stochastic else nullcontext():
            logits = through(x)
        if before is not None and x._version != before:
            raise PluginError(  # the images are the judge's own, or the points that an attack goes on from
                f"{self.name} changes its input in place",
                hint="work on a copy in forward(), as x = x - mean does, not x -= mean",
            )
        if not isinstance(logits, Tensor) or logits.shape != (len(x), self._columns):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise PluginError(
                f"{self.name} returned {got} for {len(x)} images; expected logits of shape {(len(x), self._columns)}",
                hint="return one logit per class" + (", and one more for 'refuse'" if self.rejects else ""),
            )
        return logits if logits.dtype == torch.float32 else logits.float()

    def _differentiable_pass(self, x: Tensor, key: str, ids: Tensor, draw: Tensor) -> Tensor:
        if self.surrogate is None:
            return self._pass(x, key, ids, draw, self.module)
        soft = self._pass(x, key, ids, draw, self.surrogate)
        with torch.no_grad():
            exact = self._pass(x, key, ids, draw, self.module)
        return with_gradient_of(soft, exact)

    @contextmanager
    def _keyed(self, key: str, ids: Tensor, draw: Tensor, exact: bool) -> Iterator[None]:
        """Fix the random numbers of one pass: per example for ``randn_like``, per micro-batch for torch's generator."""
        noise = Randomness(key, ids)
        devices = [ids.device] if ids.is_cuda else []
        with keyed_draws(noise, draw) as keyed, torch.random.fork_rng(devices=devices):
            seed = noise.seed_for("global", int(ids[0]), int(draw[0]))
            torch.default_generator.manual_seed(seed)  # torch.manual_seed takes longer than a small network's pass
            if ids.is_cuda:
                torch.cuda.manual_seed(seed)
            before = generator_states(ids.device) if exact not in self._keyed_alone else None
            yield
            if before is not None:
                self._keyed_alone[exact] = keyed.calls > 0 and generator_states(ids.device) == before

    def _blocks(self, rows: slice, passes: int, ids: Tensor, draw: Tensor) -> Iterator[_Block]:
        """The passes over some rows, as many side by side as fit into a micro-batch.

        A single pass that draws nothing gets ``ids`` and ``draw`` as they are: nobody looks at them.
        """
        if passes == 1 and not self.stochastic:  # what a search asks for thousands of times
            yield _Block(rows.stop - rows.start, 1, ids, draw)
            return
        together = self._together(rows, passes)
        for first in range(0, passes, together):
            yield _Block.of(ids[rows], draw[rows] + first, min(together, passes - first))

    def _together(self, rows: slice, passes: int) -> int:
        """How many passes fit; one, where a batch draws something of its own: all copies would share it."""
        if passes == 1 or not all(self._keyed_alone.get(exact) for exact in {True, self.surrogate is None}):
            return 1
        n: int = rows.stop - rows.start
        return min(passes, max(1, (self.micro_batch or 0) // n))

    def _in_chunks(self, n: int, run: Callable[[slice], tuple[Tensor, ...]], passes: int) -> tuple[Tensor, ...]:
        """Run over micro-batches and join them; where memory runs out, halve and repeat only what failed."""
        parts: list[tuple[Tensor, ...]] = []
        done = 0
        while done < n:
            rows = slice(done, min(done + (self.micro_batch or n), n))
            try:
                parts.append(run(rows))
            except (RuntimeError, MemoryError) as error:
                taken = (rows.stop - rows.start) * self._together(rows, passes)
                if not is_out_of_memory(error) or taken == 1:
                    raise
                self.micro_batch = taken // 2
                self.memory_history.append(f"out of memory at {taken} rows; went on with {self.micro_batch}")
                out_of_memory = True
            else:
                done = rows.stop
                out_of_memory = False
            if out_of_memory and torch.cuda.is_available():  # after the exception let go of the failed pass
                torch.cuda.empty_cache()
        return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _part(values: Tensor, rows: slice) -> Tensor:
    """``values[rows]``, which costs as much as other small operations where the rows are all of them."""
    return values if rows.stop - rows.start == len(values) else values[rows]


@dataclass(frozen=True)
class _Block:
    """Several passes over the same n rows, side by side in one batch: all rows of the first pass, then all of the second.

    A defense that draws a number for each image draws the same ones as in one pass after the other. ids, draw: of each copy.
    """

    n: int
    count: int
    ids: Tensor
    draw: Tensor

    @classmethod
    def of(cls, ids: Tensor, draw: Tensor, count: int) -> _Block:
        n = len(ids)
        if count > 1:
            ids, draw = ids.repeat(count), draw.repeat(count) + torch.arange(count, device=draw.device).repeat_interleave(n)
        return cls(n, count, ids, draw)

    def copies(self, rows: Tensor) -> Tensor:
        """Something of each row (n, ...), once for each pass."""
        return rows.repeat(self.count, *(1,) * (rows.dim() - 1)) if self.count > 1 else rows

    def split(self, found: Tensor) -> Sequence[Tensor]:
        """What was found for the copies, pass by pass."""
        return torch.split(found, self.n) if self.count > 1 else (found,)

    def added(self, total: Tensor | None, found: Tensor) -> Tensor:
        """A sum over passes, taken in their order, however many are side by side."""
        first, *others = self.split(found)
        total = first if total is None else total + first
        for one in others:
            total = total + one
        return total


class Ensemble(Deployed):
    """Several defenses as one that answers with the mean of their logits, pass by pass; what they refuse is left out.

    Each keeps its own randomness and its own surrogate gradient.
    """

    def __init__(self, parts: Sequence[Deployed]) -> None:
        super().__init__(
            nn.ModuleList([part.module for part in parts]),
            num_classes=parts[0].num_classes,
            stochastic=any(part.stochastic for part in parts),
            micro_batch=max(1, min(part.micro_batch or LARGEST_MICRO_BATCH for part in parts) // len(parts)),
            name=" and ".join(part.name for part in parts),
        )
        self._parts = tuple(parts)

    def _pass(self, x: Tensor, key: str, ids: Tensor, draw: Tensor, through: Forward) -> Tensor:
        return self._mean([p._pass(x, f"{key}|{i}", ids, draw, p.module) for i, p in enumerate(self._parts)])

    def _differentiable_pass(self, x: Tensor, key: str, ids: Tensor, draw: Tensor) -> Tensor:
        return self._mean([p._differentiable_pass(x, f"{key}|{i}", ids, draw) for i, p in enumerate(self._parts)])

    def _mean(self, logits: Sequence[Tensor]) -> Tensor:
        return torch.stack([each[:, : self.num_classes] for each in logits]).mean(0)


def _value_and_gradient(logits: Tensor, leaf: Tensor, loss: Loss, *aux: Tensor) -> tuple[Tensor, Tensor | None]:
    """A loss (n,) of logits that were made of ``leaf``, and its gradient there; None where autograd has none."""
    if (both := with_slope(loss)) is None:
        values = start = loss(logits, *aux)
        slope = torch.ones_like(start)
    else:
        (values, slope), start = both(logits.detach(), *aux), logits
    if not start.requires_grad:
        return values, None
    return values.detach(), torch.autograd.grad(start, leaf, slope, allow_unused=True)[0]


def _gradients(columns: Tensor, leaf: Tensor) -> Iterator[Tensor]:
    """The gradient of each column (n, k) of losses with respect to ``leaf``, made when it is asked for; zero where none is."""
    last = columns.shape[1] - 1
    for number, unit in enumerate(torch.eye(last + 1, dtype=columns.dtype, device=columns.device).unbind()):
        grad = None
        if columns.requires_grad:
            chosen = unit.expand_as(columns)  # columns.unbind() would fill the other columns' gradients with zeros, each time
            (grad,) = torch.autograd.grad(columns, leaf, chosen, retain_graph=number < last, allow_unused=True)
        yield torch.zeros_like(leaf) if grad is None else grad.detach()


def average(stacked: Tensor) -> Tensor:
    """(n, C) logarithm of the mean probability of (n, passes, C) log-probabilities; the scores themselves for one pass."""
    passes = stacked.shape[1]
    return stacked[:, 0] if passes == 1 else stacked.logsumexp(1) - math.log(passes)
