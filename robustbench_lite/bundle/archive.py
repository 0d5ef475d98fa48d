"""The file of a bundle: a zip archive that is read without trusting a word of it.

Only names of a store's results are taken, only what the manifest lists and the checksums confirm, within the limits below, into
a temporary folder. What is refused is refused with a reason, before anything is written to a store.
"""

from __future__ import annotations

import hashlib
import re
import stat
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from robustbench_lite.bundle.manifest import Manifest, Member, parse_manifest
from robustbench_lite.errors import InvalidBundle, StoreError
from robustbench_lite.lease import storage_error
from robustbench_lite.store import Store

MANIFEST = "manifest.json"
MOST_MEMBERS = 200_000
MOST_BYTES = 32 * 2**30  # of all members, unpacked
MOST_MANIFEST_BYTES = 64 * 2**20
MOST_SPEC_BYTES = 2**20
MOST_RATIO = 100  # unpacked bytes for one packed, of members above SMALL; arrays of results come to about 10
SMALL = 2**20

_NAME = re.compile(
    r"FORMAT|manifest\.json"
    r"|(cells|examples)/(?P<group>[0-9a-f]{2})/(?P=group)[0-9a-f]{62}/shard-\d{5}\.safetensors"
    r"|cells/(?P<of>[0-9a-f]{2})/(?P=of)[0-9a-f]{62}/(spec|done)\.json"
)
_PART = 2**20  # bytes that are read at a time


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A bundle whose file is sound. store: its results, for reading, in a folder that goes when it is closed."""

    path: Path
    sha256: str
    manifest: Manifest
    store: Store


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Unpack a bundle into a temporary folder; raises InvalidBundle, which says what is wrong with the file."""
    try:
        with tempfile.TemporaryDirectory(prefix="rbl-bundle-") as folder, path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            manifest = _unpack(file, Path(folder))
            yield Opened(path=path, sha256=sha256, manifest=manifest, store=_store(Path(folder)))
    except InvalidBundle as error:
        if error.message.startswith(f"{path}: "):
            raise
        raise InvalidBundle(f"{path}: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise storage_error(error, path) from error


def _store(folder: Path) -> Store:
    try:
        return Store.open(folder, create=False, read_only=True)
    except StoreError as error:
        said = "it has no FORMAT" if not (folder / "FORMAT").exists() else "its FORMAT is not one that this version reads"
        raise InvalidBundle(said, hint=error.hint) from error


def _unpack(file: IO[bytes], folder: Path) -> Manifest:
    try:
        with zipfile.ZipFile(file) as archive:
            members = _checked(archive.infolist())
            manifest = parse_manifest(_manifest(archive, members))
            _require_same_names(members, manifest)
            for name, member in manifest.members.items():
                _extract(archive, members[name], member, folder / name)
            return manifest
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InvalidBundle(
            f"it is no whole zip file ({error})", hint="get it again: it was cut off, or is something else"
        ) from error


def _checked(infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The members by name; raises InvalidBundle for any that a bundle does not have."""
    if len(infos) > MOST_MEMBERS:
        raise InvalidBundle(f"it has {len(infos)} members, and {MOST_MEMBERS} are the most")
    twice = [name for name, times in Counter(info.filename for info in infos).items() if times > 1]
    if twice:
        raise InvalidBundle(f"the member {twice[0]!r} is there twice")
    for info in infos:
        if problem := _problem(info):
            raise InvalidBundle(f"the member {info.orig_filename!r} {problem}")
    total = sum(info.file_size for info in infos)
    if total > MOST_BYTES:
        raise InvalidBundle(f"unpacked it takes {total:,} bytes, and {MOST_BYTES:,} are the most")
    return {info.filename: info for info in infos}


def _problem(info: zipfile.ZipInfo) -> str:
    name, mode = info.orig_filename, info.external_attr >> 16
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "has an absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "leads out of the folder"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "is a link or another special file"
    if not _NAME.fullmatch(name) or name != info.filename:
        return "is not a file of a result store: specs, commits and safetensors are all that a bundle holds"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is packed by method {info.compress_type}, which bundles do not use"
    if info.file_size > SMALL and info.file_size > MOST_RATIO * max(1, info.compress_size):
        return f"unpacks to {info.file_size / max(1, info.compress_size):,.0f} times its size, and {MOST_RATIO} is the most"
    if name.endswith("spec.json") and info.file_size > MOST_SPEC_BYTES:
        return f"has {info.file_size:,} bytes, and {MOST_SPEC_BYTES:,} are the most"
    return ""


def _manifest(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> bytes:
    info = members.get(MANIFEST)
    if info is None:
        raise InvalidBundle("it has no manifest.json", hint="rbl export makes bundles")
    if info.file_size > MOST_MANIFEST_BYTES:
        raise InvalidBundle(f"manifest.json has {info.file_size:,} bytes, and {MOST_MANIFEST_BYTES:,} are the most")
    return archive.read(info)


def _require_same_names(members: Mapping[str, zipfile.ZipInfo], manifest: Manifest) -> None:
    there, listed = set(members) - {MANIFEST}, set(manifest.members)
    if extra := sorted(there - listed):
        raise InvalidBundle(f"the manifest does not list {extra[0]!r}")
    if lacking := sorted(listed - there):
        raise InvalidBundle(f"the manifest lists {lacking[0]!r}, which is not there")
    keys = {name.split("/")[2] for name in there if name.count("/") == 3}
    if odd := sorted(keys ^ set(manifest.cells)):
        raise InvalidBundle(f"the manifest's results and the files do not agree on {odd[0][:12]}")


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, member: Member, path: Path) -> None:
    """Unpack a member, no more of it than was announced; raises InvalidBundle where it is not what the manifest says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with archive.open(info) as packed, path.open("xb") as file:
        while part := packed.read(_PART):
            size += len(part)
            if size > member.bytes:
                break
            digest.update(part)
            file.write(part)
    if size != member.bytes:
        raise InvalidBundle(f"{info.filename} has another size than the manifest says ({member.bytes:,} bytes)")
    if digest.hexdigest() != member.sha256:
        raise InvalidBundle(f"{info.filename} does not match its sha256 in the manifest: it was changed")


def pack(folder: Path, manifest: Manifest, path: Path) -> None:
    """Write a bundle of the files in a folder that the manifest lists."""
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_entry(MANIFEST, zipfile.ZIP_DEFLATED), manifest.model_dump_json(indent=1))
        for name, member in sorted(manifest.members.items()):
            data = (folder / name).read_bytes()
            tight = member.bytes > SMALL and len(zlib.compress(data, 6)) * MOST_RATIO < 2 * member.bytes
            archive.writestr(_entry(name, zipfile.ZIP_STORED if tight else zipfile.ZIP_DEFLATED), data)


def _entry(name: str, method: int) -> zipfile.ZipInfo:
    """A member without a time of its own, so that the same results give the same bytes."""
    info = zipfile.ZipInfo(name)
    info.compress_type = method
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def is_member(name: str) -> bool:
    """Whether a bundle holds files of that name; of a store, it leaves out what is derived and what is of one machine."""
    return _NAME.fullmatch(name) is not None


def member_of(path: Path) -> Member:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        return Member(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
