"""Runs one cell: shard by shard, attack then judge, each shard written as soon as it is whole.

Everything that a worker process needs arrives as JSON (``WorkItem``); everything that it finds goes to the store. A cell
that ends badly leaves an attempt with a status and a reason, and what its target had seen, never a score.
"""

from __future__ import annotations

import os
import platform
import resource
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustbench_lite.allocator import keep_freed_memory
from robustbench_lite.cell import Cell
from robustbench_lite.data import fetch
from robustbench_lite.deployed import Deployed, is_out_of_memory
from robustbench_lite.errors import BudgetExceeded, CellFailed, PluginError, RblError, StoreError
from robustbench_lite.judge import Judge
from robustbench_lite.lease import Lease
from robustbench_lite.ledger import Ledger
from robustbench_lite.measuring import card_of, is_measurement, measure
from robustbench_lite.member import members_of, one_point_per_row
from robustbench_lite.plan import SHARD, PlannedCell, shards_of
from robustbench_lite.randomness import Randomness, seeded_globally
from robustbench_lite.request import RunRequest
from robustbench_lite.resolve import (
    ResolvedAttack,
    ResolvedDataset,
    ResolvedDefense,
    attack_from_spec,
    dataset_from_spec,
    defense_from_spec,
    metric_from_spec,
)
from robustbench_lite.store import Store
from robustbench_lite.target import Target, Watch, surrogate_targets
from robustbench_lite.threat import Threat
from robustbench_lite.weights import state_hash

if TYPE_CHECKING:
    from robustbench_lite.diagnostics.plan import PlannedChecks
    from robustbench_lite.registry import Registry

Emit = Callable[[dict[str, Any]], None]

# Fewest examples on which chance-level clean accuracy is taken for a mistake of preprocessing.
ENOUGH_TO_TELL = 64


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """One cell to run, as JSON: what to run and how. ``files``: weights by checksum.

    checks: names of checks to make of the spec's defense, in place of running a cell (``diagnostics/plan.py``).
    """

    spec: Mapping[str, Any]
    key: str
    label: str
    store: str
    data: str
    device: str
    n: int
    micro_batch: int | None = None
    keep_examples: int | str = 0
    files: Mapping[str, str] = field(default_factory=dict)
    checks: Sequence[str] = field(default_factory=list)

    @property
    def defense(self) -> str:
        """Which model it needs: items of one defense go to one worker where possible."""
        return str((self.spec["dataset"]["id"], self.spec["dataset"]["parameters"], self.spec["defense"]))

    def to_json(self) -> dict[str, Any]:
        """The fields, for a pipe."""
        return asdict(self)

    @classmethod
    def of(cls, planned: PlannedCell | PlannedChecks, request: RunRequest, device: str, checks: Sequence[str] = ()) -> WorkItem:
        """The work item of a planned cell, or of these checks."""
        return cls(
            spec=planned.spec,
            key=planned.key,
            label=planned.label,
            store=str(request.store),
            data=str(request.data),
            device=device,
            n=planned.n,
            micro_batch=request.micro_batch,
            keep_examples=request.keep_examples,
            files=planned.files,
            checks=list(checks),
        )


class Workbench:
    """What a worker keeps between cells: the last data set, the last defense and the last surrogates, loaded once."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._dataset: tuple[str, ResolvedDataset] | None = None
        self._defense: tuple[str, Deployed] | None = None
        self._surrogates: dict[str, Deployed] = {}

    def dataset(self, item: WorkItem) -> ResolvedDataset:
        """The item's data set."""
        name = str((item.spec["dataset"], item.data))
        if self._dataset is None or self._dataset[0] != name:
            self._dataset = (name, dataset_from_spec(self.registry, item.spec["dataset"], Path(item.data)))
        return self._dataset[1]

    def deployed(self, item: WorkItem) -> Deployed:
        """The item's defense on its device, with what is known of the micro-batch that fits."""
        name = f"{item.defense}|{item.device}|{item.micro_batch}"
        if self._defense is None or self._defense[0] != name:
            self._defense = None  # let go of the last model before the next one is loaded
            self._defense = (name, self._deploy(item.spec["defense"], item))
        return self._defense[1]

    def surrogates(self, item: WorkItem) -> tuple[Deployed, ...]:
        """The defenses that the item's attack is crafted on; those of the last item are kept where they are the same."""
        specs = item.spec["attack"].get("surrogates", ())
        names = [f"{item.spec['dataset']}|{spec}|{item.device}|{item.micro_batch}" for spec in specs]
        self._surrogates = {name: kept for name, kept in self._surrogates.items() if name in names}
        for name, spec in zip(names, specs, strict=True):
            if name not in self._surrogates:
                self._surrogates[name] = self._deploy(spec, item)
        return tuple(self._surrogates[name] for name in names)

    def _deploy(self, spec: Mapping[str, Any], item: WorkItem) -> Deployed:
        return _deploy(defense_from_spec(self.registry, spec, self.dataset(item).info, item.files), spec, item)


