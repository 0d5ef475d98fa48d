"""Attacks on models that other people published, against the figures that are known of them: a table in markdown.

    export RBL_DATA=... RBL_MODELS=...            see ../examples/third-party-models
    python benchmarks/published.py                everything, hours on two cores; it goes on where it was stopped
    python benchmarks/published.py --rows 'bim/*'
    python benchmarks/published.py --n 200        a quick look: no verdict on figures that hold for all examples

Every row is one ``rbl run``, whose command stands under the table.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

PLUGIN = Path(__file__).parents[1] / "examples" / "third-party-models" / "published_models.py"
CIFAR = "arrays[path=cifar10]"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure, in percent of robust examples. n: of how many.

    exact: the figure to the digit. least: proven, nothing may be below. most: what other people's attacks left, to be met or
    beaten; ``sharp``: to the digit, otherwise within the 95 % interval.
    """

    defense: str
    dataset: str
    threat: str
    attack: str
    n: int
    exact: float | None = None
    least: float | None = None
    most: float | None = None
    sharp: bool = False

    @property
    def name(self) -> str:
        """``autoattack/lpd-mlp``, for --rows."""
        return f"{self.attack.partition('[')[0]}/{self.defense}"

    @property
    def known(self) -> str:
        """The figure as the table shows it."""
        if self.exact is not None:
            return f"{self.exact:.2f}"
        low = "" if self.least is None else f"at least {self.least:.2f} (proof)"
        high = "" if self.most is None else f"at most {self.most:.2f}" + ("" if self.sharp else ", within the interval")
        return ", ".join(filter(None, (low, high)))

    def verdict(self, found: float, interval: tuple[float, float]) -> str:
        """``ok``, or in which direction the figure is missed."""
        if self.exact is not None:
            return "ok" if abs(found - self.exact) < 0.005 else "**differs**"
        if self.least is not None and found < self.least - 1e-9:
            return "**contradicts the proof**"
        slack = 0.0 if self.sharp else interval[1] - found
        return "ok" if self.most is None or found <= self.most + slack else "**weaker**"


PGD = "bim[steps=40,step=0.01]"
ROWS = (
    Row(defense="lpd-mlp", dataset="mnist", threat="linf:0.1", attack=PGD, n=10_000, exact=86.61),
    Row(defense="adv-mlp", dataset="mnist", threat="linf:0.1", attack=PGD, n=10_000, exact=84.14),
    Row(
        defense="lpd-mlp", dataset="mnist", threat="linf:0.1", attack="autoattack", n=10_000, least=85.55, most=86.0, sharp=True
    ),
    Row(
        defense="adv-mlp",
        dataset="mnist",
        threat="linf:0.1",
        attack="autoattack",
        n=10_000,
        least=65.63,
        most=83.75,
        sharp=True,
    ),
    Row(
        defense="kw-conv", dataset="mnist", threat="linf:0.1", attack="autoattack", n=10_000, least=94.2, most=95.9, sharp=True
    ),
    Row(defense="kw-conv", dataset="mnist", threat="linf:0.1", attack="autoattack", n=1000, most=95.3),
    Row(defense="advertorch-lenet", dataset="mnist", threat="linf:0.3", attack=PGD, n=10_000, most=93.2),
    Row(defense="advertorch-lenet", dataset="mnist", threat="linf:0.3", attack="pgd[step=0.01]", n=10_000, most=93.2),
    Row(defense="advertorch-lenet", dataset="mnist", threat="linf:0.3", attack="autoattack", n=1000, most=88.7),
    Row(defense="lpd-mlp", dataset="mnist", threat="linf:0.1", attack="a3", n=10_000, least=85.55, most=86.0, sharp=True),
    Row(defense="adv-mlp", dataset="mnist", threat="linf:0.1", attack="a3", n=10_000, least=65.63, most=83.75, sharp=True),
    Row(defense="kw-conv", dataset="mnist", threat="linf:0.1", attack="a3", n=10_000, least=94.2, most=95.9, sharp=True),
    Row(defense="advertorch-lenet", dataset="mnist", threat="linf:0.3", attack="a3", n=1000, most=88.7),
    Row(
        defense="advertorch-lenet",
        dataset="mnist",
        threat="linf:0.3",
        attack="autoattack[version=custom,attacks=[a3,square[queries=1500,rescale=true]]]",
        n=1000,
        most=88.7,
    ),
    Row(defense="kw-conv-l2", dataset=CIFAR, threat="l2:36/255", attack="autoattack", n=1000, most=51.0),
    Row(defense="eran-conv", dataset=CIFAR, threat="linf:2/255", attack="autoattack", n=1000, most=48.5),
)
HEADER = ("model", "data set", "threat model", "attack", "n", "known", "measured", "95 % interval", "passes", "verdict")


def command(row: Row, n: int) -> list[str]:
    """What a person would type."""
    words = ["rbl", "--plugin", str(PLUGIN.relative_to(PLUGIN.parents[2])), "run", "--defense", row.defense]
    return [
        *words,
        "--dataset",
        row.dataset,
        "--threat",
        row.threat,
        "--attack",
        row.attack,
        "--n",
        str(n),
        "--protocol",
        "standard",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows that were asked for; returns 1 where a figure is missed."""
    options = _parser().parse_args(arguments)
    chosen = [row for row in ROWS if any(fnmatch(row.name, pattern) for pattern in options.rows)]
    print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    missed, shown = False, []
    for row in chosen:
        n = min(options.n or row.n, row.n)
        cells, verdict = measure(row, n, options.more)
        print(f"| {' | '.join(cells)} |", flush=True)
        shown.append(shlex.join(command(row, n)))
        missed |= verdict.startswith("**")
    print("\n```sh\n" + "\n".join(dict.fromkeys(shown)) + "\n```")
    return int(missed)


def measure(row: Row, n: int, more: Sequence[str] = ()) -> tuple[list[str], str]:
    """The cells of one row, and its verdict."""
    start = [f"`{row.defense}`", f"`{row.dataset}`", row.threat, f"`{row.attack}`", str(n), row.known]
    words = [sys.executable, "-m", "robustbench_lite", *command(row, n)[1:], *more, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=PLUGIN.parents[2], check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        return [*start, said[:200].replace("|", "/"), "", "", ""], ""
    (found,) = json.loads(done.stdout)["tables"][0]["rows"]
    (cell,) = found["attacks"].values()
    value, low, high = (100 * cell["robust_accuracy"][key] for key in ("value", "low", "high"))
    verdict = row.verdict(value, (low, high)) if n == row.n else "not all examples"
    return [*start, f"{value:.2f}", f"{low:.2f} to {high:.2f}", _passes(found["cost"]), verdict], verdict


def _passes(cost: dict[str, float]) -> str:
    return f"{cost['forwards']:.4g} + {cost['backwards']:.4g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN", help="attack/model, such as 'autoattack/*'")
    parser.add_argument("--n", type=int, help="at most so many examples")
    parser.add_argument("more", nargs="*", help="after --: further options for rbl run, such as --workers 2")
    return parser


if __name__ == "__main__":
    sys.exit(main())
