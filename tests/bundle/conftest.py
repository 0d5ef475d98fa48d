"""A real bundle of a few results, and forgeries of it whose every checksum is right."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from robustbench_lite.bundle.manifest import asked_of
from robustbench_lite.store import Store
from tests.forging import Arrays, merged, named, sealed
from tests.support import invoke

RUN = ("run", "--dataset", "toy/blobs", "--n", 300, "--threat", "linf:0.08", "--executor", "inline")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two defenses, one of them stochastic, under two attacks, with all images."""
    path = tmp_path_factory.mktemp("made") / "store"
    defenses = ("--defense", "toy/mean,toy/noisy-mean")
    invoke(*RUN, *defenses, "--attack", "toy/shift,toy/minimal", "--store", path, "--keep-examples")
    return path


@pytest.fixture(scope="session")
def several(made: Path) -> Path:
    """What `rbl export` makes of it."""
    path = made.parent / "several.zip"
    invoke("export", path, "--store", made, "--by", "A. Nother", "--where", "https://example.org/results")
    return path


@pytest.fixture(scope="session")
def bundle(made: Path) -> Path:
    """Of one result: mean under shift."""
    path = made.parent / "bundle.zip"
    invoke("export", path, "--store", made, "--defense", "mean", "--attack", "shift", "--by", "A. Nother")
    return path


@pytest.fixture(scope="session")
def bare(made: Path) -> Path:
    """The same without images."""
    path = made.parent / "bare.zip"
    invoke("export", path, "--store", made, "--defense", "mean", "--attack", "shift", "--no-examples")
    return path


@pytest.fixture
def forged(bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """Change a bundle and seal it again. arrays, images: called with those of the chosen result; spec: what to change."""

    def forge(
        *,
        source: Path = bundle,
        defense: str = "mean",
        attack: str = "shift",
        arrays: Callable[[Arrays], object] | None = None,
        images: Callable[[Arrays], object] | None = None,
        spec: Mapping[str, Any] | None = None,
        manifest: Callable[[dict[str, Any]], object] | None = None,
    ) -> Path:
        folder = tmp_path / "unpacked"
        with zipfile.ZipFile(source) as archive:
            archive.extractall(folder)
        said = json.loads((folder / "manifest.json").read_bytes())
        cell = named(folder, defense, attack)
        target = cell if spec is None else Store.open(folder).cell(merged(cell.spec, spec))
        shards = said["cells"][cell.key]["shards"]
        for number in range(shards):
            of_shard = {name: array.copy() for name, array in cell.read_shard(number).items()}
            if arrays is not None:
                arrays(of_shard)
            target.write_shard(number, of_shard)
            if cell.examples_folder.exists():
                kept = {name: array.copy() for name, array in cell.read_examples(number).items()}
                if images is not None:
                    images(kept)
                target.write_examples(number, kept)
        target.commit(shards)
        if target is not cell:
            summary = said["cells"].pop(cell.key)
            said["cells"][target.key] = summary | json.loads(json.dumps(asked_of(target.spec)))
            for place in (cell.folder, cell.examples_folder):
                for file in place.glob("*"):
                    file.unlink()
        if manifest is not None:
            manifest(said)
        return sealed(folder, said, tmp_path / "forged.zip")

    return forge
