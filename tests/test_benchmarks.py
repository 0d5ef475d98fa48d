"""The benchmark scripts run without any peer, measure what they say, and judge both sides alike."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.registry import Registry, load
from robustbench_lite.resolve import resolve_attack

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The scripts as modules: they import one another by their own names."""
    names = ("measure", "networks", "calls", "rows", "peers", "published")
    if taken := [name for name in names if name in sys.modules]:
        raise RuntimeError(f"modules of these names are loaded already: {taken}")
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: __import__(name) for name in names})
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load()


@pytest.fixture(scope="module")
def digits(bench: SimpleNamespace) -> Any:
    return bench.networks.subject("at", 32, "cpu")


def script(name: str, *words: str) -> str:
    """What a script prints; with the folder's own modules only, and without the peers."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *words],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_peers_prints_a_table_whoever_is_installed() -> None:
    printed = script("peers.py", "--quick", "--n", "12", "--rows", "fgsm/*", "pgd/l2/*", "square/linf/*", "a-row-that-is-not/*")
    table = [line for line in printed.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1].partition("[")[0] for line in table] == ["fgsm"] * 4 + ["pgd"] * 2 + ["square"]
    for line in table:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert 0 <= float(cells[2]) <= 100
        assert cells[3].endswith("is not installed") or 0 <= float(cells[3].split()[0]) <= 100
        assert float(cells[8]) > 0


@pytest.mark.slow
def test_peers_times_runs_in_processes_of_their_own() -> None:
    # a3 has our own autoattack for a peer, so that nothing else need be installed
    printed = script("peers.py", "--n", "4", "--models", "at", "--repeats", "1", "--apart", "--rows", "a3/linf/*")
    (line,) = [line for line in printed.splitlines() if line.startswith("| `a3")]
    ours, theirs, ratio = (float(cell) for cell in line.split("|")[9:12])
    assert min(ours, theirs) > 0
    assert ratio == pytest.approx(ours / theirs, rel=0.01, abs=0.01)


@pytest.mark.slow
def test_report_prints_seconds_and_memory_of_each_command() -> None:
    printed = script("report.py", "--defenses", "3", "--attacks", "9", "--examples", "300", "--whole")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line.startswith("| `")]
    assert [name for name, *_ in table] == [
        "`rbl report --html`",
        "`rbl report --out`",
        "`rbl report --json`",
        "`rbl compare`",
        "`rbl report --html, from the shards`",
    ]
    assert all(float(figure) > 0 for _, *figures in table for figure in figures[:3])


def test_overhead_prints_a_ratio_above_one() -> None:
    printed = script("overhead.py", "--quick", "--model", "at", "--rows", "pgd/linf/torchattacks")
    (ours,) = [line for line in printed.splitlines() if "| rbl |" in line]
    passes, seconds, bare, ratio, spread, pairs = ours.strip("| ").split("|")[3:]
    low, high = spread.split("to")
    assert (int(passes), int(pairs)) == (3 * 2 + 1, 1)
    assert float(low) == float(high) == pytest.approx(float(ratio), abs=0.005)
    assert float(ratio) == pytest.approx(float(seconds) / float(bare), rel=0.1)  # seconds are rounded


@pytest.mark.slow
def test_memory_measures_each_size_in_a_process_of_its_own() -> None:
    printed = script("memory.py", "--quick")
    rows = [line.strip("| ").split("|") for line in printed.splitlines() if line.startswith(("| 2", "| 4"))]
    assert [int(row[0]) for row in rows] == [2, 4]
    for row in rows:
        assert float(row[4]) >= float(row[3])


def test_the_default_rows_are_named_once_and_have_a_selector_each(bench: SimpleNamespace) -> None:
    for quick in (False, True):
        made = list(bench.rows.rows(quick=quick))
        assert len({(row.name, row.minimal) for row in made}) == len(made)
        assert all(row.peer == "rbl" or row.peer in bench.peers.MODULES for row in made)


def test_no_row_asks_for_a_parameter_that_an_attack_does_not_have(bench: SimpleNamespace, registry: Registry) -> None:
    """An attack may be missing, but what is there is asked for as it is."""
    reasons = {"not there yet": ""}
    for row in [*bench.rows.rows(quick=True), *bench.rows.rows()]:
        found = bench.peers.or_reason(partial(bench.peers.our_attack, row.selector(0.1), registry, "linf:0.1"))
        if isinstance(found, str):
            reasons[found] = row.selector(0.1)
    assert list(reasons) == ["not there yet"], reasons


def test_passes_are_counted_by_hooks_and_by_the_target_alike(bench: SimpleNamespace, registry: Registry, digits: Any) -> None:
    for selector in ("pgd[steps=4,finish=false]", "square[queries=9]", "fgsm", "autoattack[steps=2,queries=5]"):
        attack = bench.peers.our_attack(selector, registry, "linf:0.12")
        outcome = bench.measure.run(attack, digits, "linf:0.12", counted=True)
        assert (outcome.forwards, outcome.backwards) == pytest.approx(outcome.claimed)
        assert outcome.forwards > 0
        assert outcome.seconds > 0


class TestPeers:
    """A peer is what it returns, judged as ours is."""

    def judged(self, bench: SimpleNamespace, digits: Any, call: Any, *, minimal: bool = False) -> Any:
        attack = bench.measure.peer_attack("nobody", "peer", call, minimal=minimal, norm="linf")
        return bench.measure.run(attack, digits, "linf" if minimal else "linf:0.1", counted=True)

    def test_points_outside_the_ball_do_not_count(self, bench: SimpleNamespace, digits: Any) -> None:
        clean = self.judged(bench, digits, lambda model, x, y, eps: x)
        far = self.judged(bench, digits, lambda model, x, y, eps: 1 - x)
        assert far.robust == clean.robust
        assert sum(far.refused.values()) > 20
        assert not clean.refused

    def test_points_inside_do(self, bench: SimpleNamespace, digits: Any, registry: Registry) -> None:
        def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
            leaf = x.clone().requires_grad_()
            nn.functional.cross_entropy(model(leaf), y).backward()
            assert leaf.grad is not None
            return (x + eps * leaf.grad.sign()).clamp(0, 1)

        theirs = self.judged(bench, digits, fgsm)
        ours = bench.measure.run(resolve_attack(registry, "fgsm"), digits, "linf:0.1", counted=True)
        assert theirs.robust == ours.robust
        assert (theirs.forwards, theirs.backwards) == (ours.forwards, ours.backwards) == (1, 1)

    def test_a_minimal_norm_is_the_judges(self, bench: SimpleNamespace, digits: Any) -> None:
        nothing = self.judged(bench, digits, lambda model, x, y, eps: x, minimal=True)
        far = self.judged(bench, digits, lambda model, x, y, eps: 1 - x, minimal=True)
        assert (nothing.found, nothing.median) == (0, float("inf"))
        assert far.found > 0.5
        assert far.median == pytest.approx(1, abs=0.3)

    def test_what_one_raises_is_a_cell_of_the_table(self, bench: SimpleNamespace, digits: Any, registry: Registry) -> None:
        def broken(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
            raise ValueError("no | luck")

        row = bench.rows.Row(ours=bench.rows.fixed("fgsm"), norm="linf", peer="scipy", call=broken)
        bench.peers.MODULES["scipy"] = "scipy"
        cells = bench.peers.compare(row, digits, registry, repeats=1)
        assert cells[3] == "ValueError: no / luck"
        assert float(cells[2]) <= 100
        assert len(cells) == len(bench.peers.HEADER)


def test_a_weaker_attack_is_a_finding(bench: SimpleNamespace, registry: Registry, digits: Any) -> None:
    def row(ours: str, theirs: str) -> list[str]:
        made = bench.rows.Row(ours=bench.rows.fixed(ours), norm="linf", peer="rbl", call=theirs)
        cells: list[str] = bench.peers.compare(made, digits, registry, repeats=1)
        return cells

    assert "weaker" in row("uniform-noise", "pgd[steps=10]")[-1]
    assert "weaker" not in row("pgd[steps=10]", "uniform-noise")[-1]
    assert "more passes" in row("pgd[steps=10]", "uniform-noise")[-1]


def test_the_bare_passes_are_those_that_were_made(bench: SimpleNamespace, digits: Any) -> None:
    class Spy(nn.Module):
        seen: list[tuple[int, bool]] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append((len(x), x.requires_grad))
            return digits.model(x)

    made = (bench.measure.Pass(5, False), bench.measure.Pass(70, True, 2), bench.measure.Pass(0, True, 1))
    assert bench.measure.replay(Spy(), digits.x, made) > 0
    assert Spy.seen == [(5, False), (70, True)]


def test_sides_run_in_turn(bench: SimpleNamespace) -> None:
    called, times = [], {"a": iter([3.0, 1.0, 2.0]), "b": iter([5.0, 6.0, 4.0])}

    def side(name: str) -> Any:
        def run() -> float:
            called.append(name)
            return next(times[name])

        return run

    assert bench.measure.interleaved(3, side("a"), side("b")) == [[3.0, 1.0, 2.0], [5.0, 6.0, 4.0]]
    assert "".join(called) == "abbaab"


@pytest.mark.parametrize(
    ("figures", "found", "verdict"),
    [
        ({"exact": 86.61}, 86.61, "ok"),
        ({"exact": 86.61}, 86.60, "**differs**"),
        ({"least": 85.55, "most": 86.0, "sharp": True}, 85.55, "ok"),
        ({"least": 85.55, "most": 86.0, "sharp": True}, 85.54, "**contradicts the proof**"),
        ({"least": 85.55, "most": 86.0, "sharp": True}, 86.01, "**weaker**"),
        ({"most": 51.0}, 53.9, "ok"),
        ({"most": 51.0}, 54.2, "**weaker**"),
        ({"most": 51.0}, 12.0, "ok"),
    ],
)
def test_figures_are_met_or_missed(bench: SimpleNamespace, figures: dict[str, Any], found: float, verdict: str) -> None:
    row = bench.published.Row(defense="m", dataset="d", threat="linf:1", attack="a", n=1000, **figures)
    assert row.verdict(found, (found - 3, found + 3)) == verdict


def test_a_network_is_the_same_whenever_it_is_made(bench: SimpleNamespace) -> None:
    state = torch.get_rng_state()
    first, again = (bench.networks.subject("cnn", 8, "cpu") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert torch.equal(first.model(first.x), again.model(again.x))
        assert float((first.model(first.x).argmax(1) == first.y).float().mean()) >= 0.75
    assert 90_000 < sum(p.numel() for p in first.model.parameters()) < 110_000
