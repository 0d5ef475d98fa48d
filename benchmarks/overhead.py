"""What an attack costs beyond the network: its time over the time of the bare forward and backward passes that it made.

    python benchmarks/overhead.py                     256 digits, a CNN of about 100,000 parameters
    python benchmarks/overhead.py --rows 'pgd/*'      some; the rows are those of peers.py, and --quick is a smoke run

The passes of one run are recorded by hooks: their batch sizes, whether they built a graph, how often it was used. The bare
passes are the same sizes in the same order with nothing between them, and gradients with respect to the images only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import partial

from measure import interleaved, replay, run
from networks import NAMES, Subject, subject
from peers import or_reason, our_attack, their_attack
from rows import rows

from robustbench_lite.registry import Registry, load
from robustbench_lite.resolve import ResolvedAttack
from robustbench_lite.runner import environment, prepare_torch
from robustbench_lite.threat import Threat

DEFAULT = (
    ["fgsm/linf/torchattacks", "bim/linf/torchattacks", "pgd/linf/torchattacks", "pgd/l2/torchattacks", "mifgsm/*"]
    + ["apgd-*/linf/*", "apgd-ce/l2/*", "apgd-ce/l1/*", "square/linf/*", "square/l2/*", "fab*/linf/*", "fab/l2/*", "fab/l1/*"]
    + ["ddn/*/foolbox", "fmn/linf/foolbox", "deepfool/l2/foolbox", "alma/l2/*"]
)  # fmt: skip
HEADER = ("attack", "threat", "of", "passes", "seconds", "bare passes", "ratio")


def main(arguments: list[str] | None = None) -> int:
    """Measure the attacks that were asked for; returns the exit code."""
    options = _parser().parse_args(arguments)
    device = "cuda:0" if options.device == "cuda" else options.device
    prepare_torch(device, options.threads)
    made = subject(options.model, 24 if options.quick else options.n, device)
    where = environment(device)
    print(f"{made.what}; {len(made.x)} examples; {where['device']}, {where['threads']} threads\n")
    print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    for line in _lines(made, load(), options.rows, repeats=1 if options.quick else options.repeats, quick=options.quick):
        print(f"| {' | '.join(line)} |", flush=True)
    return 0


def _lines(made: Subject, registry: Registry, patterns: list[str], *, repeats: int, quick: bool) -> Iterator[list[str]]:
    ours_done: set[tuple[str, str]] = set()
    for row in rows(quick=quick):
        if row.n is not None or not any(fnmatch(row.name, pattern) for pattern in patterns):
            continue
        threat = row.norm if row.minimal else made.threats.get(row.norm, row.norm)
        selector = row.selector(Threat.parse(threat).eps)
        if (selector, threat) not in ours_done:  # with two peers, ours is measured once
            ours_done.add((selector, threat))
            yield [
                f"`{selector}`",
                threat,
                "rbl",
                *_measured(or_reason(partial(our_attack, selector, registry, threat)), made, threat, repeats),
            ]
        yield [
            f"`{selector}`",
            threat,
            row.peer,
            *_measured(or_reason(partial(their_attack, row, registry, threat)), made, threat, repeats),
        ]


def _measured(attack: ResolvedAttack | str, made: Subject, threat: str, repeats: int) -> list[str]:
    """The last four cells."""
    outcome = attack if isinstance(attack, str) else or_reason(partial(run, attack, made, threat, counted=True))
    if isinstance(attack, str) or isinstance(outcome, str):
        return [str(outcome), "", "", ""]

    def whole() -> float:
        return run(attack, made, threat, counted=False).seconds

    def bare() -> float:
        return replay(made.model, made.x, outcome.passes)

    taken, least = interleaved(repeats, whole, bare)
    number = sum(1 + p.backwards for p in outcome.passes if p.rows)
    return [str(number), f"{taken:.4f}", f"{least:.4f}", f"{taken / least:.3f}" if least else ""]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=DEFAULT, metavar="PATTERN", help="as for peers.py")
    parser.add_argument("--model", choices=NAMES, default="cnn")
    parser.add_argument("--n", type=int, default=256, help="examples [256]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each, in turn; the least counts [7]")
    parser.add_argument("--quick", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
