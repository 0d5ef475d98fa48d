"""Entries of RobustBench: what is read of them, what is refused, and all that there are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from robustbench_lite.errors import InvalidBundle
from robustbench_lite.published import FILE, Published, read_entries, read_entry, store_entries, stored_entries
from robustbench_lite.store import Store
from robustbench_lite.threat import Threat
from tests.support import invoke

ENTRY = {
    "link": "https://example.org/paper",
    "name": "Robustness by wishing",
    "authors": "A. Nother, S. O. Meone",
    "additional_data": True,
    "number_forward_passes": 1,
    "dataset": "blobs",
    "venue": "Nowhere 2020",
    "architecture": "Mean-1",
    "eps": "8/255",
    "clean_acc": "91.50",
    "reported": "70.1",
    "autoattack_acc": "51.56",
    "external": "50.00",
    "unreliable": False,
    "footnote": 'Uses \\(\\ell_{\\infty} \\) = 0.031 instead; see <a href="https://example.org">this</a> &amp; that.',
}


def entry(folder: Path, where: str = "blobs/Linf", name: str = "Nother2020Wishing", **changes: Any) -> Path:
    """A file as RobustBench has them. A change to ``...`` removes the field."""
    path = folder / where / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: value for key, value in (ENTRY | changes).items() if value is not ...}))
    return path


def test_an_entry(tmp_path: Path) -> None:
    found = read_entry(entry(tmp_path))
    assert found == Published(
        model="Nother2020Wishing",
        dataset="blobs",
        threat="linf:8/255",
        title="Robustness by wishing",
        authors="A. Nother, S. O. Meone",
        venue="Nowhere 2020",
        architecture="Mean-1",
        reference="https://example.org/paper",
        clean=0.915,
        autoattack=0.5156,
        reported=0.701,
        external=0.5,
        corrupted=None,
        extra_data=True,
        unreliable=False,
        notes=("Uses linf = 0.031 instead; see this & that.",),
    )
    assert found.robust == 0.5


@pytest.mark.parametrize("empty", ["", "null", None, "N/A", ...])
def test_numbers_that_are_not_given(tmp_path: Path, empty: object) -> None:
    found = read_entry(entry(tmp_path, reported=empty, external=empty))
    assert (found.reported, found.external, found.robust) == (None, None, 0.5156)
    assert read_entry(entry(tmp_path, autoattack_acc=empty, external=empty)).robust == 0.701


def test_the_folder_counts(tmp_path: Path) -> None:
    found = read_entry(entry(tmp_path, "cifar100/L2", eps="0.5"))
    assert (found.dataset, found.threat) == ("cifar100", "l2:0.5")
    assert found.notes[-1] == "its file says blobs, and stands among those of cifar100"
    corrupted = read_entry(entry(tmp_path, "cifar10/corruptions", eps=None, autoattack_acc=..., corruptions_acc="76.78"))
    assert (corrupted.threat, corrupted.corrupted) == ("corruptions", 0.7678)


@pytest.mark.parametrize(
    ("where", "changes", "match"),
    [
        ("blobs/Linf", {"clean_acc": "ninety"}, "clean_acc: Input should be a valid number"),
        ("blobs/Linf", {"clean_acc": "191.5"}, "clean_acc: .* less than or equal to 100"),
        ("blobs/Linf", {"clean_acc": "nan"}, "clean_acc: "),
        ("blobs/Linf", {"clean_acc": ...}, "clean_acc: Field required"),
        ("blobs/Linf", {"autoattack_acc": True}, "autoattack_acc: "),
        ("blobs/Linf", {"autoattack_acc": "", "reported": "", "external": ""}, "no robust accuracy"),
        ("blobs/Linf", {"additional_data": "perhaps"}, "additional_data: "),
        ("blobs/Linf", {"authors": 5}, "authors: "),
        ("blobs/Linf", {"footnote": ["a"]}, "footnote: "),
        ("blobs/Linf", {"eps": None}, "eps: .* radius is missing"),
        ("blobs/Linf", {"eps": "eight"}, "eps: .* neither a number nor a fraction"),
        ("blobs/Linfty", {}, "its folder says no threat model"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_reason(
    tmp_path: Path, where: str, changes: dict[str, Any], match: str
) -> None:
    path = entry(tmp_path, where, **changes)
    with pytest.raises(InvalidBundle, match=match) as caught:
        read_entry(path)
    assert str(path) in caught.value.message or path.stem in caught.value.message


@pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 100_000, ""])
def test_what_is_no_entry(tmp_path: Path, text: str) -> None:
    path = entry(tmp_path)
    path.write_text(text)
    with pytest.raises(InvalidBundle, match="Nother2020Wishing"):
        read_entry(path)


def test_one_malformed_file_keeps_all_out(tmp_path: Path) -> None:
    entry(tmp_path)
    bad = entry(tmp_path, name="Bad2021", clean_acc="x")
    refused = invoke("import", tmp_path / "blobs", "--store", tmp_path / "store", code=2).err
    assert f"{bad}: clean_acc" in refused
    assert not (tmp_path / "store").exists()
    (tmp_path / "empty").mkdir()
    assert "holds no JSON files" in invoke("import", tmp_path / "empty", "--store", tmp_path / "store", code=2).err


def test_importing_twice_and_a_change(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    path = entry(tmp_path)
    assert store_entries(store, read_entries([path])) == (1, 0)
    assert store_entries(store, read_entries([path, tmp_path / "blobs"])) == (0, 0)
    entry(tmp_path, autoattack_acc="49")
    assert store_entries(store, read_entries([path])) == (0, 1)
    assert [each.autoattack for each in stored_entries(store)] == [0.49]
    assert store.check() == []
    (store.path / FILE).write_text("{}")
    with pytest.raises(InvalidBundle, match="import the entries again"):
        stored_entries(store)


def test_beside_which_table(tmp_path: Path) -> None:
    near = read_entry(entry(tmp_path, eps="0.031"))
    assert near.beside("blobs", Threat.parse("linf:8/255"))
    assert not near.beside("blobs", Threat.parse("linf:4/255"))
    assert not near.beside("blobs", Threat.parse("l2:0.031"))
    assert not near.beside("digits", Threat.parse("linf:8/255"))
    corrupted = read_entry(entry(tmp_path, "blobs/corruptions", eps=None))
    assert not corrupted.beside("blobs", Threat.parse("linf:8/255"))


def test_all_that_robustbench_has_published(real_data: Path) -> None:
    folder = real_data / "robustbench"
    if not folder.is_dir():
        pytest.skip("no RobustBench entries: put its model_info at RBL_DATA/robustbench")
    found = read_entries([folder])
    assert len(found) == len(list(folder.rglob("*.json"))) == 236
    assert Counter(each.threat for each in found) == {
        "linf:8/255": 131,
        "corruptions": 48,
        "linf:4/255": 30,
        "l2:0.5": 21,
        "linf:0.031": 6,
    }
    beside = [each for each in found if each.beside("cifar10", Threat.parse("linf:8/255"))]
    assert len(beside) == 99
    assert all(each.robust is not None for each in beside)
    assert sum(each.unreliable for each in found) == 2
    assert sum(each.extra_data for each in found) == 48
    best = max(beside, key=lambda each: each.robust or 0)
    assert 0.7 < (best.robust or 0) < best.clean < 1
