"""Runs an attack, ours or a peer's, as the core runs one, and says what it was worth and what it cost.

Both sides go through ``runner.run_shard``: the same examples (those classified correctly), the same judge with a forward pass
of its own and the core's test of ball and box. Time is that of the attack alone. Passes are counted by hooks on the network,
in a run of their own.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from networks import Subject
from torch import Tensor, nn

from robustbench_lite.deployed import Deployed
from robustbench_lite.records import Entry
from robustbench_lite.resolve import ResolvedAttack
from robustbench_lite.results import REJECTED
from robustbench_lite.runner import run_shard
from robustbench_lite.specs import AttackSpec
from robustbench_lite.threat import Threat

PeerCall = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
_FINE = (REJECTED[0], REJECTED[1])  # accepted, not misclassified


@dataclass
class Pass:
    """One call of the network: rows, whether it built a graph, and how often that was used."""

    rows: int
    graph: bool
    backwards: int = 0


class Counted(nn.Module):
    """A network that remembers its passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes: list[Pass] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        this = Pass(len(x), logits.requires_grad)
        self.passes.append(this)
        if this.graph:

            def count(_: Tensor) -> None:
                this.backwards += 1

            logits.register_hook(count)
        return logits


class _Observed:
    """Stands in for an attack: takes its time, and marks which of the network's passes are its own."""

    def __init__(self, instance: Any, counted: Counted | None, device: str) -> None:
        self.instance, self.counted, self.device = instance, counted, device
        self.seconds = 0.0
        self.passes: list[Pass] = []

    def __call__(self, *arguments: Any) -> Any:
        before = len(self.counted.passes) if self.counted else 0
        _wait(self.device)
        began = time.perf_counter()
        try:
            return self.instance(*arguments)
        finally:
            _wait(self.device)
            self.seconds = time.perf_counter() - began
            self.passes = self.counted.passes[before:] if self.counted else []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.instance, name)


@dataclass(frozen=True)
class Outcome:
    """One run. robust: share of all examples. sizes: of what was found, per correct example; inf where nothing was.

    refused: why the judge did not accept points, with how many. forwards, backwards: per correct example, from hooks.
    claimed: the same as the core's target counted them; 0 for a peer.
    """

    robust: float
    sizes: np.ndarray
    refused: Counter[str]
    forwards: float
    backwards: float
    claimed: tuple[float, float]
    seconds: float
    passes: tuple[Pass, ...] = field(repr=False)

    @property
    def median(self) -> float:
        """Median size over the correct examples."""
        return float(np.median(self.sizes)) if len(self.sizes) else float("nan")

    @property
    def found(self) -> float:
        """Share of the correct examples for which anything was found."""
        return float(np.isfinite(self.sizes).mean()) if len(self.sizes) else float("nan")


def run(attack: ResolvedAttack, subject: Subject, threat: str, *, counted: bool, seed: int = 0) -> Outcome:
    """Attack and judge all of a subject's examples at once. Raises what the attack raised."""
    device = str(subject.x.device)
    model = deepcopy(subject.model)
    hooked = Counted(model).eval() if counted else None
    observed = _Observed(attack.instance, hooked, device)
    if isinstance(attack.instance, Peer):  # gets the network as people hand it over: in evaluation mode, parameters as loaded
        attack.instance.model = hooked or model
        module: nn.Module = deepcopy(subject.model)
    else:
        module = hooked or model
    deployed = Deployed(module, num_classes=10, name=subject.name)
    spec = {
        "protocol": {"eval_draws": 1, "eot": 1, "budget": None},
        "threat": threat,
        "seed": seed,
        "attack": {"id": attack.entry.id},
        "dataset": {"label": subject.name},
    }
    timed = dataclasses.replace(attack, instance=observed)
    result = run_shard(spec, deployed, timed, subject.x, subject.y, tuple(range(len(subject.x))), 0)
    if result.failure is not None:
        raise result.failure
    arrays = result.arrays
    correct = arrays["clean_correct"]
    attacked = max(int(correct.sum()), 1)
    refused = Counter(REJECTED[code] for code in arrays["rejected"][correct])
    return Outcome(
        robust=float((correct & ~arrays["success"]).mean()),
        sizes=arrays["size"][correct],
        refused=Counter({reason: number for reason, number in refused.items() if reason not in _FINE}),
        forwards=sum(p.rows for p in observed.passes) / attacked,
        backwards=sum(p.rows * p.backwards for p in observed.passes) / attacked,
        claimed=(float(arrays["forwards"].sum()) / attacked, float(arrays["backwards"].sum()) / attacked),
        seconds=observed.seconds,
        passes=tuple(observed.passes),
    )


