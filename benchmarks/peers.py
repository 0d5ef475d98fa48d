"""Every attack that another library also has, on the same networks, examples and budgets, in one run: a table in markdown.

    python benchmarks/peers.py                                        all rows on three small networks
    python benchmarks/peers.py --rows 'pgd/*' 'fab*' --models at      some
    python benchmarks/peers.py --device cuda --models resnet18 --n 512
    python benchmarks/peers.py --quick                                a smoke run: few steps, few examples
    python benchmarks/peers.py --apart --rows 'autoattack/*'          every timed run in a process of its own, as it is used

A row whose attack or peer is not there says so, and the script goes on. README.md beside it says how to install the peers.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from measure import Outcome, interleaved, over_seeds, peer_attack, run
from networks import NAMES, Subject, subject
from rows import Row, rows

from robustbench_lite.composition import resolve_members
from robustbench_lite.errors import AmbiguousName, RblError, UnknownName
from robustbench_lite.registry import Registry, load
from robustbench_lite.resolve import ResolvedAttack, resolve_attack
from robustbench_lite.runner import environment, prepare_torch, versions
from robustbench_lite.threat import Threat

T = TypeVar("T")

MODULES = {
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "adv-lib": "adv_lib",
    "adversarial-robustness-toolbox": "art",
    "pyautoattack": "pyautoattack",
}
HEADER = (
    ("attack", "peer", "robust %, or median norm", "peer's", "forwards", "peer's", "backwards", "peer's", "ms", "peer's")
    + ("time ratio", "findings")
)  # fmt: skip
POINTS, SHARE = 0.01, 0.02  # what counts as weaker: robust accuracy, median norm


def main(arguments: list[str] | None = None) -> int:
    """Run the comparisons that were asked for; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.list:
        print("\n".join(sorted({row.name for row in rows(quick=options.quick)})))
        return 0
    device = "cuda:0" if options.device == "cuda" else options.device
    if options.side is not None:
        print(_one_side(options, device))
        return 0
    prepare_torch(device, options.threads)
    torch.manual_seed(0)
    n = options.n or (24 if options.quick else None)
    repeats = min(1, options.repeats) if options.quick else options.repeats
    models = options.models or (["at"] if options.quick else ["std", "at", "cnn"])
    text = [_head(device, options.command)]
    registry = load()
    numbered = enumerate(rows(quick=options.quick))
    chosen = [(number, row) for number, row in numbered if any(fnmatch(row.name, pattern) for pattern in options.rows)]
    for name in models:
        made = subject(name, n, device)
        text.append(f"## `{made.name}`: {made.what}; {len(made.x)} examples\n\n{_line(HEADER)}\n{_line(['---'] * len(HEADER))}")
        for number, row in chosen:
            apart = partial(_seconds_apart, options, number, made) if options.apart else None
            line = _line(compare(row, made, registry, repeats=repeats, seeds=options.seeds, apart=apart))
            print(line, file=sys.stderr, flush=True)
            text[-1] += "\n" + line
            if options.out:
                options.out.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n\n".join(text))
    return 0


def compare(
    row: Row,
    made: Subject,
    registry: Registry,
    *,
    repeats: int,
    seeds: int = 1,
    apart: Callable[[int], float] | None = None,
) -> list[str]:
    """The cells of one row of the table. apart: seconds of a run of our side (0) or the peer's (1), where not measured here."""
    threat, some = _threat(row, made), _examples(row, made)
    eps = Threat.parse(threat).eps
    label = f"`{row.selector(eps)}` {threat}" + (f", {len(some.x)} examples" if len(some.x) < len(made.x) else "")
    peer = row.peer if row.peer != "rbl" else f"`{row.call}`"
    attacks = [or_reason(side) for side in _sides(row, registry, threat)]
    outcomes = [one if isinstance(one, str) else or_reason(partial(over_seeds, one, some, threat, seeds)) for one in attacks]
    timers = (
        partial(apart, side) if apart else partial(_seconds, attack, some, threat)
        for side, (attack, one) in enumerate(zip(attacks, outcomes, strict=True))
        if not isinstance(attack, str) and not isinstance(one, str)
    )
    least = iter([min(seconds) for seconds in interleaved(repeats, *timers)] if repeats else [])
    seconds = [None if isinstance(one, str) else next(least, None) for one in outcomes]
    mine, other = outcomes
    findings = [] if isinstance(mine, str) or isinstance(other, str) else _findings(mine, other, row, len(some.x))
    return [
        label,
        peer,
        *(one if isinstance(one, str) else _worth(one, row) for one in outcomes),
        *("" if isinstance(one, str) else f"{one.forwards:.4g}" for one in outcomes),
        *("" if isinstance(one, str) else f"{one.backwards:.4g}" for one in outcomes),
        *("" if value is None else f"{1000 * value:.4g}" for value in seconds),
        f"{seconds[0] / seconds[1]:.2f}" if seconds[0] and seconds[1] else "",
        "; ".join(filter(None, [*findings, row.note])),
    ]


def or_reason(make: Callable[[], T]) -> T | str:
    """What is made, or why it could not be."""
    try:
        return make()
    except Unavailable as reason:
        return str(reason)[:160]
    except Exception as error:
        text = " ".join(str(error).split())[:100].replace("|", "/")
        return f"{type(error).__name__}: {text}"


class Unavailable(Exception):
    """One side of a row is not there."""


