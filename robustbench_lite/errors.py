"""The one hierarchy of errors.

::

    RblError                      anything this project raises on purpose
    ├── UsageError                the request cannot be carried out as written        exit 2
    │   ├── UnknownName           no plugin, data set, metric or protocol of that name
    │   ├── AmbiguousName         a short name that several plugins share
    │   ├── InvalidParameter      ``pgd[steps=lots]``
    │   ├── InvalidThreat         ``linf:8//255``
    │   ├── InvalidConfig         an unknown or ill-typed key in YAML or on the command line
    │   └── InvalidBundle         results made elsewhere that are not taken, and why
    ├── PluginError               a plugin does not keep its contract
    ├── MissingData               a data set is not on this machine
    ├── MissingWeights            a defense has no weights for this data set
    ├── StoreError                the result store cannot be read or written
    │   ├── StoreFormatError      written by a newer version, or not a store at all
    │   └── CorruptResult         a stored file fails its checksum; it was quarantined
    ├── AccessError               an attack asked for more than the access it declared
    ├── BudgetExceeded            an attack used up its queries
    └── CellFailed                a cell ended without a result; carries its status

Every error says *what* (the message) and, where a command mends it, *how* (``hint``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RblError(Exception):
    """Base class: a message for people, and a hint that says what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.hint}" if self.hint else self.message


class UsageError(RblError):
    """The request cannot be carried out as written."""


class UnknownName(UsageError):
    """No object of that name is registered."""


class AmbiguousName(UsageError):
    """A short name that several plugins share."""


class InvalidParameter(UsageError):
    """A parameter that does not exist or does not validate."""


class InvalidThreat(UsageError):
    """A threat model that cannot be parsed."""


class InvalidConfig(UsageError):
    """A configuration or protocol with an unknown or ill-typed key."""


class InvalidBundle(UsageError):
    """Results or entries made elsewhere that are not taken into a store."""


class PluginError(RblError):
    """A plugin does not keep its contract."""


class MissingData(RblError):
    """A data set is not on this machine."""


class MissingWeights(RblError):
    """A defense has no weights for this data set."""


class StoreError(RblError):
    """The result store cannot be read or written."""


class StoreFormatError(StoreError):
    """The store was written by a newer version, or is no store."""


class CorruptResult(StoreError):
    """A stored file does not match its checksum; it was moved to quarantine."""


class AccessError(RblError):
    """An attack asked for more than the access that it declared."""


class BudgetExceeded(RblError):
    """An attack used up its query budget; what it found so far is kept.

    ``rows`` lists the rows of the refused call that had no budget left.
    """

    def __init__(self, message: str, *, rows: tuple[int, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.rows = rows


class CellFailed(RblError):
    """A cell ended without a result. ``status`` is one of the failure states of the store."""

    def __init__(self, message: str, *, status: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"did you mean 'pgd'?"``, or an empty string where nothing known is near."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