def _deploy(defense: ResolvedDefense, spec: Mapping[str, Any], item: WorkItem) -> Deployed:
    module = defense.build()
    expected = spec["weights"]
    if isinstance(expected, str) and expected.startswith("state:") and expected != f"state:{state_hash(module)}":
        raise CellFailed(
            f"{defense.label} built other weights than when the run was planned",
            status="error",
            hint="its factory must build the same module every time: seed what it draws, or load it from a file",
        )
    if not defense.differentiable and defense.attackable_by_gradient and not hasattr(module, "surrogate"):
        raise PluginError(
            f"{defense.label} is declared non-differentiable with a surrogate, and its module has no method surrogate(x)",
            hint="add the method, or declare surrogate=False in its DefenseSpec",
        )
    return Deployed(
        module.to(item.device),
        num_classes=defense.info.num_classes,
        stochastic=defense.stochastic,
        differentiable=defense.differentiable,
        rejects=defense.rejects,
        micro_batch=item.micro_batch,
        name=defense.label,
    )


def run_cell(item: WorkItem, bench: Workbench, emit: Emit) -> str:
    """Run what is missing of a cell and say how it ended: done, cached, busy, or a failure status of the store.

    emit: told of progress (``{"event": "started" | "shard" | "finished", ...}``). Only KeyboardInterrupt and what ends the
    process come out of it.
    """
    try:
        return _run_cell(item, bench, emit)
    except StoreError as error:  # a full disk, say: it may hold no record of this attempt either
        return _finished(emit, item, "error", str(error))


def _run_cell(item: WorkItem, bench: Workbench, emit: Emit) -> str:
    cell = Store.open(Path(item.store)).cell(item.spec)
    shards = shards_of(item.spec)
    lease = Lease.acquire(cell.folder)
    if lease is None:
        return _finished(emit, item, "busy", "another run is working on it")
    with lease:
        state = cell.state(shards)
        if state.status == "done":
            return _finished(emit, item, "cached", "")
        cell.write_spec()
        attempt = cell.begin_attempt(environment(item.device))
        emit({"event": "started", "key": item.key, "label": item.label, "attempt": str(attempt.path), "shards": shards})
        try:
            run = _measure_shards if is_measurement(item.spec) else _run_shards
            run(item, bench, cell, sorted(set(range(shards)) - state.shards), attempt.update, emit)
            cell.commit(shards)
        except Exception as error:
            status, reason = _classify(error)
            with suppress(StoreError):  # the reason is worth more than the news that it could not be stored
                attempt.finish(status, reason, traceback.format_exc())
            return _finished(emit, item, status, reason)
        attempt.finish("done")
        return _finished(emit, item, "done", "")


def _finished(emit: Emit, item: WorkItem, status: str, reason: str) -> str:
    emit({"event": "finished", "key": item.key, "label": item.label, "status": status, "reason": reason})
    return status


def _classify(error: Exception) -> tuple[str, str]:
    """Status and reason; notes, such as which member of an attack raised, come first."""
    where = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
    if isinstance(error, CellFailed):
        return error.status, where + str(error)
    if is_out_of_memory(error):
        return "out-of-memory", where + "memory ran out with a single example"
    if isinstance(error, RblError):
        return "error", where + str(error)
    return "error", f"{where}{type(error).__name__}: {error}"


