"""What an attack gets to see of a defense.

A target enforces the access that an attack declared, counts what it costs per example, and keeps the best point that it
was shown inside the threat model (in ``ledger.py``), so that nothing found is lost. It judges nothing: see ``judge.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from robustbench_lite.deployed import Deployed, Ensemble, Rank, mean_lead
from robustbench_lite.errors import AccessError, PluginError
from robustbench_lite.ledger import Ledger, Remembered, SurrogateLedger
from robustbench_lite.losses import Loss

if TYPE_CHECKING:
    from robustbench_lite.member import Member

_ALLOWED = {
    "gradient": frozenset({"gradient", "scores", "decision"}),
    "scores": frozenset({"scores", "decision"}),
    "decision": frozenset({"decision"}),
    "transfer": frozenset({"decision"}),
    "none": frozenset[str](),
}

# Stands for the rows of a call that did not say which examples its inputs belong to.
NOBODY = torch.empty(0, dtype=torch.int64)


class Watch(Protocol):
    """Is shown what an attack asks of its target. rows (n,): which examples; None for all in order."""

    def asked(self, rows: Tensor | None, x: Tensor, scores: Tensor) -> None:
        """Points x (n, ...) and what the attack saw of them: scores (n, C)."""

    def followed(self, rows: Tensor | None, gradient: Tensor) -> None:
        """The gradient (n, ...) that it was given at points that it asked about."""


class Target:
    """One attack's view of one defense on N examples. Calls take n inputs; ``index`` (n,) says which examples they are.

    Without ``index`` the inputs are all N examples in order. On a stochastic defense a call averages ``eot`` draws, and an
    example counts as beaten when its point is also misclassified on ``confirm`` further draws, by more than chance explains:
    otherwise the luckiest of many queries would end an attack that the judge then finds to have failed. Until then, the
    point with the highest lead on such draws is kept.

    An attack made of other attacks finds those as ``members``; one that is crafted on other models finds these as
    ``surrogates``.

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
        members: Sequence[Member] = (),
        surrogates: Sequence[Target] = (),
        watch: Watch | None = None,
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
        self._members = tuple(members)
        self._surrogates = tuple(surrogates)
        self._watch = watch
        self._member = 0
        self._keeps = True
        self._asked = Remembered(None), NOBODY

    # What the attack asks of the defense.

    def __call__(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """(n, C) logits with a graph back to ``x``, for code that runs autograd itself. Needs access ``gradient``."""
        self._require("gradient", "gradients")
        rows, ids, draw = self._admit(x, index, self._eot)
        scores = self._deployed.graph(x, passes=self._eot, key=self._key, ids=ids, draw=draw)
        self._note(rows, x, scores.detach(), self._eot * self._deployed.forwards_per_gradient)
        if scores.requires_grad:
            scores.register_hook(lambda _: self._count_backward(rows, None))  # type: ignore[no-untyped-call]
        return scores

    def logits(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """(n, C) logits without a graph. Needs access ``scores``."""
        self._require("scores", "logits")
        return self._query(x, index)

    def labels(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """(n,) predicted classes; C means "refused", or scores that are not finite. Needs access ``decision``."""
        self._require("decision", "labels")
        scores = self._query(x, index)
        return torch.where(scores.isfinite().all(1), scores.argmax(1), self.num_classes)

    def loss_and_grad(self, x: Tensor, loss: Loss, *aux: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, C), loss (n,) and the loss's gradient with respect to ``x``, all detached. Needs access ``gradient``.

        ``loss(logits, *aux)`` returns (n,); each of ``aux`` has one entry per input. A stochastic defense is averaged over
        the protocol's EOT draws.
        """
        self._require("gradient", "gradients")
        rows, ids, draw = self._admit(x, index, self._eot)
        scores, value, grad = self._deployed.loss_and_grad(x, loss, aux, passes=self._eot, key=self._key, ids=ids, draw=draw)
        self._note(rows, x, scores, self._eot * self._deployed.forwards_per_gradient)
        self._count_backward(rows, grad)
        return scores, value, grad

    def least_loss_and_grad(
        self, x: Tensor, losses: Loss, rank: Rank, *aux: Tensor, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``loss_and_grad``, for the one of several losses that ``rank`` finds least: one forward and k backward passes.

        ``losses(logits, *aux)`` returns (n, k). ``rank(loss, grad)``, of one column (n,) and its gradient (n, C, H, W), returns
        (n,): each example gets the loss and the gradient of its least column, or zeros where no rank is finite. Several
        losses in one call cost one forward pass and no more memory than one. Needs access ``gradient``.
        """
        self._require("gradient", "gradients")
        rows, ids, draw = self._admit(x, index, self._eot)
        scores, value, grad, count = self._deployed.least_loss_and_grad(
            x, losses, rank, aux, passes=self._eot, key=self._key, ids=ids, draw=draw
        )
        self._note(rows, x, scores, self._eot * self._deployed.forwards_per_gradient)
        self._count_backward(rows, grad, count)
        return scores, value, grad

    # What is known so far.

    def __len__(self) -> int:
        return len(self._ledger.y) if self._rows is None else len(self._rows)

    @property
    def num_classes(self) -> int:
        """How many classes the defense tells apart."""
        return self._deployed.num_classes

    @property
    def rejects(self) -> bool:
        """Whether the defense may refuse: its logits have one more column."""
        return self._deployed.rejects

    @property
    def stochastic(self) -> bool:
        """Whether two calls with one and the same point may be answered differently."""
        return self._deployed.stochastic

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
    def finds(self) -> int:
        """How many calls so far found something: while it stays, so does ``broken``, which costs more to ask for."""
        return self._ledger.finds

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
        found = self._mine(self._ledger.found())
        return torch.where(found.view(-1, *(1,) * (otherwise.dim() - 1)), self._mine(self._ledger.best), otherwise)

    def select(self, rows: Tensor) -> Target:
        """The same target for some of its examples; ``rows`` is a LongTensor (n,) or a bool mask (N,)."""
        chosen = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        part = copy.copy(self)
        part._rows = chosen if self._rows is None else self._rows[chosen]
        part._asked = Remembered(None), NOBODY
        return part

    def evenly_spent(self, rows: Tensor) -> list[Tensor]:
        """The rows (n,), in groups that have made equally many queries; in one, where there is no budget.

        What asks all its examples alike is ended by the budget for all at once. So a group is, and nobody by another's queries.
        """
        if self.budget is None or not len(rows):
            return [rows]
        spent = self.queries[rows]
        return [rows[spent == amount] for amount in torch.unique(spent)]

    def forgetful(self) -> Target:
        """The same target, which counts what it is asked and keeps nothing of it.

        For attacks whose published form is judged by the last point alone, whatever they passed on the way.
        """
        part = copy.copy(self)
        part._keeps = False
        return part

    def note(self, text: str) -> None:
        """Say something that belongs beside the results: it stands in the record of the run, once."""
        self._ledger.notes[f"{self._attack}: {text}"] = None

    # What the attack is made of.

    @property
    def members(self) -> tuple[Member, ...]:
        """The attacks that this one is made of, in the order in which it named them."""
        return self._members

    @property
    def surrogates(self) -> tuple[Target, ...]:
        """The defenses that the attack named to be crafted on, each a target of its own with access ``gradient``.

        Nothing that is found there counts, so their ``broken`` stays False and attacks on them go on to their last step;
        ``best`` is the point that the surrogate gets most wrong.
        """
        return self._surrogates if self._rows is None else tuple(s.select(self._rows) for s in self._surrogates)

    def enter(self, member: Member) -> Target:
        """The same target as a member sees it: with the member's access, and finds that are credited to it.

        Raises AccessError for a member that needs more than the attack declared.
        """
        if not _ALLOWED[member.access] <= _ALLOWED[self._access]:
            raise AccessError(
                f"{self._attack} has access {self._access!r}, and its member {member.label} needs {member.access!r}",
                hint="run it on one of target.surrogates, or declare more access in the AttackSpec",
            )
        inner = copy.copy(self)
        inner._access, inner._member, inner._attack = member.access, member.number, f"{member.label} in {self._attack}"
        inner._members, inner._surrogates = (), ()
        return inner

    def show(self, x_adv: Tensor) -> None:
        """Look at the N points that a member returned, as far as they may count: one query for each such example that has one.

        A member may return a point that it never asked about, and what is not seen is lost.
        """
        ledger = self._ledger
        if isinstance(ledger, SurrogateLedger):
            return
        x = self._mine(ledger.x)
        counts = (x_adv != x).flatten(1).any(1) & ledger.threat.contains(x, x_adv) & ledger.threat.in_box(x_adv)
        if not ledger.minimal:
            counts &= ~self.broken
        if ledger.budget is not None:
            counts &= self.queries < ledger.budget
        rows = counts.nonzero()[:, 0]
        if len(rows):
            self._query(x_adv[rows], rows)

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
        ledger.add("draws", rows, passes)
        return rows, ids, draw

    def _global(self, index: Tensor, n: int) -> Tensor:
        if index.dtype != torch.int64 or index.shape != (n,):
            raise PluginError(
                f"{self._attack} passed an index of shape {tuple(index.shape)} and type {index.dtype} for {n} inputs",
                hint="index is a LongTensor with one row number per input",
            )
        if self._rows is None:
            return index
        if not self._asked[0].is_still(index):
            self._asked = Remembered(index), self._rows[index]
        return self._asked[1]

    def _note(self, rows: Tensor | None, x: Tensor, scores: Tensor, passes: int) -> None:
        if rows is NOBODY:
            return
        self._ledger.add("forwards", rows, passes)
        if self._watch is not None:
            self._watch.asked(rows, x, scores)
        if self._keeps:
            self._ledger.remember(rows, x, scores, self._confirmed if self._confirm else None, self._member)

    def _confirmed(self, owner: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """``mean_lead`` of points on draws of their own, which the attack never sees."""
        ledger = self._ledger
        draw = ledger.confirmations[owner] + _occurrence(owner) * self._confirm
        key = f"{self._key}|confirm"
        stacked = self._deployed.stack(x, passes=self._confirm, key=key, ids=self._ids[owner], draw=draw)
        ledger.add("confirmations", owner, self._confirm)
        ledger.add("forwards", owner, self._confirm)
        return mean_lead(stacked, ledger.y[owner], ledger.rejects)

    def _count_backward(self, rows: Tensor | None, gradient: Tensor | None, times: int = 1) -> None:
        if rows is not NOBODY:
            self._ledger.add("backwards", rows, times * self._eot)
            if self._watch is not None and gradient is not None:
                self._watch.followed(rows, gradient)

    def _mine(self, values: Tensor) -> Tensor:
        return values.clone() if self._rows is None else values[self._rows]


def surrogate_targets(surrogates: Sequence[Deployed], ledger: Ledger, *, key: str, ids: Tensor, eot: int) -> tuple[Target, ...]:
    """Targets on surrogates for the examples of ``ledger``, which comes to hold theirs."""
    for surrogate in surrogates if len(ledger.x) else ():
        surrogate.fit_memory(ledger.x)
    return tuple(
        Target(
            surrogate,
            SurrogateLedger(ledger, surrogate.rejects),
            access="gradient",
            key=f"{key}|surrogate {i}",
            ids=ids,
            eot=eot,
            attack=f"the attack on its surrogate {surrogate.name}",
        )
        for i, surrogate in enumerate(surrogates)
    )


def mean_of_logits(targets: Sequence[Target]) -> Target:
    """Several surrogates as one, with the mean of their logits; a pass through all of them is counted as one.

    targets: ``target.surrogates``, or some of them. Raises PluginError for other targets.
    """
    first, ledger = targets[0], targets[0]._ledger
    if not isinstance(ledger, SurrogateLedger) or any(t._ledger not in ledger.surrogates for t in targets):
        raise PluginError("mean_of_logits joins the surrogates of one target", hint="pass target.surrogates")
    if len(targets) == 1:
        return first
    joined = copy.copy(first)
    joined._deployed, joined._ledger = Ensemble([t._deployed for t in targets]), SurrogateLedger(ledger, rejects=False)
    joined._eot = max(t._eot for t in targets)
    return joined


def _occurrence(rows: Tensor) -> Tensor:
    """(n,) how often the same row stands before this one: 0 for the first, 1 for the second."""
    order = rows.argsort(stable=True)
    ordered = rows[order]
    position = torch.arange(len(rows), device=rows.device)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(starts, position, torch.zeros_like(position)).cummax(0).values
    return torch.empty_like(position).scatter_(0, order, position - first)
