"""How long `rbl report` takes, and how much memory, for a store of many results.

    python benchmarks/report.py                                        500 defenses x 40 attacks x 10,000 examples
    python benchmarks/report.py --store /data/synthetic                keeps the store, goes on with it, and uses it again
    python benchmarks/report.py --whole --defenses 10 --attacks 8      with real shards, also read without the columns
    python benchmarks/report.py --quick                                a smoke run: 6 x 5 x 600

The store is synthetic: every cell has its spec, its commit, the record of an attempt with an entry per shard, and the file of
columns that tables read, as `rbl run` writes them. The shards themselves, some 60 GB at full size, are empty files of the right
size, since a report does not read them; --whole writes them too. One attack in eight is a minimal-norm attack, and each
defense has a rate and a noise of its own, so that there are ties, ranks, curves and intervals to compute.

Each command runs in a process of its own, after a first run that fills the caches of the operating system. Seconds are wall
clock of the whole command, CPU seconds those of all its processes; memory is the peak of the largest (getrusage).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_lite import columns
from robustbench_lite.contents import FORMAT, pack, seal
from robustbench_lite.keys import canonical_json
from robustbench_lite.store import Store

SHARD = 256
EMPTY = 70_000  # bytes that a shard of ten classes takes, about
# A small process that starts the command: of a large one, a new process would inherit the peak memory.
MEASURED = (
    sys.executable,
    "-c",
    """
import json, resource, subprocess, sys, time
began = time.monotonic()
code = subprocess.call(sys.argv[2:])
wall, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump([wall, used.ru_utime + used.ru_stime, used.ru_maxrss], file)
sys.exit(code)
""",
)
COMMANDS = {
    "rbl report --html": ("--html", "{out}/report.html"),
    "rbl report --out": ("--out", "{out}", "--format", "csv"),
    "rbl report --json": ("--json",),
    "rbl compare": (),
}


def main(arguments: list[str] | None = None) -> int:
    """Make the store, run the commands, print a table; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.defenses, options.attacks, options.examples, options.whole = 6, 5, 600, True
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.store or Path(scratch) / "store"
        began = time.monotonic()
        _fill(Store.open(folder), options)
        print(f"made in {time.monotonic() - began:.0f} s\n", file=sys.stderr)
        print(f"{options.defenses} defenses x {options.attacks} attacks x {options.examples:,} examples, {_about(folder)}\n")
        print("| command | seconds | CPU seconds | peak MiB | output MiB |")
        print("| --- | --- | --- | --- | --- |")
        for name, words in COMMANDS.items():
            _row(name, words, folder, Path(scratch))
        if options.whole:
            for path in folder.glob(f"cells/*/*/{columns.NAME}"):
                path.unlink()
            _row("rbl report --html, from the shards", COMMANDS["rbl report --html"], folder, Path(scratch))
    return 0


def _row(name: str, words: tuple[str, ...], folder: Path, scratch: Path) -> None:
    out = scratch / "out"
    command = ["report"] if "report" in name else ["compare", "defense-000", "defense-001"]
    full = [sys.executable, "-m", "robustbench_lite", *command, "--store", str(folder), *(w.format(out=out) for w in words)]
    for _ in range(2):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        with (out / "stdout").open("w") as stdout, (scratch / "stderr").open("w") as stderr:
            told = subprocess.run([*MEASURED, str(scratch / "usage"), *full], stdout=stdout, stderr=stderr, check=False)
        if told.returncode:
            raise SystemExit(f"{name} failed: {(scratch / 'stderr').read_text()}")
        wall, cpu, peak = json.loads((scratch / "usage").read_text())
    written = sum(path.stat().st_size for path in out.iterdir()) / 2**20
    print(f"| `{name}` | {wall:.1f} | {cpu:.1f} | {peak / 1024:.0f} | {written:.1f} |", flush=True)


def _about(folder: Path) -> str:
    cells = sum(1 for _ in folder.glob("cells/*/*/spec.json"))
    size = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) / 2**30
    return f"{cells:,} cells, {size:.1f} GiB on disk; Python {sys.version.split()[0]}, {os.cpu_count()} cores"


def _fill(store: Store, options: argparse.Namespace) -> None:
    """All cells. Files are written without syncing: this store is worth nothing."""
    n = options.examples
    common = np.random.default_rng(0)
    hardness = common.random(n).astype(np.float32)
    rates = np.sort(common.beta(2, 2, options.defenses))[::-1]
    strengths = common.uniform(0.0, 0.25, options.attacks)
    defenses = [_defense(i) for i in range(options.defenses)]
    attacks = [_attack(i) for i in range(options.attacks)]
    for d, defense in enumerate(defenses):
        own = np.random.default_rng([1, d]).normal(0, 0.1, n).astype(np.float32)
        for a, attack in enumerate(attacks):
            minimal = attack["goal"] == "minimal-norm"
            spec = _spec(defense, attack, "linf" if minimal else "linf:0.15", n)
            if (store.cell(spec).folder / columns.NAME).exists():  # an interrupted run goes on
                continue
            rng = np.random.default_rng([2, d, a])
            radius = 0.15 * rates[d] / 0.5 * (1.2 - hardness + own) * (1.25 - strengths[a] + 0.05 * rng.random(n))
            arrays = _arrays(np.clip(radius, 1e-4, None), np.inf if minimal else 0.15, hardness + own < 1.1, rng)
            _write(store, spec, arrays, whole=options.whole)


