"""What RobustBench has published: its leaderboard entries, to stand beside one's own results and never among them.

The entries are the JSON files of RobustBench's folder ``model_info``, in folders ``<data set>/<Linf, L2 or corruptions>``.
Their numbers are texts in %, fields differ from file to file, and some files name another data set than their folder does:
there the folder counts, since it is what RobustBench's own tables go by. Croce et al., 2021, arXiv:2010.09670.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from robustbench_lite.errors import InvalidBundle, InvalidThreat
from robustbench_lite.lease import make_folder, write_file
from robustbench_lite.store import Store
from robustbench_lite.threat import Threat

SOURCE = "RobustBench"
CORRUPTIONS = "corruptions"
MOST_BYTES = 2**20  # of one file
FILE = Path("published") / "robustbench.json"
FORMAT = 1
NEAR = 0.02  # relative: RobustBench ranks models for 0.031 with those for 8/255

_FOLDERS = {"linf": "linf", "l2": "l2", CORRUPTIONS: CORRUPTIONS}
_MARKUP = re.compile(r"<[^>]*>")
_TEX = ((r"\ell_{\infty}", "linf"), (r"\ell_2", "l2"), (r"\varepsilon", "eps"), (r"\(", ""), (r"\)", ""))


def _percent(value: object) -> object:
    """``"51.56"`` as 51.56; texts that stand for nothing as None."""
    if isinstance(value, str) and value.strip().lower() in ("", "null", "n/a", "-"):
        return None
    if isinstance(value, bool):
        raise ValueError("is no number")
    return value


def _text(value: object) -> object:
    """Without HTML and TeX; None as an empty text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    shown = _MARKUP.sub(" ", value)
    for written, read in _TEX:
        shown = shown.replace(written, read)
    return " ".join(html.unescape(shown).split())


Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Given = Annotated[Percent | None, BeforeValidator(_percent)]
Text = Annotated[str, BeforeValidator(_text), Field(max_length=4000)]


class _File(BaseModel):
    """The fields that are read of a file; others are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: Annotated[Text, Field(min_length=1)]
    authors: Text = ""
    link: Text = ""
    venue: Text = ""
    architecture: Text = ""
    dataset: Text = ""
    eps: Text = ""
    clean_acc: Percent
    reported: Given = None
    autoattack_acc: Given = None
    external: Given = None
    corruptions_acc: Given = None
    additional_data: bool = False
    unreliable: bool = False
    footnote: Text = ""


class Published(BaseModel):
    """One entry. model: RobustBench's id of the model; accuracies in [0, 1], None where none is given.

    dataset: as data sets are called here. threat: as threat models are written here, or ``corruptions``. autoattack: what
    AutoAttack leaves; reported: by the authors; external: by somebody else's evaluation; corrupted: accuracy under common
    corruptions. extra_data: it was trained on more than the data set. unreliable: RobustBench says so of AutoAttack's number.
    notes: footnotes, and what does not fit together in the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = SOURCE
    model: str
    dataset: str
    threat: str
    title: str
    authors: str
    venue: str
    architecture: str
    reference: str
    clean: float
    autoattack: float | None
    reported: float | None
    external: float | None
    corrupted: float | None
    extra_data: bool
    unreliable: bool
    notes: tuple[str, ...]

    @property
    def robust(self) -> float | None:
        """The least that any published evaluation leaves: of AutoAttack and external ones, else what its authors report."""
        measured = [value for value in (self.autoattack, self.external) if value is not None]
        return min(measured) if measured else self.reported

    def beside(self, dataset: str, threat: Threat) -> bool:
        """Whether it belongs beside a table of that data set and threat model: one of nearly the same radius does."""
        if self.threat == CORRUPTIONS or self.dataset != dataset:
            return False
        own = Threat.parse(self.threat)
        return own.norm == threat.norm and abs(own.eps - threat.eps) <= NEAR * threat.eps


