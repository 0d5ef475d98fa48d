"""Where a defense's weights are: found by defense, parameters and data set; checked against their model card.

Looked for in this order: the path given; ``$RBL_HOME/weights`` (what ``rbl train`` wrote on this machine); the plugin's
package; the URLs that its spec declares, by sha256. A file made by ``rbl train`` carries its model card in its metadata, and
is refused for other parameters or another data set than it was trained with.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_lite import parameters
from robustbench_lite.errors import MissingWeights, PluginError, UsageError
from robustbench_lite.lease import make_folder, write_file
from robustbench_lite.specs import DefenseSpec

if TYPE_CHECKING:
    from robustbench_lite.records import Entry


Parts = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights. origin: ``given``, ``trained here``, ``shipped`` or ``downloaded``."""

    path: Path
    sha256: str
    origin: str


def rbl_home() -> Path:
    """$RBL_HOME, or ``~/.cache/robustbench-lite``: trained and downloaded weights."""
    return Path(os.environ.get("RBL_HOME") or Path.home() / ".cache" / "robustbench-lite")


def weights_name(entry: Entry, instance: object) -> str:
    """``pgd-at``, or ``pgd-at-1a2b3c4d`` with a checksum of the parameters that are not defaults."""
    label = parameters.label(entry.spec.name, type(instance), instance)
    if label == entry.spec.name:
        return label
    return f"{entry.spec.name}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def trained_path(entry: Entry, instance: object, dataset: str, home: Path) -> Path:
    """Where ``rbl train`` puts the weights of a defense for a data set."""
    return home / "weights" / dataset / f"{entry.namespace}--{weights_name(entry, instance)}.safetensors"


def find_weights(
    entry: Entry,
    instance: object,
    dataset: str,
    *,
    given: Path | None,
    home: Path,
    selector: str = "",
    parts: Parts | None = None,
) -> WeightsFile:
    """The weights of a defense (with its parameters) for a data set by its short name. selector: as a person asks for it.

    parts: what its model card must say of the method or the base that it was trained with.

    Raises MissingWeights with the command that makes them, and UsageError for a file that does not fit.
    """
    again = _train_command(entry, instance, selector or dataset)
    found = _find(entry, instance, dataset, given, home, again)
    card = read_card(found.path) if parts else {}
    for name, now in (parts or {}).items():
        then = card.get(name) or {}
        changed = ", ".join(f"{key} {then.get(key)} then, {now[key]} now" for key in now if card and then.get(key) != now[key])
        if changed:
            raise UsageError(f"{found.path} was trained with a {name} that has changed since: {changed}", hint=again)
    return found


def _find(entry: Entry, instance: object, dataset: str, given: Path | None, home: Path, again: str) -> WeightsFile:
    """again: the command that trains."""
    if given is not None:
        if not given.is_file():
            raise UsageError(f"no weights file {given} for {entry.id}", hint="--weights DEFENSE=FILE names an existing file")
        return _checked(given, "given", entry, instance, dataset)
    for path, origin in _places(entry, instance, dataset, home):
        if path.is_file():
            return _checked(path, origin, entry, instance, dataset)
    spec = entry.spec
    if isinstance(spec, DefenseSpec) and dataset in spec.weights:
        path = download(spec.weights[dataset], spec.weights_sha256[dataset], home)
        return _checked(path, "downloaded", entry, instance, dataset)
    label = parameters.label(entry.spec.name, type(instance), instance)
    raise MissingWeights(f"{label} has no weights for {dataset}", hint=again)


def _train_command(entry: Entry, instance: object, dataset: str) -> str:
    label = parameters.label(entry.spec.name, type(instance), instance)
    shown, wanted = (f"'{text}'" if "[" in text else text for text in (label, dataset))
    return f"rbl train {shown} --dataset {wanted}"


def datasets_with_weights(entry: Entry, instance: object, home: Path) -> list[str]:
    """The data sets, by short name, for which weights of a defense are on this machine."""
    roots = [home / "weights", *_shipped(entry)]
    names = sorted({folder.name for root in roots if root.is_dir() for folder in root.iterdir() if folder.is_dir()})
    return [name for name in names if any(path.is_file() for path, _ in _places(entry, instance, name, home))]


def _places(entry: Entry, instance: object, dataset: str, home: Path) -> Iterator[tuple[Path, str]]:
    yield trained_path(entry, instance, dataset, home), "trained here"
    for folder in _shipped(entry):
        yield folder / dataset / f"{weights_name(entry, instance)}.safetensors", "shipped"


