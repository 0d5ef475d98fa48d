"""Files that are no sound bundle: each is refused with its reason, and nothing is written."""

from __future__ import annotations

import hashlib
import json
import pickle
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_lite.bundle import archive as bundles
from robustbench_lite.bundle import import_bundle
from robustbench_lite.errors import InvalidBundle
from robustbench_lite.store import Store


def rewritten(bundle: Path, path: Path, change: Callable[[zipfile.ZipFile], object]) -> Path:
    """A copy of a bundle to which ``change`` adds members."""
    path.write_bytes(bundle.read_bytes())
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # zipfile says that a name is there twice
        change(archive)
    return path


def refused(path: Path, tmp_path: Path, match: str) -> None:
    store = Store.open(tmp_path / "mine")
    before = {p.name: p.stat().st_mtime_ns for p in store.path.rglob("*")}
    with pytest.raises(InvalidBundle, match=match) as caught:
        import_bundle(path, store)
    assert str(path) in caught.value.message
    assert {p.name: p.stat().st_mtime_ns for p in store.path.rglob("*")} == before


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("../escape.json", "leads out of the folder"),
        ("cells/../../escape.json", "leads out of the folder"),
        ("..\\escape.json", "leads out of the folder"),
        ("/etc/escape.json", "has an absolute path"),
        ("C:/escape.json", "has an absolute path"),
        ("\\escape.json", "has an absolute path"),
        ("cells/ab/lock", "is not a file of a result store"),
        ("cells/", "is not a file of a result store"),
        ("CELLS/ab/spec.json", "is not a file of a result store"),
        ("extra.json", "is not a file of a result store"),
    ],
)
def test_names_that_a_bundle_does_not_have(bundle: Path, tmp_path: Path, name: str, match: str) -> None:
    path = rewritten(bundle, tmp_path / "b.zip", lambda archive: archive.writestr(zipfile.ZipInfo(name), b"{}"))
    refused(path, tmp_path, match)
    assert not list(tmp_path.parent.glob("escape.json"))


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], object], tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickles_are_never_read(bundle: Path, tmp_path: Path) -> None:
    pickled = pickle.dumps(Bomb(tmp_path / "unpickled"))
    refused(rewritten(bundle, tmp_path / "a.zip", lambda a: a.writestr("arrays.pkl", pickled)), tmp_path, "safetensors are all")
    with zipfile.ZipFile(bundle) as archive:
        name = next(name for name in archive.namelist() if name.endswith("safetensors"))
    replaced = replace(bundle, tmp_path / "b.zip", {name: pickled}, reseal=True)
    refused(replaced, tmp_path, "no whole safetensors file|does not match the checksum")
    assert not (tmp_path / "unpickled").exists()