def read_entries(paths: Iterable[Path]) -> list[Published]:
    """The entries of files, and of all JSON files below folders. Raises InvalidBundle, naming the file, for a malformed one."""
    files: dict[Path, None] = {}
    for path in paths:
        below = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        if not below:
            raise InvalidBundle(f"{path} holds no JSON files", hint="name RobustBench's folder model_info, or one of its files")
        files |= dict.fromkeys(below)
    return [read_entry(file) for file in files]


def read_entry(path: Path) -> Published:
    """The entry of one file. Raises InvalidBundle, naming the file and what is wrong with it."""
    folders = path.resolve().parts[-3:-1]
    kind = _FOLDERS.get(folders[-1].lower()) if len(folders) == 2 else None
    if kind is None:
        raise InvalidBundle(
            f"{path}: its folder says no threat model",
            hint="keep RobustBench's folders: cifar10/Linf/NAME.json, or L2, or corruptions",
        )
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InvalidBundle(f"{path} has {path.stat().st_size:,} bytes, and an entry at most {MOST_BYTES:,}")
        content = json.loads(path.read_bytes())
        file = _File.model_validate(content)
        return _entry(path.stem, folders[0].lower(), kind, file)
    except OSError as error:
        raise InvalidBundle(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "it"
        raise InvalidBundle(f"{path}: {field}: {first['msg']}") from error
    except InvalidThreat as error:
        raise InvalidBundle(f"{path}: eps: {error.message}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidBundle(f"{path} is not JSON: {error}") from error


def _entry(model: str, dataset: str, kind: str, file: _File) -> Published:
    threat = CORRUPTIONS
    if kind != CORRUPTIONS:
        threat = str(Threat.parse(f"{kind}:{file.eps}"))
        if file.autoattack_acc is None and file.reported is None and file.external is None:
            raise InvalidBundle(f"{model}: no robust accuracy: none of autoattack_acc, reported and external")
    notes = [file.footnote] * bool(file.footnote)
    if file.dataset and file.dataset.lower() != dataset:
        notes.append(f"its file says {file.dataset}, and stands among those of {dataset}")
    return Published(
        model=model,
        dataset=dataset,
        threat=threat,
        title=file.name,
        authors=file.authors,
        venue=file.venue,
        architecture=file.architecture,
        reference=file.link,
        clean=round(file.clean_acc / 100, 6),
        autoattack=_share(file.autoattack_acc),
        reported=_share(file.reported),
        external=_share(file.external),
        corrupted=_share(file.corruptions_acc),
        extra_data=file.additional_data,
        unreliable=file.unreliable,
        notes=tuple(notes),
    )


def _share(percent: float | None) -> float | None:
    return None if percent is None else round(percent / 100, 6)


def stored_entries(store: Store) -> list[Published]:
    """The entries in a store. Raises InvalidBundle where their file is damaged."""
    path = store.path / FILE
    if not path.exists():
        return []
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"it is of format {content['format']!r}, this version reads {FORMAT}")
        return [Published.model_validate(each) for each in content["entries"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidBundle(f"{path} cannot be read: {error}", hint="remove it and import the entries again") from error


def store_entries(store: Store, entries: Sequence[Published]) -> tuple[int, int]:
    """Add entries to a store, in place of older ones of the same model; returns how many are new, and how many have changed."""
    store.require_writable()
    known = {_identity(entry): entry for entry in stored_entries(store)}
    given = {_identity(entry): entry for entry in entries}
    new = sum(name not in known for name in given)
    changed = sum(name in known and known[name] != entry for name, entry in given.items())
    listed = [entry.model_dump() for _, entry in sorted((known | given).items())]
    make_folder((store.path / FILE).parent)
    write_file(store.path / FILE, json.dumps({"format": FORMAT, "entries": listed}, indent=1).encode())
    return new, changed


def _identity(entry: Published) -> tuple[str, str, str]:
    """A model has one entry for each data set and kind of threat."""
    return entry.dataset, entry.threat.partition(":")[0], entry.model