def _run_shards(
    item: WorkItem, bench: Workbench, cell: Cell, missing: list[int], note: Callable[..., None], emit: Emit
) -> None:
    dataset = bench.dataset(item)
    deployed = bench.deployed(item)
    attack = attack_from_spec(bench.registry, item.spec["attack"])
    surrogates = bench.surrogates(item)
    subset = dataset.subset(item.n)
    began, notes, unattributed = time.monotonic(), list[str](), 0
    for number in missing:
        shard_began = time.monotonic()
        ids = subset[number * SHARD : (number + 1) * SHARD]
        x, y = load_examples(dataset, ids)
        result = run_shard(item.spec, deployed, attack, x.to(item.device), y.to(item.device), ids, number, surrogates)
        if result.failure is not None:
            with suppress(StoreError):
                cell.write_salvage(number, result.arrays)
            raise result.failure
        rows = _rows_to_keep(item.keep_examples, cell, number, result.arrays["success"])
        if len(rows):
            images = {"x": x.cpu().numpy()[rows], "x_adv": result.x_adv.cpu().numpy()[rows]}
            cell.write_examples(number, {"index": result.arrays["index"][rows], **images})
        cell.write_shard(number, result.arrays, n=len(ids))
        notes += result.notes
        unattributed += result.unattributed
        note(
            shard=number,
            elapsed=time.monotonic() - began,
            micro_batch=deployed.micro_batch,
            memory_history=list(deployed.memory_history),
            unattributed=unattributed,
            notes=sorted(set(notes)),
            peak_memory_bytes=peak_memory(item.device),
        )
        seconds = time.monotonic() - shard_began
        emit({"event": "shard", "key": item.key, "shard": number, "n": len(ids), "seconds": seconds})


def _measure_shards(
    item: WorkItem, bench: Workbench, cell: Cell, missing: list[int], note: Callable[..., None], emit: Emit
) -> None:
    dataset, deployed = bench.dataset(item), bench.deployed(item)
    metric = metric_from_spec(bench.registry, item.spec["metric"])
    subset, per_example = dataset.subset(item.n), metric.declared.per_example
    card = card_of(item.spec["defense"], item.files)
    named = item.spec["metric"].get("datasets", ())
    others = {each["label"]: dataset_from_spec(bench.registry, each, Path(item.data)).bundle for each in named}
    began = time.monotonic()
    for number in missing:
        shard_began = time.monotonic()
        ids = subset[number * SHARD : (number + 1) * SHARD] if per_example else subset
        x, y = load_examples(dataset, ids)
        arrays = measure(item.spec, deployed, metric, dataset.bundle, x.to(item.device), y.to(item.device), ids, card, others)
        cell.write_shard(number, arrays, n=len(ids) if per_example else None)
        elapsed = time.monotonic() - began
        note(shard=number, elapsed=elapsed, micro_batch=deployed.micro_batch, peak_memory_bytes=peak_memory(item.device))
        seconds = time.monotonic() - shard_began
        emit({"event": "shard", "key": item.key, "shard": number, "n": len(ids), "seconds": seconds})


def _rows_to_keep(keep: int | str, cell: Cell, number: int, success: np.ndarray) -> np.ndarray:
    """The rows of a shard whose images are stored. keep: all, or the first so many of the cell that were beaten.

    Counted over the shards before this one, which are whole by now, so that an interruption changes nothing.
    """
    if keep == "all" or not keep:
        return np.arange(len(success) if keep else 0)
    before = sum(int(cell.read_shard(i)["success"].sum()) for i in range(number))
    return success.nonzero()[0][: max(0, int(keep) - before)]


@dataclass(frozen=True)
class ShardResult:
    """Per-example arrays and points of one shard; ``failure`` where the attack raised: then they are what it had found."""

    arrays: dict[str, np.ndarray]
    x_adv: Tensor
    unattributed: int
    notes: tuple[str, ...] = ()
    failure: Exception | None = None


