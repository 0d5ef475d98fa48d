"""What an attack on one shard has cost and found so far, per example: what targets write, and the judge reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustbench_lite.deployed import leads, misclassified
from robustbench_lite.errors import BudgetExceeded

if TYPE_CHECKING:
    from robustbench_lite.threat import Threat

# What is counted of each example: see the properties of these names.
COUNTERS = ("queries", "forwards", "backwards", "draws", "confirmations")

# How many calls, each for other rows than the one before, are added up before they are entered.
PENDING = 64

# Whether points (n, ...) of examples (n,) stay misclassified: (n,) bool.
Confirm = Callable[[Tensor, Tensor], Tensor]


class Remembered:
    """Rows that were given, and whether they are given again: the same tensor, not written to since."""

    def __init__(self, rows: Tensor | None) -> None:
        self._given, self._version = rows, 0 if rows is None else rows._version
        self.rows = None if rows is None else rows.clone()

    def is_still(self, rows: Tensor | None) -> bool:
        """Whether ``rows`` are these."""
        return rows is self._given and (rows is None or rows._version == self._version)


class _Calls:
    """Calls in sequence for the same rows, which is what most searches make. amounts: what they add to each counter."""

    def __init__(self, rows: Tensor | None) -> None:
        self.of = Remembered(rows)
        self.amounts: dict[str, int] = {}
        self.labels: Tensor | None = None


class Ledger:
    """What one attack on one shard has cost and found so far, per example; shared by a target and its selections.

    Calls are counted one by one, and passes so that a stochastic defense under EOT counts every draw. broken: (N,) bool; best:
    the best point seen (N, ...); size: its size (N,), inf where there is none; member: (N,) the number of the member that found
    it, 0 for the attack itself. finds: how many calls found something; while it stays, so does ``broken``. unattributed: rows
    that came without saying whose they were.
    surrogates: the ledgers of the defenses that the attack is crafted on.
    """

    def __init__(self, x: Tensor, y: Tensor, threat: Threat, *, minimal: bool, rejects: bool, budget: int | None) -> None:
        n = len(x)
        self.x, self.y, self.threat = x, y, threat
        self.minimal, self.rejects, self.budget = minimal, rejects, budget
        self.surrogates: list[SurrogateLedger] = []
        self._counts = {name: torch.zeros(n, dtype=torch.int64, device=x.device) for name in COUNTERS}
        self._pending = [_Calls(None)]
        self.broken = torch.zeros(n, dtype=torch.bool, device=x.device)
        self.size = torch.full((n,), float("inf"), dtype=torch.float64, device=x.device)
        self.best = x.clone()
        self.member = torch.zeros(n, dtype=torch.int16, device=x.device)
        self.finds = 0
        self.unattributed = 0
        self.notes: dict[str, None] = {}  # an ordered set

    @property
    def queries(self) -> Tensor:
        """(N,) calls so far."""
        return self._counted("queries")

    @property
    def forwards(self) -> Tensor:
        """(N,) forward passes so far."""
        return self._counted("forwards")

    @property
    def backwards(self) -> Tensor:
        """(N,) backward passes so far."""
        return self._counted("backwards")

    @property
    def draws(self) -> Tensor:
        """(N,) draws of a stochastic defense that were seen."""
        return self._counted("draws")

    @property
    def confirmations(self) -> Tensor:
        """(N,) draws that confirmed points, which the attack never saw."""
        return self._counted("confirmations")

    def add(self, counter: str, rows: Tensor | None, amount: int) -> None:
        """Add ``amount`` to one of ``COUNTERS`` once for each occurrence of a row; None for all.

        It is entered when somebody asks, or when much has come together: entering takes as long as other small operations.
        """
        amounts = self._calls(rows).amounts
        amounts[counter] = amounts.get(counter, 0) + amount

    def _calls(self, rows: Tensor | None) -> _Calls:
        """The last calls, if they were for these rows, otherwise new ones."""
        if not self._pending[-1].of.is_still(rows):
            if len(self._pending) >= PENDING:
                self._enter()
            self._pending.append(_Calls(rows))
        return self._pending[-1]

    def _counted(self, counter: str) -> Tensor:
        self._enter()
        return self._counts[counter]

    def _enter(self) -> None:
        """Enter what was added up."""
        for name, counter in self._counts.items():
            some = [(calls.of.rows, calls.amounts[name]) for calls in self._pending if name in calls.amounts]
            for amount in (amount for rows, amount in some if rows is None):
                counter += amount
            if of_rows := [(rows, amount) for rows, amount in some if rows is not None]:
                amounts = torch.cat([torch.full_like(rows, amount) for rows, amount in of_rows])
                counter.index_add_(0, torch.cat([rows for rows, _ in of_rows]), amounts)
        del self._pending[:-1]
        self._pending[-1].amounts.clear()

    def labels(self, rows: Tensor | None) -> Tensor:
        """The labels of these examples, kept until other rows are asked for."""
        calls = self._calls(rows)
        if calls.labels is None:
            calls.labels = self.y if rows is None else self.y.index_select(0, rows)
        return calls.labels

    def admit(self, rows: Tensor | None, n: int) -> None:
        """Take one query for each row, all or none; raises BudgetExceeded."""
        if self.budget is None:
            self.add("queries", rows, 1)
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
        self._counts["queries"] = after

    def remember(
        self, rows: Tensor | None, x: Tensor, scores: Tensor, confirmed: Confirm | None = None, member: int = 0
    ) -> None:
        """Keep every point of ``x`` that is misclassified, inside the threat model, and better than what is known.

        confirmed: asked for the points (n, ...) of examples (n,) that would be kept; those it denies are not. member: who
        found them.
        """
        y = self.labels(rows)
        answer = scores.argmax(1)
        if torch.equal(answer, y):  # so it is in most calls of an attack: this is all they cost
            return
        at = (answer != y).nonzero()[:, 0]
        owner = at if rows is None else rows.index_select(0, at)
        points = x.detach().index_select(0, at).to(self.x.dtype)
        size = self.threat.size(self.x.index_select(0, owner), points)
        better = size < self.size.index_select(0, owner) if self.minimal else ~self.broken.index_select(0, owner)
        kept = (better & (size <= self.threat.limit)).nonzero()[:, 0]
        if not len(kept):
            return
        if len(kept) < len(at):
            at, owner, points, size = (each.index_select(0, kept) for each in (at, owner, points, size))
        sound = misclassified(scores.index_select(0, at), y.index_select(0, at), self.rejects) & self.threat.in_box(points)
        if not bool(sound.all()):
            owner, points, size = owner[sound], points[sound], size[sound]
        if confirmed is not None and len(owner):
            stays = confirmed(owner, points)
            owner, points, size = owner[stays], points[stays], size[stays]
        if not len(owner):
            return
        if rows is not None and not bool((owner[1:] > owner[:-1]).all()):  # several of one: its smallest, then the first
            keep = self._first_of_each(owner, size)
            owner, points, size = owner[keep], points[keep], size[keep]
        self.best.index_copy_(0, owner, points)
        self.size.index_copy_(0, owner, size)
        self.member.index_fill_(0, owner, member)
        self.broken.index_fill_(0, owner, True)
        self.finds += 1

    def found(self) -> Tensor:
        """(N,) bool: where ``best`` is a point that was found."""
        return self.broken

    def _first_of_each(self, owner: Tensor, size: Tensor) -> Tensor:
        """Positions of the entry with the least ``size`` (n,) of each example in ``owner`` (n,); of equal ones the first."""
        order = size.argsort(stable=True)
        position = torch.arange(len(order), device=order.device)
        first = order.new_full((len(self.y),), len(order)).scatter_reduce_(0, owner[order], position, "amin")
        return order[first[owner[order]] == position]


class SurrogateLedger(Ledger):
    """Of a surrogate. Fooling it beats nothing, so that no example leaves; its best point is the one that it gets most wrong.

    lead: (N,) by how much the best wrong class leads at ``best``; 0 where none does.
    """

    def __init__(self, ledger: Ledger, rejects: bool) -> None:
        super().__init__(ledger.x, ledger.y, ledger.threat, minimal=ledger.minimal, rejects=rejects, budget=None)
        self.lead = torch.zeros(len(ledger.y), device=ledger.x.device)
        self.surrogates = ledger.surrogates
        self.surrogates.append(self)
        self.notes = ledger.notes

    def remember(
        self, rows: Tensor | None, x: Tensor, scores: Tensor, confirmed: Confirm | None = None, member: int = 0
    ) -> None:
        """Keep every point of ``x`` inside the threat model that is more wrongly classified than what is known."""
        y = self.labels(rows)
        lead = leads(scores, y, self.rejects)
        at = (lead > (self.lead if rows is None else self.lead[rows])).nonzero()[:, 0]
        owner = at if rows is None else rows[at]
        points = x[at].detach().to(self.x.dtype)
        keep = self.threat.contains(self.x[owner], points) & self.threat.in_box(points)
        owner, points, lead = owner[keep], points[keep], lead[at][keep]
        first = self._first_of_each(owner, -lead)
        self.best[owner[first]], self.lead[owner[first]] = points[first], lead[first]

    def found(self) -> Tensor:
        return self.lead > 0


def _add(counter: Tensor, rows: Tensor | None, amount: int) -> None:
    """Add ``amount`` once for each occurrence of a row."""
    if rows is None:
        counter += amount
    else:
        counter.index_add_(0, rows, torch.full_like(rows, amount))
