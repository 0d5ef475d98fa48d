"""What a conformance check is, and how a list of them is run: the part that pytest classes and ``rbl check`` share.

A check is a function of a subject (a plugin object, made ready). It returns where the contract holds, raises ``Failed`` with
the reason and the fix where it does not, and ``Skipped`` where it does not apply. Any other exception is a failure as well.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, TypeVar

from robustbench_lite import parameters
from robustbench_lite.errors import RblError
from robustbench_lite.records import Entry
from robustbench_lite.registry import Registry
from robustbench_lite.resolve import Resolved, resolve
from robustbench_lite.selectors import parse_selector


class Failed(Exception):
    """The contract is broken. fix: what the plugin's author does about it."""

    def __init__(self, reason: str, *, fix: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


class Skipped(Exception):
    """The check does not apply, or cannot be made here. fix: what makes it possible, where something does."""

    def __init__(self, reason: str, *, fix: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one check ended. proves: what is known where it passed."""

    check: str
    proves: str
    status: Literal["passed", "failed", "skipped"]
    reason: str = ""
    fix: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields, as plain data."""
        return asdict(self)


class Subject:
    """A plugin object under test. selector: its id or short name, with parameters where wanted: ``pgd[steps=10]``.

    Raises UnknownName and AmbiguousName, and InvalidParameter for parameters in the selector that do not validate.
    """

    kind: ClassVar[str]

    def __init__(self, registry: Registry, selector: str) -> None:
        parsed = parse_selector(selector)
        self.registry = registry
        self.selector = selector
        self.entry: Entry = registry.get(self.kind, parsed.name)
        if parsed.parameters:
            resolve(registry, self.kind, selector)

    @cached_property
    def found(self) -> Resolved:
        """The object with its parameters; raises Skipped where the check ``parameters-are-valid`` says why there is none."""
        try:
            return resolve(self.registry, self.kind, self.selector)
        except RblError:
            raise Skipped("it cannot be made: see the check `parameters-are-valid`") from None

    @property
    def required(self) -> list[str]:
        """Parameters without a default that the selector does not set."""
        given = dict(parse_selector(self.selector).parameters)
        described = parameters.describe(self.registry.factory(self.entry))
        return [p.name for p in described if p.required and p.name not in given]


S = TypeVar("S", bound=Subject)


@dataclass(frozen=True)
class Check(Generic[S]):
    """One property that every plugin object of a kind must have."""

    name: str
    proves: str
    function: Callable[[S], None]

    def run(self, subject: S) -> Outcome:
        """Make the check; only KeyboardInterrupt comes out of it."""
        started = time.perf_counter()
        status: Literal["passed", "failed", "skipped"] = "passed"
        reason = fix = ""
        try:
            self.function(subject)
        except Failed as failure:
            status, reason, fix = "failed", failure.reason, failure.fix
        except Skipped as skip:
            status, reason, fix = "skipped", skip.reason, skip.fix
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            status, reason = "failed", describe(error)
            fix = error.hint if isinstance(error, RblError) else ""
        seconds = time.perf_counter() - started
        return Outcome(check=self.name, proves=self.proves, status=status, reason=reason, fix=fix, seconds=seconds)


class Suite(Generic[S]):
    """The checks of one kind of plugin object, in the order in which they are made: from what it is to what it does."""

    def __init__(self, kind: str, *common: Callable[[Subject], None]) -> None:
        self.kind = kind
        self.checks: list[Check[S]] = []
        for function in common:
            self.check(function)

    def check(self, function: Callable[[S], None]) -> Callable[[S], None]:
        """Add a check: named after its function, and described by the first paragraph of its docstring."""
        paragraph = (function.__doc__ or "").strip().split("\n\n")[0]
        name = function.__name__.replace("_", "-")
        self.checks.append(Check(name, " ".join(paragraph.split()).rstrip("."), function))
        return function

    def run(self, subject: S) -> Iterator[Outcome]:
        """The outcome of every check, as soon as it is known."""
        return (check.run(subject) for check in self.checks)


def describe(error: BaseException) -> str:
    """An exception in one line, with the place where it was raised."""
    text = error.message if isinstance(error, RblError) else f"{type(error).__name__}: {error}".removesuffix(": ")
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames and not isinstance(error, RblError) else ""
    return " ".join(text.split()) + where


def plural(n: int, noun: str) -> str:
    """``1 point``, ``2 points``."""
    return f"{n} {noun}{'' if n == 1 else 's'}"