def run_shard(
    spec: Mapping[str, Any],
    deployed: Deployed,
    attack: ResolvedAttack,
    x: Tensor,
    y: Tensor,
    ids: tuple[int, ...],
    number: int,
    surrogates: Sequence[Deployed] = (),
    watch: Watch | None = None,
) -> ShardResult:
    """Attack and judge one shard. x: (n, C, H, W) in [0, 1], y: (n,), ids: indices into the test split.

    surrogates: the defenses that the attack is crafted on. watch: shown all that the attack asks of its target.

    Random numbers depend on the seed, the attack's id and each example's id: not on parameters (so that a longer run
    continues a shorter one), nor on the defense (so that defenses meet the same draws), nor on other examples.
    """
    if callable(getattr(attack.instance, "members", None)) and not attack.members:
        raise PluginError(f"{attack.label} is made of other attacks, which were not resolved", hint="see composition.compose")
    protocol, threat = spec["protocol"], Threat.parse(spec["threat"])
    numbers = torch.tensor(ids, dtype=torch.int64, device=x.device)
    key = f"{spec['seed']}|{spec['attack']['id']}"
    deployed.fit_memory(x)
    seed = Randomness(f"{key}|shard", numbers).seed_for("shard", number)
    with seeded_globally(True, seed, x.device):  # for a defense that draws without saying so
        judge = Judge(deployed, x, y, numbers, passes=protocol["eval_draws"], key=str(spec["seed"]))
        _refuse_chance(deployed, judge.correct, spec)
        rows = judge.correct.nonzero()[:, 0]
        ledger = Ledger(
            x[rows],
            y[rows],
            threat,
            minimal=attack.declared.goal == "minimal-norm",
            rejects=deployed.rejects,
            budget=protocol["budget"],
        )
        target = Target(
            deployed,
            ledger,
            access=attack.declared.access,
            key=f"{key}|defense",
            ids=numbers[rows],
            eot=protocol["eot"],
            confirm=protocol["eval_draws"],
            attack=attack.label,
            members=members_of(attack.members, number),
            surrogates=surrogate_targets(surrogates, ledger, key=key, ids=numbers[rows], eot=protocol["eot"]),
            watch=watch,
        )
        rng = Randomness(f"{key}|attack", numbers[rows])
        with seeded_globally(attack.declared.global_rng, rng.seed_for("shard", number), x.device):
            proposal, notes, failure = _propose(attack, target, x[rows], y[rows], threat, rng)
        verdict = judge.judge(ledger, proposal, threat, members=bool(attack.members))
        return ShardResult(verdict.arrays, verdict.x_adv, ledger.unattributed, (*ledger.notes, *notes), failure)


def _propose(
    attack: ResolvedAttack, target: Target, x: Tensor, y: Tensor, threat: Threat, rng: Randomness
) -> tuple[object, tuple[str, ...], Exception | None]:
    """What the attack returns, what is to be noted of it, and what it raised."""
    if not len(x):
        return x, (), None
    try:
        return one_point_per_row(attack.instance(target, x.clone(), y.clone(), threat, rng), x), (), None
    except BudgetExceeded:
        return target.best(x), ("the query budget ended the attack",), None
    except Exception as error:
        return None, (), error


def load_examples(dataset: ResolvedDataset, ids: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images (n, C, H, W) float32 in [0, 1] and labels (n,). Raises PluginError where the data set breaks its contract."""
    x, y = fetch(dataset.bundle.test, ids)
    if x.dtype != torch.float32 or tuple(x.shape[1:]) != dataset.info.shape or not bool(((x >= 0) & (x <= 1)).all()):
        raise PluginError(
            f"data set {dataset.label} gave {x.dtype} {tuple(x.shape[1:])} images from {x.min():.3g} to {x.max():.3g}",
            hint=f"give float32 of shape {dataset.info.shape} in [0, 1]",
        )
    return x, y.long()


def _refuse_chance(deployed: Deployed, correct: Tensor, spec: Mapping[str, Any]) -> None:
    """Fail fast where the defense guesses: nearly always a wrong preprocessing, a wrong class order or missing weights."""
    n, right = len(correct), int(correct.sum())
    if n >= ENOUGH_TO_TELL and right * deployed.num_classes <= n:
        raise CellFailed(
            f"{deployed.name} is right on {right} of {n} clean images of {spec['dataset']['label']}: no better than chance",
            status="error",
            hint="check its weights, the order of its classes, and that it takes [0, 1] images and normalises inside",
        )


def environment(device: str) -> dict[str, Any]:
    """Where a cell runs: recorded beside it, not part of its key."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "pid": os.getpid(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name(),
        "threads": torch.get_num_threads(),
        "packages": dict(_packages()),
    }


@cache
def _packages() -> Mapping[str, str]:
    wanted = {"robustbench-lite", "torch", "torchvision", "numpy"}
    wanted |= {d.name for d in metadata.distributions() for e in d.entry_points if e.group == "robustbench_lite"}
    return versions(sorted(wanted))


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """The versions of those of these distributions that are installed, in this order."""
    found = {}
    for name in distributions:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} threads)" if names else platform.machine()


def peak_memory(device: str) -> int:
    """Bytes: the most that this process has taken so far, on the GPU or in main memory."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def prepare_torch(device: str, threads: int | None) -> None:
    """Settings under which a result is the same wherever it is computed: float32 throughout, no TF32, no autotuning.

    Besides, freed memory stays with the process, which is about speed alone.
    """
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
