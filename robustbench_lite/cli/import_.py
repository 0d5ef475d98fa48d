"""``rbl import``: results that were made elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click

from robustbench_lite.cli.app import App, counted, store_option
from robustbench_lite.errors import UsageError


@click.command("import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@store_option
@click.option("--remove", is_flag=True, help="Take results that came in these bundles out of the store again.")
@click.pass_obj
def command(app: App, paths: tuple[Path, ...], store: Path | None, remove: bool) -> None:
    """Take into the store what is in PATHS: bundles of `rbl export`, or RobustBench's entries.

    A bundle (a zip file) is taken whole or, with a reason, not at all; its results are marked as self-reported, and get no rank
    before `rbl verify` has confirmed them. RobustBench's entries are its JSON files, or folders of them such as
    model_info/cifar10/Linf: rbl report shows them beside your tables as published, not run here.
    """
    from robustbench_lite.bundle import import_bundle, remove_bundle
    from robustbench_lite.published import read_entries, store_entries
    from robustbench_lite.request import default_store
    from robustbench_lite.store import Store

    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} is not there", hint="name a bundle, or RobustBench's JSON files or folders of them")
    folder = store or default_store()
    bundles = [path for path in paths if path.is_file() and path.suffix.lower() != ".json"]
    others = [path for path in paths if path not in bundles]
    entries = read_entries(others) if others and not remove else []
    if remove and others:
        raise UsageError("--remove takes bundles", hint=f"delete {folder}/published to remove published entries")
    opened = Store.open(folder)
    for path in bundles:
        if remove:
            with path.open("rb") as file:
                keys = remove_bundle(opened, hashlib.file_digest(file, "sha256").hexdigest())
            click.echo(f"{path}: {counted(len(keys), 'result')} removed")
            continue
        found = import_bundle(path, opened)
        by = f" by {found.manifest.by}" if found.manifest.by else ""
        here = f", {len(found.known)} were here already" if found.known else ""
        click.echo(f"{path}: {counted(len(found.new), 'result')} taken in as self-reported{by}{here}")
        if found.new:
            click.echo(f"They have no rank until they are verified: rbl verify {path}")
    if entries:
        new, changed = store_entries(opened, entries)
        click.echo(f"published entries read: {len(entries)}, of which {new} are new and {changed} have changed")