def _defense(i: int) -> dict[str, Any]:
    weights = hashlib.sha256(str(i).encode()).hexdigest()
    parameters = {"width": 16 + i, "eps": 0.15, "epochs": 60, "lr": 0.05, "weight_decay": 0.0005, "batch_size": 128}
    named = {"id": f"lab/defense-{i:03}", "label": f"defense-{i:03}", "version": 1, "parameters": parameters}
    flags = {"stochastic": False, "differentiable": True, "surrogate": False, "rejects": False}
    return named | {"weights": weights, "base": None} | flags


def _attack(i: int) -> dict[str, Any]:
    named = {"id": f"lab/attack-{i:02}", "label": f"attack-{i:02}", "version": 1, "parameters": {"steps": 100, "restarts": 1}}
    return named | {"access": "gradient", "goal": "minimal-norm" if i % 8 == 7 else "fixed-budget"}


def _spec(defense: dict[str, Any], attack: dict[str, Any], threat: str, n: int) -> dict[str, Any]:
    return {
        "format": 1,
        "protocol": {"name": "standard", "version": 1, "eot": 20, "eval_draws": 50, "budget": None, "n": n},
        "dataset": {
            "id": "lab/images",
            "version": 1,
            "parameters": {},
            "label": "images",
            "name": "images",
            "fingerprint": "f" * 64,
            "subset": "0" * 64,
        },
        "defense": defense,
        "attack": attack,
        "threat": threat,
        "seed": 0,
    }


def _arrays(radius: np.ndarray, eps: float, correct: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The judge's arrays: examples lie at ``radius`` from the boundary, and are beaten up to eps."""
    n = len(radius)
    success = correct & (radius <= eps)
    size = np.where(success, radius.astype(np.float64), np.inf)
    y = np.arange(n) % 10
    distance = np.where(success, size, 0.0)
    return {
        "index": np.arange(n),
        "y": y,
        "clean_pred": np.where(correct, y, (y + 1) % 10),
        "adv_pred": np.where(success, (y + 3) % 10, y),
        "clean_correct": correct,
        "success": success,
        "size": size,
        **dict.fromkeys(("linf", "l2", "l1", "l0", "entropy"), distance),
        **dict.fromkeys(
            ("margin_clean", "margin_adv", "p_clean", "p_adv", "clean_rate", "adv_rate"), radius.astype(np.float32)
        ),
        **dict.fromkeys(("logits_clean", "logits_adv"), np.zeros((n, 10), np.float32)),
        **dict.fromkeys(("forwards", "backwards", "queries", "pixels", "values"), rng.integers(10, 1000, n)),
        "rejected": np.where(success, 0, np.where(correct, 1, 7)).astype(np.uint8),
        "source": success.astype(np.uint8),
        "unstable": np.zeros(n, dtype=bool),
    }


def _write(store: Store, spec: dict[str, Any], arrays: dict[str, np.ndarray], *, whole: bool) -> None:
    """A cell as a run leaves it, with the store's own formats."""
    cell = store.cell(spec)
    (cell.folder / "attempts").mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.loads(canonical_json(spec)), indent=2, sort_keys=True) + "\n"
    (cell.folder / "spec.json").write_text(text)
    files = {"spec.json": {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}}
    n = len(arrays["index"])
    for number in range(-(-n // SHARD)):
        path = cell.folder / f"shard-{number:05d}.safetensors"
        rows = slice(number * SHARD, (number + 1) * SHARD)
        if whole:
            part = {name: array[rows] for name, array in arrays.items()}
            data = pack(part, kind="shard", key=cell.key, number=number)
            path.write_bytes(data)
            files[path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        else:
            path.touch()
            os.truncate(path, EMPTY)
            files[path.name] = {"bytes": EMPTY, "sha256": "0" * 64}
    types = {name: array.dtype.name for name, array in sorted(arrays.items())}
    record = {"format": FORMAT, "key": cell.key, "committed": "20260101T000000.000000Z", "n": n}
    done = seal(record | {"n_shards": -(-n // SHARD), "files": files, "arrays": types})
    (cell.folder / "done.json").write_bytes(done)
    found = columns.narrowed(arrays)
    commit = hashlib.sha256(done).hexdigest()
    (cell.folder / columns.NAME).write_bytes(pack(found, kind="columns", key=commit, number=0))
    (cell.folder / "attempts" / "20260101T000000.000000Z-1-0a.json").write_bytes(_attempt(-(-n // SHARD)))


def _attempt(shards: int) -> bytes:
    entry = {"elapsed": 1.0, "micro_batch": 512, "memory_history": [], "unattributed": 0, "notes": [], "peak_memory_bytes": 1}
    record = {
        "format": FORMAT,
        "status": "done",
        "reason": "",
        "traceback": "",
        "started": "20260101T000000.000000Z",
        "finished": "20260101T000100.000000Z",
        "process": {"host": "h", "boot_id": "", "namespace": "", "pid": 1, "started": 1},
        "environment": {"python": "3.11", "platform": "Linux", "packages": {f"package-{i}": "1.0" for i in range(8)}},
        "progress": [{"time": "20260101T000000.000000Z", "shard": i, **entry} for i in range(shards)],
        "seconds": 60.0,
    }
    return seal(record)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--defenses", type=int, default=500)
    parser.add_argument("--attacks", type=int, default=40)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--store", type=Path, help="folder of the synthetic store; what is missing is made, and all is kept")
    parser.add_argument("--whole", action="store_true", help="real shards; at the end, a report without the columns")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