def _shipped(entry: Entry) -> list[Path]:
    """The folder of weights in the package of a defense, if it is a package with files."""
    package = importlib.import_module(entry.spec.factory.partition(":")[0].partition(".")[0])
    return [] if package.__file__ is None else [Path(package.__file__).parent / "weights"]


def _checked(path: Path, origin: str, entry: Entry, instance: object, dataset: str, parts: Parts | None = None) -> WeightsFile:
    card = read_card(path)
    if card:
        asked = parameters.resolved(instance)
        if card.get("defense") != entry.id:
            raise UsageError(f"{path} holds weights of {card.get('defense')}, not of {entry.id}", hint="name the right file")
        if card.get("dataset", {}).get("name") != dataset:
            raise UsageError(
                f"{path} was trained on {card.get('dataset', {}).get('name')}, not on {dataset}",
                hint=f"rbl train {entry.spec.name} --dataset {dataset}",
            )
        if card.get("version", entry.spec.version) != entry.spec.version:
            raise UsageError(
                f"{path} was trained with version {card['version']} of {entry.id}, which is now version {entry.spec.version}",
                hint=f"rbl train {entry.spec.name} --dataset {dataset}",
            )
        made = card.get("parameters", {})
        # A parameter that the defense did not have then had, in effect, its default.
        new = asked.keys() - made.keys() - parameters.chosen(entry.spec.name, type(instance), instance).keys()
        differing = [k for k in sorted({*asked, *made} - new) if asked.get(k) != made.get(k)]
        if differing:
            trained = ", ".join(f"{k}={made.get(k)}" for k in differing)
            raise UsageError(
                f"{path} was trained with other parameters than asked for: {trained}",
                hint="ask for these parameters, or train with yours: rbl train",
            )
    return WeightsFile(path, file_hash(path), origin)


def read_card(path: Path) -> dict[str, Any]:
    """The model card in a file of weights; empty where it has none. Raises UsageError for a damaged file."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("card", "{}")
        card = json.loads(text)
    except (SafetensorError, ValueError, OSError) as error:
        raise UsageError(f"{path} is no readable safetensors file: {error}", hint="train or fetch it again") from None
    if not isinstance(card, dict):
        raise UsageError(f"the model card in {path} is no JSON object", hint="train or fetch it again")
    return card


def load_state(path: Path) -> dict[str, Any]:
    """A state dict of tensors: safetensors, or torch's format with ``weights_only``. Raises UsageError."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise UsageError(f"{path} is no readable safetensors file: {error}", hint="train or fetch it again") from None
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for a file that is none of its own
        raise UsageError(f"{path} is no file of weights only: {error}", hint="save it with safetensors") from None
    if isinstance(content, (list, tuple)) and len(content) == 1:
        content = content[0]
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds {type(content).__name__}, not a state dict", hint="save module.state_dict()")
    return content


def save_weights(path: Path, state: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """Write a state dict with its card as safetensors, and the card beside it as JSON; returns the file's sha256."""
    from safetensors.torch import save

    make_folder(path.parent)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    data = save(tensors, metadata={"card": json.dumps(card, sort_keys=True)})
    digest = hashlib.sha256(data).hexdigest()
    write_file(path, data)
    write_file(path.with_suffix(".json"), (json.dumps({**card, "sha256": digest}, indent=2, sort_keys=True) + "\n").encode())
    return digest


def download(url: str, sha256: str, home: Path) -> Path:
    """Fetch a file once, check its sha256, and keep it under ``home``. Raises MissingWeights where that fails."""
    target = home / "weights" / "downloads" / f"{sha256}{Path(urllib.parse.urlsplit(url).path).suffix or '.safetensors'}"
    if target.is_file() and file_hash(target) == sha256:
        return target
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            data: bytes = answer.read()
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise MissingWeights(
            f"weights could not be fetched from {url}: {error}", hint=f"fetch the file by other means and put it at {target}"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise MissingWeights(
            f"what {url} sent has sha256 {found}, not {sha256}: it was changed or damaged on the way",
            hint=f"try again, or put the right file at {target}",
        )
    make_folder(target.parent)
    write_file(target, data)
    return target


def file_hash(path: Path) -> str:
    """sha256 of a file; remembered while its size and time stand."""
    stat = path.stat()
    return _hash(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash(path: Path, _: int, __: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def state_hash(module: Any) -> str:
    """sha256 over names, types, shapes and bytes of the state of a torch module."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_into(module: Any, path: Path, name: str) -> None:
    """Load a state dict into a module. Raises PluginError, naming what does not fit."""
    try:
        module.load_state_dict(load_state(path))
    except RuntimeError as error:
        raise PluginError(f"the weights in {path} do not fit {name}: {str(error).splitlines()[-1].strip()}") from None
