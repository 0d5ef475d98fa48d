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

# Of points (n, ...) of examples (n,): by how much they stay misclassified (n,), 0 where not, and whether surely so, (n,) bool.
Confirm = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Remembered:
    """Rows that were given, and whether they are given again: the same tensor, not written to since.

    A tensor made under ``torch.inference_mode`` does not say whether it was written to, so that it is never the same.
    """

    def __init__(self, rows: Tensor | None) -> None:
        self._given, self._version = rows, 0 if rows is None or rows.is_inference() else rows._version
        self.rows = None if rows is None else rows.clone()

    def is_still(self, rows: Tensor | None) -> bool:
        """Whether ``rows`` are these."""
        return rows is self._given and (rows is None or (not rows.is_inference() and rows._version == self._version))


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
    it, 0 for the attack itself. The best point of a stochastic defense may be misclassified without being surely so: within
    a radius it is kept, but the example is not broken, so that the attack goes on. finds: how many calls found something; while
    it stays, so does ``broken``. unattributed: rows that came without saying whose they were.
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
        self._kept = self.broken.clone()
        self._lead = torch.zeros(n, device=x.device)
        self._claims = _Claims(n, x.device)
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
        """Keep every point of ``x`` that is misclassified, inside the threat model, better than what is known, and not clean.

        confirmed: asked for the points (n, ...) of examples (n,) that would be kept; those it denies are not. Where there is a
        radius, a surer point is better, and an example is broken with one that is sure. member: who found them.
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
        kept = (better & (size <= self.threat.limit) & (size > 0)).nonzero()[:, 0]  # a clean image is no find, however unlucky
        if not len(kept):
            return
        if len(kept) < len(at):
            at, owner, points, size = (each.index_select(0, kept) for each in (at, owner, points, size))
        sound = misclassified(scores.index_select(0, at), y.index_select(0, at), self.rejects) & self.threat.in_box(points)
        if not bool(sound.all()):
            if not bool(scores.index_select(0, at).isfinite().all()):
                self.notes["some scores were NaN or infinite: such points count as not adversarial"] = None
            at, owner, points, size = (each[sound] for each in (at, owner, points, size))
        broken, worth = owner, size
        if confirmed is not None and len(owner):
            if not self.minimal:
                tried = self._claims.made(owner, leads(scores[at], y[at], self.rejects))
                owner, points, size = owner[tried], points[tried], size[tried]
                if not len(owner):
                    return
            lead, sure = confirmed(owner, points)
            stays = sure if self.minimal else sure | (lead > self._lead[owner])
            owner, points, size, lead, sure = (each[stays] for each in (owner, points, size, lead, sure))
            broken, worth = owner[sure], size if self.minimal else -lead
            self._lead.scatter_reduce_(0, owner, lead, "amax")
        if not len(owner):
            return
        if rows is not None and not bool((owner[1:] > owner[:-1]).all()):  # several of one: its best, then the first
            keep = self._first_of_each(owner, worth)
            owner, points, size = owner[keep], points[keep], size[keep]
        self.best.index_copy_(0, owner, points)
        self.size.index_copy_(0, owner, size)
        self.member.index_fill_(0, owner, member)
        self._kept.index_fill_(0, owner, True)
        self.broken.index_fill_(0, broken, True)
        self.finds += 1

    def found(self) -> Tensor:
        """(N,) bool: where ``best`` is a point that was found."""
        return self._kept

    def _first_of_each(self, owner: Tensor, size: Tensor) -> Tensor:
        """Positions of the entry with the least ``size`` (n,) of each example in ``owner`` (n,); of equal ones the first."""
        order = size.argsort(stable=True)
        position = torch.arange(len(order), device=order.device)
        first = order.new_full((len(self.y),), len(order)).scatter_reduce_(0, owner[order], position, "amin")
        return order[first[owner[order]] == position]


class _Claims:
    """Which points of a stochastic defense are worth confirming: confirming takes many draws, and searches come back often.

    Those of an example that lead by more than all before, its first eight, and later each time that there have been an eighth
    more: of many that are equally good, few.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self._highest = torch.zeros(n, device=device)
        self._count, self._next = (
            torch.zeros(n, dtype=torch.int64, device=device),
            torch.ones(n, dtype=torch.int64, device=device),
        )

    def made(self, owner: Tensor, lead: Tensor) -> Tensor:
        """(n,) bool: of points of the examples ``owner`` (n,) with these leads (n,), which to confirm."""
        count = self._count.index_add_(0, owner, torch.ones_like(owner))[owner]
        due = count >= self._next[owner]
        chosen = due | (lead > self._highest[owner])
        self._highest.scatter_reduce_(0, owner, lead, "amax")
        self._next[owner[due]] = (count + (count // 8).clamp_min(1))[due]
        return chosen


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