def our_attack(selector: str, registry: Registry, threat: str) -> ResolvedAttack:
    """An attack of the registry with its members. Raises Unavailable."""
    try:
        found = resolve_attack(registry, selector)
        return replace(found, members=resolve_members(registry, found, Threat.parse(threat)))
    except (UnknownName, AmbiguousName):
        raise Unavailable("not there yet") from None
    except RblError as error:
        raise Unavailable(f"unusable: {error.message}") from None


def their_attack(row: Row, registry: Registry, threat: str) -> ResolvedAttack:
    """The peer's side of a row. Raises Unavailable."""
    if isinstance(row.call, str):
        return our_attack(row.call, registry, threat)
    if find_spec(MODULES[row.peer]) is None:
        raise Unavailable(f"{row.peer} is not installed")
    name = row.name.replace("/", "-").lower()
    return peer_attack(row.peer, name, row.call, minimal=row.minimal, norm=row.norm)


def _threat(row: Row, made: Subject) -> str:
    return row.norm if row.minimal else made.threats.get(row.norm, row.norm)


def _examples(row: Row, made: Subject) -> Subject:
    return replace(made, x=made.x[: row.n], y=made.y[: row.n])


def _sides(row: Row, registry: Registry, threat: str) -> tuple[Callable[[], ResolvedAttack], ...]:
    """What makes our attack, and the peer's."""
    selector = row.selector(Threat.parse(threat).eps)
    return partial(our_attack, selector, registry, threat), partial(their_attack, row, registry, threat)


def _seconds(attack: ResolvedAttack, made: Subject, threat: str) -> float:
    return run(attack, made, threat, counted=False).seconds


def _seconds_apart(options: argparse.Namespace, number: int, made: Subject, side: int) -> float:
    """Seconds of one side of the row of this number, in a process of its own."""
    command = [sys.executable, __file__, "--side", str(side), "--rows", str(number), "--models", made.name]
    command += ["--n", str(len(made.x)), "--device", options.device, "--threads", str(options.threads)]
    command += ["--quick"] if options.quick else []
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _one_side(options: argparse.Namespace, device: str) -> float:
    """What ``_seconds_apart`` starts: ours as ``rbl run`` sets a worker up, the peer's as Python starts.

    The second of two runs counts, when all code has been loaded.
    """
    (number,), (name,) = options.rows, options.models
    if options.side == 0:
        prepare_torch(device, options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    row, made = list(rows(quick=options.quick))[int(number)], subject(name, options.n, device)
    threat = _threat(row, made)
    attack, some = _sides(row, load(), threat)[options.side](), _examples(row, made)
    return [_seconds(attack, some, threat) for _ in range(2)][-1]


def _worth(outcome: Outcome, row: Row) -> str:
    """What an attack achieved, and what the judge refused."""
    text = f"{100 * outcome.robust:.2f}"
    if row.minimal:
        text = f"{outcome.median:.4g}" + (f" (found {100 * outcome.found:.1f} %)" if outcome.found < 1 else "")
    refused = ", ".join(f"{number} {reason}" for reason, number in outcome.refused.items())
    return f"{text} ({refused})" if refused else text


def _findings(mine: Outcome, other: Outcome, row: Row, n: int) -> list[str]:
    """Where the peer is stronger or cheaper, in words. One forward pass more is no finding: ours look at their last point."""
    found = []
    weaker = mine.robust > other.robust + max(POINTS, 1.5 / n)
    if row.minimal:
        weaker = mine.median > other.median * (1 + SHARE) or mine.found < other.found
    if weaker:
        found.append("**weaker**")
    if mine.forwards + mine.backwards > 1.01 * (other.forwards + other.backwards) + 1:
        found.append("**more passes**")
    if any(abs(a - b) > 1e-6 for a, b in zip(mine.claimed, (mine.forwards, mine.backwards), strict=True)):
        found.append(f"the target counted {mine.claimed[0]:.4g} + {mine.claimed[1]:.4g}")
    return found


def _head(device: str, command: str) -> str:
    where = environment(device)
    peers = ", ".join(f"{name} {version}" for name, version in versions(MODULES).items())
    return (
        f"Made by `{command}` on {where['device']}, {where['threads']} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}; {peers or 'no peers'}.\n\n"
        "Robust accuracy is over all examples. Median norms are over the examples that are classified correctly, inf where "
        "nothing was found; in brackets, points that the judge refused. Forwards and backwards are passes per attacked "
        "example; ours end with one forward pass at the last point, which most peers leave to the caller. The ratio is our "
        "time over the peer's, each the least of several runs in turn. Findings: where the peer is stronger by more than a "
        "point (2 % of the median norm) or needs fewer passes."
    )


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", default=["*"], metavar="PATTERN", help="attack/norm/peer, such as 'pgd/*' (--list)"
    )
    parser.add_argument("--models", nargs="+", choices=NAMES, help="networks [std at cnn]")
    parser.add_argument("--n", "--batch", type=int, help="examples, all in one batch [all there are; 512 for resnet18]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of both sides [1]")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each side; 0 for no times [3]")
    parser.add_argument("--seeds", type=int, default=1, help="runs whose strength and passes are averaged [1]")
    parser.add_argument(
        "--apart", action="store_true", help="time each run in a process of its own, the peer's as Python starts one"
    )
    parser.add_argument("--side", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="few steps, few examples, one repeat")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    parser.add_argument("--out", type=Path, help="also write the table here, after every row")
    parser.set_defaults(command=" ".join(["python benchmarks/peers.py", *map(_quoted, sys.argv[1:])]))
    return parser


def _quoted(word: str) -> str:
    return f"'{word}'" if any(letter in word for letter in "*?[ ") else word


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
