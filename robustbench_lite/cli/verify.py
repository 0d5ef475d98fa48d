"""``rbl verify``: somebody's results, judged again on the defense that is installed here."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustbench_lite.cli.app import App, json_option, print_json, store_option, warn
from robustbench_lite.errors import UsageError

if TYPE_CHECKING:
    from robustbench_lite.cell import Cell
    from robustbench_lite.provenance import Check
    from robustbench_lite.store import Store


@click.command("verify")
@click.argument("bundle", required=False, type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--all", "everything", is_flag=True, help="Verify all results of the store that were imported.")
@click.option("--shards", default="1", help="How many shards of 256 examples to run again of each result, or 'all' [1].")
@click.option("--seed", type=int, help="Draws the shards [one that nobody can know].")
@click.option("--weights", multiple=True, metavar="DEFENSE=FILE", help="Weights for a defense.")
@click.option("--device", default="cpu", help="cpu, or cuda:0 [cpu].")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets [RBL_DATA, or ./data].")
@store_option
@json_option
@click.pass_obj
def command(
    app: App,
    bundle: Path | None,
    everything: bool,
    shards: str,
    seed: int | None,
    weights: tuple[str, ...],
    device: str,
    data: Path | None,
    store: Path | None,
    as_json: bool,
) -> int:
    """Judge the results of BUNDLE again, on the defense as it is installed here.

    Clean answers are repeated on all examples, adversarial images that are there are judged afresh, and the attack is run again
    on shards drawn at random: only what was run again can be called verified. What is found is stored with the results where
    they have been imported, and tables show it. Exit code 1 where anything is not verified.
    """
    from robustbench_lite.bundle.verify import Verifier
    from robustbench_lite.request import RunRequest
    from robustbench_lite.runner import prepare_torch

    if (bundle is None) != everything:
        raise UsageError("name a bundle, or --all", hint="rbl verify results.zip; rbl verify --all")
    request = RunRequest.model_validate({"device": device, "weights": list(weights)})
    if "," in request.device or request.device == "auto":
        raise UsageError("verifying takes one device", hint="--device cpu, or cuda:0")
    _require_device(device)
    many = _shards(shards)
    drawn = secrets.randbits(31) if seed is None else seed
    prepare_torch(device, None)
    checker = Verifier(app.registry(), data or app.data, shards=many, seed=drawn, device=device, given=request.weights)
    found: list[dict[str, Any]] = []
    unstored: Counter[str] = Counter()
    with _cells(bundle, store) as (cells, imported):
        for cell, environment in cells:
            check = checker.check(cell, environment)
            if why := _record(imported, cell, check):
                unstored[why] += 1
            label = f"{cell.spec['defense']['label']} under {cell.spec['attack']['label']} ({cell.spec['threat']})"
            found.append({"key": cell.key, "result": label, **check.model_dump()})
            if not as_json:
                click.echo(f"{check.outcome:<11}{label}: {check.said}")
    if as_json:
        print_json(found)
        return int(any(each["outcome"] != "verified" for each in found))
    counts = Counter(each["outcome"] for each in found)
    click.echo(
        f"\n{', '.join(f'{number} {outcome}' for outcome, number in sorted(counts.items()))}; shards drawn by --seed {drawn}"
    )
    for why, count in unstored.items():
        warn(f"what was found of {count} result{'s' * (count != 1)} was not stored: {why.format(bundle=bundle)}")
    return int(counts["verified"] < len(found))


def _require_device(device: str) -> None:
    import torch

    there = torch.cuda.device_count()
    if device != "cpu" and int(device.partition(":")[2] or 0) >= there:
        raise UsageError(f"there is no device {device}", hint=f"--device cpu; GPUs found: {there}")


def _shards(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise UsageError(f"--shards {text!r} is neither a number nor 'all'", hint="--shards 2")
    return int(text)


@contextmanager
def _cells(bundle: Path | None, store: Path | None) -> Iterator[tuple[Iterator[tuple[Cell, Mapping[str, Any]]], Store | None]]:
    """The results to verify with the environments they say they were made in, and the store to note it in, if there is one."""
    from robustbench_lite.bundle import opened
    from robustbench_lite.bundle.transfer import checked
    from robustbench_lite.request import default_store
    from robustbench_lite.store import Store

    folder = store or default_store()
    there = Store.open(folder, create=False) if (folder / "FORMAT").exists() else None
    if bundle is not None:
        with opened(bundle) as unpacked:
            whole = [cell for cell, _ in checked(unpacked)]
            yield ((cell, unpacked.manifest.cells[cell.key].environment) for cell in whole), there
        return
    if there is None:
        raise UsageError(f"no results in {folder}", hint="rbl import takes in bundles; --store says which store")
    mine = [cell for cell in there.cells() if cell.origin is not None]
    if not mine:
        warn("no results of this store were imported: there is nothing to verify")
    yield ((cell, cell.load().environment) for cell in mine), there


def _record(store: Store | None, checked: Cell, check: Check) -> str:
    """Note what was found with the imported result; where that cannot be, why."""
    from robustbench_lite.bundle.transfer import difference

    cell = store.cell(checked.spec) if store is not None else None
    held = cell.load().arrays if cell is not None else {}
    if cell is None or not held:
        return "this store does not have them (rbl import {bundle} takes them in)"
    if difference(held, checked.load().arrays):
        return "this store has other results for the same"
    if cell.origin is None:
        return "this store has run them itself, and notes checks of imported results"
    cell.write_origin(cell.origin.after(check))
    return ""
