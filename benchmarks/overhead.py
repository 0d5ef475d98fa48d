"""What an attack costs beyond the network: its time over the time of the bare forward and backward passes that it made.

    python benchmarks/overhead.py                     256 digits, a CNN of about 100,000 parameters
    python benchmarks/overhead.py --model allcnn      one of as many parameters that computes six times as much with them
    python benchmarks/overhead.py --rows 'pgd/*'      some; the rows are those of peers.py, and --quick is a smoke run

The passes of one run are recorded by hooks: their batch sizes, whether they built a graph, how often it was used. The bare
passes are the same sizes in the same order with nothing between them, and gradients with respect to the images only. Both are
timed in turn, many times: the ratio is the median over such pairs, beside the range of the middle half of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import partial

import numpy as np
import torch
from measure import interleaved, replay, run
from networks import NAMES, Subject, subject
from peers import or_reason, our_attack, their_attack
from rows import rows
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robustbench_lite.registry import Registry, load
from robustbench_lite.resolve import ResolvedAttack
from robustbench_lite.runner import environment, prepare_torch
from robustbench_lite.threat import Threat

DEFAULT = (
    ["fgsm/linf/torchattacks", "bim/linf/torchattacks", "pgd/linf/torchattacks", "pgd/l2/torchattacks", "mifgsm/*"]
    + ["apgd-*/linf/*", "apgd-ce/l2/*", "apgd-ce/l1/*", "square/linf/*", "square/l2/*", "fab*/linf/*", "fab/l2/*", "fab/l1/*"]
    + ["ddn/*/foolbox", "fmn/linf/foolbox", "deepfool/l2/foolbox", "alma/l2/*"]
)  # fmt: skip
HEADER = ("attack", "threat", "of", "passes", "seconds", "bare passes", "ratio", "middle half", "pairs")
PAIRS = (5, 51)  # of an attack and its bare passes, at least and at most


def main(arguments: list[str] | None = None) -> int:
    """Measure the attacks that were asked for; returns the exit code."""
    options = _parser().parse_args(arguments)
    device = "cuda:0" if options.device == "cuda" else options.device
    prepare_torch(device, options.threads)
    made = subject(options.model, 24 if options.quick else options.n, device)
    where = environment(device)
    work = f"{multiplications(made.model, made.x) / 1e6:.2f} million multiplications an image"
    print(f"{made.what}, {work}; {len(made.x)} examples; {where['device']}, {where['threads']} threads\n")
    print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    for line in _lines(made, load(), options.rows, seconds=0 if options.quick else options.seconds, quick=options.quick):
        print(f"| {' | '.join(line)} |", flush=True)
    return 0


def _lines(made: Subject, registry: Registry, patterns: list[str], *, seconds: float, quick: bool) -> Iterator[list[str]]:
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
                *_measured(or_reason(partial(our_attack, selector, registry, threat)), made, threat, seconds),
            ]
        yield [
            f"`{selector}`",
            threat,
            row.peer,
            *_measured(or_reason(partial(their_attack, row, registry, threat)), made, threat, seconds),
        ]


def multiplications(model: nn.Module, x: Tensor) -> int:
    """Of one forward pass of one image, x: (n, C, H, W)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x[:1])
    return int(counter.get_total_flops()) // 2


def _measured(attack: ResolvedAttack | str, made: Subject, threat: str, seconds: float) -> list[str]:
    """The last cells. The ratio is the median of those of many pairs: one pair's is good for a tenth on a shared machine."""
    outcome = attack if isinstance(attack, str) else or_reason(partial(run, attack, made, threat, counted=True))
    if isinstance(attack, str) or isinstance(outcome, str):
        return [str(outcome), *[""] * 5]

    def whole() -> float:
        return run(attack, made, threat, counted=False).seconds

    def bare() -> float:
        return replay(made.model, made.x, outcome.passes)

    pairs = min(max(int(seconds / (outcome.seconds + bare())), PAIRS[0]), PAIRS[1]) if seconds else 1
    taken, alone = interleaved(pairs, whole, bare)
    ratios = [one / other for one, other in zip(taken, alone, strict=True)]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    number = sum(1 + p.backwards for p in outcome.passes if p.rows)
    times = f"{np.median(taken):.4f}", f"{np.median(alone):.4f}"
    return [str(number), *times, f"{middle:.3f}", f"{low:.2f} to {high:.2f}", str(pairs)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=DEFAULT, metavar="PATTERN", help="as for peers.py")
    parser.add_argument("--model", choices=NAMES, default="cnn")
    parser.add_argument("--n", type=int, default=256, help="examples [256]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60, help="for each line, as far as 5 to 51 pairs take them [60]")
    parser.add_argument("--quick", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
