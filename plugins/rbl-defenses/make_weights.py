"""Train the weights that this plugin ships: ``make weights``.

Every defense that is trained or fitted gets weights for digits with its default parameters; so do the teachers and bases that
they name, whatever their parameters. Files whose model card says that they are up to date are left alone, an interrupted
training goes on from its checkpoint, and a defense waits for its teacher.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robustbench_lite import DefenseSpec, RblError, parameters
from robustbench_lite.data import DatasetInfo
from robustbench_lite.ingredients import find_ingredients
from robustbench_lite.registry import Registry, load
from robustbench_lite.resolve import Resolved, resolve, resolve_dataset
from robustbench_lite.specs import TRAINABLE
from robustbench_lite.training import Recipe, TrainedDefense
from robustbench_lite.weights import read_card, weights_name

WEIGHTS = Path(__file__).parent / "src" / "rbl_defenses" / "weights"
SEED = 0


@dataclass
class Job:
    """One file to make. needs: labels of the jobs that must be done before."""

    found: Resolved
    path: Path
    needs: set[str] = field(default_factory=set)


def jobs(registry: Registry, selectors: list[str], folder: Path) -> dict[str, Job]:
    """What is to be made for some defenses, by label, with what they need."""
    made: dict[str, Job] = {}

    def add(selector: str) -> set[str]:
        """The labels that a selector stands for: its own, or those of what it wraps."""
        found = resolve(registry, "defense", selector)
        spec = found.entry.spec
        needed = [getattr(found.instance, name, None) for name in ("teacher", "base")]
        needs = {label for other in needed if isinstance(other, str) for label in add(other)}
        if not isinstance(spec, DefenseSpec) or spec.kind not in TRAINABLE or getattr(found.instance, "extra", None) == "":
            return needs  # nothing to train, or nothing to train on: no second data set is named
        path = folder / f"{weights_name(found.entry, found.instance)}.safetensors"
        made[found.label] = Job(found, path, needs)
        return {found.label}

    for selector in selectors:
        add(selector)
    return made


def reason(registry: Registry, job: Job, info: DatasetInfo, fingerprint: str) -> str:
    """Why a file must be made; empty where it is up to date."""
    if not job.path.is_file():
        return "missing"
    card, entry, instance = read_card(job.path), job.found.entry, job.found.instance
    now = {"defense": entry.id, "version": entry.spec.version, "seed": SEED}
    for name, value in now.items():
        if card.get(name) != value:
            return f"{name} is {value}, was {card.get(name)}"
    if card.get("dataset", {}).get("fingerprint") != fingerprint:
        return "other data"
    usual = parameters.resolved(type(instance)())
    recipe = asdict(instance.recipe(info)) if isinstance(instance, TrainedDefense) else {}
    for then, here, default in (
        (card.get("parameters", {}), parameters.resolved(instance), usual),
        (card.get("recipe") or {}, recipe, asdict(Recipe(epochs=1))),
    ):
        # What the card does not know had, in effect, its default.
        changed = [k for k in sorted({*then, *here}) if _plain(here.get(k)) != _plain(then.get(k, default.get(k)))]
        if changed:
            return f"{', '.join(changed)} changed"
    try:
        parts = find_ingredients(registry, job.found, info, Path("data")).to_json()
    except RblError as error:
        return error.message
    for name, part in parts.items():
        then = card.get(name, {})
        if any(then.get(key) != part[key] for key in ("id", "version", "weights") if key in part):
            return f"another {name}"
    return ""


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def train(job: Job, dataset: str) -> str:
    """Train one; returns what went wrong, or nothing."""
    began = time.monotonic()
    command = [sys.executable, "-m", "robustbench_lite", "train", job.found.label, "--dataset", dataset]
    command += ["--seed", str(SEED), "--device", "cpu", "--threads", "1", "--out", str(job.path), "--resume"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip()
    print(f"{done.stdout.splitlines()[0]}, in {time.monotonic() - began:.0f} s", flush=True)
    return ""


def main() -> int:
    """Make what is out of date; the exit code is 1 where something could not be made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("defenses", nargs="*", help="selectors [all of this plugin]")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time [2]")
    parser.add_argument("--dry-run", action="store_true", help="say what would be made, and why")
    options = parser.parse_args()
    registry = load()
    bundle = resolve_dataset(registry, options.dataset, Path("data")).bundle
    own = [
        entry.id
        for entry in registry.entries("defense")
        if entry.distribution == "rbl-defenses" and isinstance(entry.spec, DefenseSpec) and entry.spec.kind in TRAINABLE
    ]
    waiting = jobs(registry, options.defenses or own, WEIGHTS / bundle.info.name)
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        running: dict[Future[str], str] = {}
        while waiting or running:
            for label, job in list(waiting.items()):
                if job.needs & failed.keys():
                    failed[label] = f"needs {', '.join(sorted(job.needs & failed.keys()))}"
                elif job.needs & {*waiting, *running.values()}:
                    continue
                elif why := reason(registry, job, bundle.info, bundle.fingerprint):
                    print(f"{label}: {why}", flush=True)
                    if not options.dry_run:
                        running[pool.submit(train, job, options.dataset)] = label
                del waiting[label]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                label = running.pop(future)
                if future.result():
                    failed[label] = future.result()
    for label, why in failed.items():
        print(f"{label} failed: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