class Peer:
    """An attack of another library in our clothes: it ignores the target and works on the network itself."""

    model: nn.Module

    def __init__(self, call: PeerCall) -> None:
        self.call = call

    def __call__(self, target: object, x: Tensor, y: Tensor, threat: Threat, rng: object) -> Tensor:
        with quiet():
            return self.call(self.model, x, y, threat.eps).detach().to(x)


def over_seeds(attack: ResolvedAttack, subject: Subject, threat: str, seeds: int) -> Outcome:
    """Counted runs with the seeds 0, 1, ...: means over the runs, and the sizes of all of them."""
    runs = [run(attack, subject, threat, counted=True, seed=seed) for seed in range(seeds)]
    return dataclasses.replace(
        runs[0],
        robust=float(np.mean([one.robust for one in runs])),
        sizes=np.concatenate([one.sizes for one in runs]),
        refused=sum((one.refused for one in runs), Counter()),
        forwards=float(np.mean([one.forwards for one in runs])),
        backwards=float(np.mean([one.backwards for one in runs])),
        claimed=(float(np.mean([one.claimed[0] for one in runs])), float(np.mean([one.claimed[1] for one in runs]))),
    )


def peer_attack(library: str, name: str, call: PeerCall, *, minimal: bool, norm: str) -> ResolvedAttack:
    """A peer's attack as the core's runner takes it; torch's global generator is seeded for it."""
    spec = AttackSpec(
        name=name,
        factory="measure:Peer",
        norms=(norm,),
        access="none",
        goal="minimal-norm" if minimal else "fixed-budget",
        global_rng=True,
    )
    entry = Entry(id=f"{library}/{name}", namespace=library, spec=spec, distribution=library, version="", module="measure")
    return ResolvedAttack(entry, Peer(call), f"{library} {name}")


def interleaved(repeats: int, *sides: Callable[[], float]) -> list[list[float]]:
    """The seconds of each side, run in turn ``repeats`` times, so that whatever slows the machine slows both."""
    times: list[list[float]] = [[] for _ in sides]
    for number in range(repeats):
        order = list(enumerate(sides))
        for index, side in order if number % 2 == 0 else reversed(order):
            times[index].append(side())
    return times


def replay(model: nn.Module, x: Tensor, passes: tuple[Pass, ...]) -> float:
    """Seconds that the bare passes take: the same sizes in the same order, gradients with respect to the images only."""
    frozen = deepcopy(model).eval().requires_grad_(False)
    sizes = {p.rows for p in passes}
    images = {n: x.repeat(-(-n // len(x)), 1, 1, 1)[:n].clone() for n in sizes if n}
    device = str(x.device)
    _wait(device)
    began = time.perf_counter()
    for one in passes:
        if not one.rows:
            continue
        if not one.graph:
            with torch.no_grad():
                frozen(images[one.rows])
            continue
        leaf = images[one.rows].detach().requires_grad_()
        logits = frozen(leaf)
        for left in range(one.backwards, 0, -1):
            torch.autograd.grad(logits, leaf, torch.ones_like(logits), retain_graph=left > 1)
    _wait(device)
    return time.perf_counter() - began


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from warning about what is intended here."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
