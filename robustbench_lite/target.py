"""What an attack gets to see of a defense, and what the core remembers of it.

A target enforces the access that an attack declared, counts what it costs per example, and keeps the best point that it
was shown inside the threat model, so that nothing found is lost. It judges nothing: see ``judge.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustbench_lite.deployed import Deployed, Loss, misclassified
from robustbench_lite.errors import AccessError, BudgetExceeded, PluginError

if TYPE_CHECKING:
    from robustbench_lite.threat import Threat

_ALLOWED = {
    "gradient": frozenset({"gradient", "scores", "decision"}),
    "scores": frozenset({"scores", "decision"}),
    "decision": frozenset({"decision"}),
    "transfer": frozenset({"decision"}),
    "none": frozenset[str](),
}

# Whether points (n, ...) of examples (n,) stay misclassified: (n,) bool.
Confirm = Callable[[Tensor, Tensor], Tensor]

# Stands for the rows of a call that did not say which examples its inputs belong to.
NOBODY = torch.empty(0, dtype=torch.int64)


class Ledger:
    """What one attack on one shard has cost and found so far, per example; shared by a target and its selections.

    queries: (N,) calls; forwards, backwards: (N,) passes, so that a stochastic defense under EOT counts every draw.
    broken: (N,) bool; best: the best point seen (N, ...); size: its size (N,), inf where there is none. unattributed: rows
    that came without saying whose they were.
    """

    def __init__(self, x: Tensor, y: Tensor, threat: Threat, *, minimal: bool, rejects: bool, budget: int | None) -> None:
        n = len(x)
        self.x, self.y, self.threat = x, y, threat
        self.minimal, self.rejects, self.budget = minimal, rejects, budget
        self.queries = torch.zeros(n, dtype=torch.int64, device=x.device)
        self.forwards = torch.zeros_like(self.queries)
        self.backwards = torch.zeros_like(self.queries)
        self.draws = torch.zeros_like(self.queries)
        self.confirmations = torch.zeros_like(self.queries)
        self.broken = torch.zeros(n, dtype=torch.bool, device=x.device)
        self.size = torch.full((n,), float("inf"), dtype=torch.float64, device=x.device)
        self.best = x.clone()
        self.unattributed = 0

    def admit(self, rows: Tensor | None, n: int) -> None:
        """Take one query for each row, all or none; raises BudgetExceeded."""
        if self.budget is None:
            _add(self.queries, rows, 1)
            return
        after = self.queries.clone()
        _add(after, rows, 1)
        over = after > self.budget
        exhausted = over if rows is None else over[rows]
        if bool(exhausted.any()):
            raise BudgetExceeded(
                f"the query budget of {self.budget} per example is used up for {int(exhausted.sum())} of {n} rows",
                rows=tuple(exhausted.nonzero()[:, 0].tolist()),
                hint="drop these rows and go on, or return the points that you have: what was found is kept",
            )
        self.queries = after

    def remember(self, rows: Tensor | None, x: Tensor, scores: Tensor, confirmed: Confirm | None = None) -> None:
        """Keep every point of ``x`` that is misclassified, inside the threat model, and better than what is known.

        confirmed: asked for the points (n, ...) of examples (n,) that would be kept; those it denies are not.
        """
        y = self.y if rows is None else self.y[rows]
        new = misclassified(scores, y, self.rejects)
        if not self.minimal:
            new &= ~(self.broken if rows is None else self.broken[rows])
        at = new.nonzero()[:, 0]
        if not len(at):
            return
        owner = at if rows is None else rows[at]
        clean, points = self.x[owner], x[at].detach()
        size = self.threat.size(clean, points)
        inside = self.threat.contains(clean, points) & self.threat.in_box(points)
        better = inside & (size < self.size[owner])
        owner, points, size = owner[better], points[better], size[better]
        if confirmed is not None and len(owner):
            stays = confirmed(owner, points)
            owner, points, size = owner[stays], points[stays], size[stays]
        if not len(owner):
            return
        if rows is not None:  # an example may stand in several rows: the smallest of its points, then the first
            order = size.argsort(stable=True)
            position = torch.arange(len(order), device=order.device)
            first = torch.full_like(self.queries, len(order)).scatter_reduce_(0, owner[order], position, "amin")
            keep = order[first[owner[order]] == position]
            owner, points, size = owner[keep], points[keep], size[keep]
        self.best[owner] = points
        self.size[owner] = size
        self.broken[owner] = True


class Target:
    """One attack's view of one defense on N examples. Calls take n inputs; ``index`` (n,) says which examples they are.

    Without ``index`` the inputs are all N examples in order. On a stochastic defense a call averages ``eot`` draws, and an
    example counts as beaten when its point is also misclassified on the mean of ``confirm`` further draws: otherwise the
    luckiest of many queries would end an attack that the judge then finds to have failed.

    Raises AccessError for more than the declared access, BudgetExceeded at the query budget, PluginError where ``index``
    does not fit. All inputs are (n, C, H, W) in [0, 1].
    """

    def __init__(
        self,
        deployed: Deployed,
        ledger: Ledger,
        *,
        access: str,
        key: str,
        ids: Tensor,
        eot: int = 1,
        confirm: int = 0,
        rows: Tensor | None = None,
        attack: str = "the attack",
    ) -> None:
        self._deployed = deployed
        self._ledger = ledger
        self._access = access
        self._key = key
        self._ids = ids
        self._eot = eot if deployed.stochastic else 1
        self._confirm = confirm if deployed.stochastic else 0
        self._rows = rows
        self._attack = attack

    # What the attack asks of the defense.

    def __call__(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """(n, C) logits with a graph back to ``x``, for code that runs autograd itself. Needs access ``gradient``."""
        self._require("gradient", "gradients")
        rows, ids, draw = self._admit(x, index, self._eot)
        scores = self._deployed.graph(x, passes=self._eot, key=self._key, ids=ids, draw=draw)
        self._note(rows, x, scores.detach(), self._eot * self._deployed.forwards_per_gradient)
        if scores.requires_grad:
            scores.register_hook(lambda _: self._count_backward(rows))  # type: ignore[no-untyped-call]
        return scores

    def logits(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """(n, C) logits without a graph. Needs access ``scores``."""
        self._require("scores", "logits")
        return self._query(x, index)

    def labels(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """(n,) predicted classes; C means "refused" for a defense that rejects. Needs access ``decision``."""
        self._require("decision", "labels")
        return self._query(x, index).argmax(1)

    def loss_and_grad(self, x: Tensor, loss: Loss, *aux: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, C), loss (n,) and the loss's gradient with respect to ``x``, all detached. Needs access ``gradient``.

        ``loss(logits, *aux)`` returns (n,); each of ``aux`` has one entry per input. A stochastic defense is averaged over
        the protocol's EOT draws.
        """
        self._require("gradient", "gradients")
        rows, ids, draw = self._admit(x, index, self._eot)
        scores, value, grad = self._deployed.loss_and_grad(x, loss, aux, passes=self._eot, key=self._key, ids=ids, draw=draw)
        self._note(rows, x, scores, self._eot * self._deployed.forwards_per_gradient)
        self._count_backward(rows)
        return scores, value, grad

    # What is known so far.

    def __len__(self) -> int:
        return len(self._ledger.y) if self._rows is None else len(self._rows)

    @property
    def num_classes(self) -> int:
        """How many classes the defense tells apart."""
        return self._deployed.num_classes

    @property
    def access(self) -> str:
        """The access that the attack declared."""
        return self._access

    @property
    def budget(self) -> int | None:
        """Queries allowed per example, or None."""
        return self._ledger.budget

    @property
    def broken(self) -> Tensor:
        """(N,) bool: examples already beaten inside the threat model."""
        return self._mine(self._ledger.broken)

    @property
    def forwards(self) -> Tensor:
        """(N,) forward passes so far."""
        return self._mine(self._ledger.forwards)

    @property
    def backwards(self) -> Tensor:
        """(N,) backward passes so far."""
        return self._mine(self._ledger.backwards)

    @property
    def queries(self) -> Tensor:
        """(N,) calls so far; a call averaged over EOT draws is one."""
        return self._mine(self._ledger.queries)

    @property
    def unattributed(self) -> int:
        """Rows queried without saying which example they belong to."""
        return self._ledger.unattributed

    def best(self, otherwise: Tensor) -> Tensor:
        """(N, C, H, W): the best point seen of each beaten example, and ``otherwise``'s row for the others."""
        broken = self.broken
        return torch.where(broken.view(-1, *(1,) * (otherwise.dim() - 1)), self._mine(self._ledger.best), otherwise)

    def select(self, rows: Tensor) -> Target:
        """The same target for some of its examples; ``rows`` is a LongTensor (n,) or a bool mask (N,)."""
        chosen = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        inner = chosen if self._rows is None else self._rows[chosen]
        return Target(
            self._deployed,
            self._ledger,
            access=self._access,
            key=self._key,
            ids=self._ids,
            eot=self._eot,
            confirm=self._confirm,
            rows=inner,
            attack=self._attack,
        )

    # Accounting.

    def _query(self, x: Tensor, index: Tensor | None) -> Tensor:
        rows, ids, draw = self._admit(x, index, self._eot)
        scores = self._deployed.scores(x, passes=self._eot, key=self._key, ids=ids, draw=draw)
        self._note(rows, x, scores, self._eot)
        return scores

    def _require(self, level: str, what: str) -> None:
        if level not in _ALLOWED[self._access]:
            raise AccessError(
                f"{self._attack} declared access {self._access!r} and asked for {what}",
                hint=f"declare access={level!r} in its AttackSpec, or use what {self._access!r} allows",
            )

    def _admit(self, x: Tensor, index: Tensor | None, passes: int) -> tuple[Tensor | None, Tensor, Tensor]:
        """Attribute the inputs, take their queries from the budget, and number their draws.

        Returns the ledger's rows (None for all in order, NOBODY where unknown), the examples' ids and their draw numbers.
        """
        ledger = self._ledger
        if index is None and len(x) != len(self):
            if ledger.budget is not None:
                raise PluginError(
                    f"{self._attack} queried {len(x)} inputs for {len(self)} examples under a query budget",
                    hint="pass index=, the example that each input belongs to",
                )
            ledger.unattributed += len(x)
            first = ledger.unattributed - len(x)
            return NOBODY, self._ids.new_full((len(x),), -1), torch.arange(first, first + len(x), device=x.device) * passes
        rows = self._rows if index is None else self._global(index, len(x))
        ledger.admit(rows, len(x))
        if not self._deployed.stochastic:
            return rows, self._ids, self._ids
        ids = self._ids if rows is None else self._ids[rows]
        draw = (ledger.draws if rows is None else ledger.draws[rows]).clone()
        if rows is not None:
            draw += _occurrence(rows) * passes
        _add(ledger.draws, rows, passes)
        return rows, ids, draw

    def _global(self, index: Tensor, n: int) -> Tensor:
        if index.dtype != torch.int64 or index.shape != (n,):
            raise PluginError(
                f"{self._attack} passed an index of shape {tuple(index.shape)} and type {index.dtype} for {n} inputs",
                hint="index is a LongTensor with one row number per input",
            )
        return index if self._rows is None else self._rows[index]

    def _note(self, rows: Tensor | None, x: Tensor, scores: Tensor, passes: int) -> None:
        if rows is NOBODY:
            return
        _add(self._ledger.forwards, rows, passes)
        self._ledger.remember(rows, x, scores, self._confirmed if self._confirm else None)

    def _confirmed(self, owner: Tensor, x: Tensor) -> Tensor:
        """(n,) bool: whether points stay misclassified on draws of their own, which the attack never sees."""
        ledger = self._ledger
        draw = ledger.confirmations[owner] + _occurrence(owner) * self._confirm
        key = f"{self._key}|confirm"
        scores = self._deployed.scores(x, passes=self._confirm, key=key, ids=self._ids[owner], draw=draw)
        _add(ledger.confirmations, owner, self._confirm)
        _add(ledger.forwards, owner, self._confirm)
        return misclassified(scores, ledger.y[owner], ledger.rejects)

    def _count_backward(self, rows: Tensor | None) -> None:
        if rows is not NOBODY:
            _add(self._ledger.backwards, rows, self._eot)

    def _mine(self, values: Tensor) -> Tensor:
        return values.clone() if self._rows is None else values[self._rows]


def _add(counter: Tensor, rows: Tensor | None, amount: int) -> None:
    """Add ``amount`` once for each occurrence of a row."""
    if rows is None:
        counter += amount
    else:
        counter.index_add_(0, rows, torch.full_like(rows, amount))


def _occurrence(rows: Tensor) -> Tensor:
    """(n,) how often the same row stands before this one: 0 for the first, 1 for the second."""
    order = rows.argsort(stable=True)
    ordered = rows[order]
    position = torch.arange(len(rows), device=rows.device)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(starts, position, torch.zeros_like(position)).cummax(0).values
    return torch.empty_like(position).scatter_(0, order, position - first)
