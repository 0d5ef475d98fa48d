"""Where a stored result comes from: run here, or taken from somebody's bundle; and what a check of it found.

A result without a record of its origin was run here. The record of an imported one is ``origin.json`` beside its shards; a
record that cannot be read counts as self-reported, never as run here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

RUN_HERE, SELF_REPORTED, VERIFIED, REFUTED = "run here", "self-reported", "verified", "refuted"
STATUSES = (RUN_HERE, SELF_REPORTED, VERIFIED, REFUTED)

_CONFIG = ConfigDict(extra="forbid", frozen=True)


class Check(BaseModel):
    """What ``rbl verify`` found. said: in words, with figures.

    outcome: ``verified``, ``refuted``, or ``unverified`` where neither could be shown. shards: those that were run again, of
    ``of_shards``, drawn with ``seed``. rejudged: how many stored examples were judged again. differ: how many outcomes were not
    the same, of which ``allowed`` are put down to rounding. packages: versions it was done with.
    """

    model_config = _CONFIG

    outcome: Literal["verified", "refuted", "unverified"]
    said: str
    when: str = ""
    seed: int = 0
    shards: tuple[int, ...] = ()
    of_shards: int = 0
    rejudged: int = 0
    differ: int = 0
    allowed: int = 0
    device: str = ""
    packages: dict[str, str] = Field(default_factory=dict)


class Origin(BaseModel):
    """Of an imported result: by whom and from where, as they say, and which bundle it came in (sha256).

    imported: when. receipt: names the import, so that one that was interrupted can be taken back. problem: why this record
    itself cannot be read.
    """

    model_config = _CONFIG

    by: str = ""
    where: str = ""
    bundle: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    imported: str = ""
    receipt: str = ""
    check: Check | None = None
    problem: str = ""

    @property
    def status(self) -> str:
        """``self-reported``, ``verified`` or ``refuted``."""
        if self.check is None or self.check.outcome == "unverified" or self.problem:
            return SELF_REPORTED
        return VERIFIED if self.check.outcome == "verified" else REFUTED

    def after(self, check: Check) -> Origin:
        """The record once another check was made. Nothing weaker replaces what was found before.

        A refuted result is only cleared by running all of it again: other shards that happen to be sound clear nothing.
        """
        whole = check.outcome == "verified" and len(check.shards) == check.of_shards
        if (self.status == REFUTED and not whole) or (self.status == VERIFIED and check.outcome == "unverified"):
            return self
        return self.model_copy(update={"check": check})

    @property
    def said(self) -> str:
        """For people: the status, by whom, from which bundle, and what a check found."""
        by = f" by {self.by}" if self.by else ""
        where = f" ({self.where})" if self.where else ""
        found = self.problem or ("not verified" if self.check is None else f"{self.check.outcome}: {self.check.said}")
        return f"self-reported{by}{where}, bundle {self.bundle[:12] or 'unknown'}; {found}"


def status_of(origin: Origin | None) -> str:
    """One of ``STATUSES``."""
    return RUN_HERE if origin is None else origin.status