def replace(bundle: Path, path: Path, members: dict[str, bytes], *, reseal: bool) -> Path:
    """A copy with other contents for some members. reseal: with a manifest that says so."""
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        manifest = json.loads(old.read("manifest.json"))
        for name, data in members.items():
            if reseal:
                manifest["members"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name in old.namelist():
            data = members.get(name, old.read(name))
            new.writestr(name, json.dumps(manifest) if name == "manifest.json" else data)
    return path


def test_a_member_twice(bundle: Path, tmp_path: Path) -> None:
    path = rewritten(bundle, tmp_path / "b.zip", lambda archive: archive.writestr("FORMAT", b"robustbench-lite store 1\n"))
    refused(path, tmp_path, "'FORMAT' is there twice")


def test_a_link(bundle: Path, tmp_path: Path) -> None:
    info = zipfile.ZipInfo("cells/ab/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(rewritten(bundle, tmp_path / "b.zip", lambda a: a.writestr(info, "/etc/passwd")), tmp_path, "is a link")


def a_shard(bundle: Path) -> str:
    with zipfile.ZipFile(bundle) as archive:
        return next(name for name in archive.namelist() if name.startswith("cells") and name.endswith("safetensors"))


def test_a_zip_bomb_by_ratio(bundle: Path, tmp_path: Path) -> None:
    path = replace(bundle, tmp_path / "b.zip", {a_shard(bundle): bytes(8 * 2**20)}, reseal=True)
    assert path.stat().st_size < 2**20
    refused(path, tmp_path, "unpacks to .* times its size")


def test_a_zip_bomb_by_total_and_by_number(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(bundles, "MOST_BYTES", 10_000)
        refused(bundle, tmp_path, "unpacked it takes .* bytes, and 10,000 are the most")
    monkeypatch.setattr(bundles, "MOST_MEMBERS", 3)
    refused(bundle, tmp_path, "members, and 3 are the most")


def test_a_member_that_says_it_is_smaller_than_it_is(bundle: Path, tmp_path: Path) -> None:
    """The directory of a zip file is its maker's: what counts is what comes out."""
    data = bytearray(bundle.read_bytes())
    at = data.rindex(a_shard(bundle).encode()) - 46  # its entry in the central directory
    assert data[at : at + 4] == b"PK\x01\x02"
    struct.pack_into("<I", data, at + 24, 16)
    path = tmp_path / "b.zip"
    path.write_bytes(data)
    refused(path, tmp_path, "no whole zip file|another size")


@pytest.mark.parametrize("keep", [0.999, 0.6, 0.01])
def test_a_file_that_was_cut_off(bundle: Path, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "b.zip"
    path.write_bytes(bundle.read_bytes()[: int(keep * bundle.stat().st_size)])
    refused(path, tmp_path, "no whole zip file")


@pytest.mark.parametrize(
    ("text", "match"),
    [(None, "has no FORMAT"), (b"robustbench-lite store 99\n", "FORMAT is not one"), (b"?", "FORMAT is not one")],
)
def test_stores_of_another_format(bundle: Path, tmp_path: Path, text: bytes | None, match: str) -> None:
    with zipfile.ZipFile(bundle) as old:
        manifest = json.loads(old.read("manifest.json"))
        others = {name: old.read(name) for name in old.namelist() if name not in ("manifest.json", "FORMAT")}
    del manifest["members"]["FORMAT"]
    if text is not None:
        others["FORMAT"] = text
        manifest["members"]["FORMAT"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as new:
        for name, data in {"manifest.json": json.dumps(manifest).encode(), **others}.items():
            new.writestr(name, data)
    refused(tmp_path / "b.zip", tmp_path, match)


def test_no_zip_file_and_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("a bundle, honestly")
    refused(tmp_path / "text.zip", tmp_path, "no whole zip file")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    refused(tmp_path / "empty.zip", tmp_path, "no manifest.json")


def test_flipped_bits_inside(bundle: Path, tmp_path: Path) -> None:
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 0x10
    (tmp_path / "b.zip").write_bytes(data)
    refused(tmp_path / "b.zip", tmp_path, "no whole zip file")


def test_a_wrong_checksum(bundle: Path, tmp_path: Path) -> None:
    name = a_shard(bundle)
    with zipfile.ZipFile(bundle) as archive:
        data = bytearray(archive.read(name))
    data[-1] ^= 1
    refused(replace(bundle, tmp_path / "b.zip", {name: bytes(data)}, reseal=False), tmp_path, "does not match its sha256")
    resealed = replace(bundle, tmp_path / "c.zip", {name: bytes(data)}, reseal=True)
    refused(resealed, tmp_path, "does not match the checksum with which it was committed")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "bundle of version 2, this robustbench-lite reads version 1"),
        ({"kind": "something else"}, "not that of a bundle"),
        ({"cells": {}}, "cells: .* at least 1"),
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"made_with": 3}, "made_with"),
        ({"by": "x" * 501}, "by: .* at most 500"),
    ],
)
def test_manifests(bundle: Path, tmp_path: Path, change: dict[str, object], match: str) -> None:
    with zipfile.ZipFile(bundle) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    data = json.dumps(manifest | change).encode()
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name == "manifest.json" else old.read(name))
    refused(path, tmp_path, match)


def test_members_that_the_manifest_does_not_know_and_the_other_way_round(bundle: Path, tmp_path: Path) -> None:
    other = "cells/ab/" + "ab" * 32 + "/spec.json"
    refused(rewritten(bundle, tmp_path / "a.zip", lambda a: a.writestr(other, b"{}")), tmp_path, "does not list")
    name = a_shard(bundle)
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(tmp_path / "b.zip", "w") as new:
        for each in old.namelist():
            if each != name:
                new.writestr(each, old.read(each))
    refused(tmp_path / "b.zip", tmp_path, "which is not there")
