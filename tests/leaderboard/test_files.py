from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest

from robustbench_lite import StoreError
from robustbench_lite.leaderboard import write_all
from robustbench_lite.leaderboard.files import stems


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_three_files_per_table(tmp_path, tables, varied):
    paths = write_all(tables(varied), tmp_path / "new" / "leaderboards", command="rbl report --out x")
    assert [p.name for p in paths] == ["digits-linf.md", "digits-linf.json", "digits-linf.csv"]
    assert all(p.is_file() for p in paths)
    assert "`rbl report --out x`" in paths[0].read_text(encoding="utf-8")
    assert json.loads(paths[1].read_text(encoding="utf-8"))["dataset"]["name"] == "digits"
    assert len(list(csv.reader(paths[2].open(encoding="utf-8")))) == 6


def test_writing_again_changes_no_byte_and_leaves_other_files(tmp_path, tables, varied):
    (tmp_path / "README.md").write_text("mine")
    write_all(tables(varied), tmp_path)
    before = content(tmp_path)
    write_all(tables(varied, shuffle=3), tmp_path)
    assert content(tmp_path) == before
    assert before["README.md"] == b"mine"
    assert len(before) == 4


def test_a_quick_look_does_not_overwrite_the_whole_table(tmp_path, make_cell, tables):
    write_all(tables([make_cell(n=40)]), tmp_path)
    before = content(tmp_path)
    paths = write_all(tables([make_cell(n=20, subset="t" * 64)]), tmp_path)
    assert [p.name for p in paths] == ["digits-linf-n20.md", "digits-linf-n20.json", "digits-linf-n20.csv"]
    after = content(tmp_path)
    assert before.items() <= after.items()
    larger = write_all(tables([make_cell(n=50, subset="u" * 64)]), tmp_path)
    assert [p.name for p in larger][:1] == ["digits-linf.md"]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([{"threat": "l2:0.5"}], ["digits-linf", "digits-l2-0.5"]),
        ([{"dataset": "mnist", "threat": "linf:0.3"}], ["digits-linf", "mnist-linf"]),
        ([{"threat": "linf:8/255"}], ["digits-linf-8-255", "digits-linf"]),
        ([{"protocol": {"name": "standard"}}], ["digits-linf", "digits-linf-standard"]),
        ([{"protocol": {"version": 2}}], ["digits-linf-quick-1", "digits-linf"]),
        ([{"n": 20, "subset": "t" * 64}], ["digits-linf-n20", "digits-linf"]),
        ([{"seed": 1}], ["digits-linf", "digits-linf-seed1"]),
        (
            [{"threat": "linf:0.3"}, {"threat": "linf:0.3", "seed": 1}],
            ["digits-linf", "digits-linf-0.3", "digits-linf-0.3-seed1"],
        ),
        (
            [{"dataset": "mine"}, {"dataset": "mine", "threat": "linf:0.3"}],
            ["digits-linf", "mine-linf-0.15", "mine-linf-0.3"],
        ),
    ],
)
def test_names_say_what_differs_from_the_default_run(make_cell, tables, others, expected):
    found = tables([make_cell(), *(make_cell(**other) for other in others)])
    assert stems(found) == expected
    assert stems(found[::-1]) == expected[::-1]


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ({}, "digits-linf"),
        ({"threat": "linf:0.1"}, "digits-linf-0.1"),
        ({"threat": "linf:0.150"}, "digits-linf"),
        ({"protocol": {"name": "standard"}}, "digits-linf-standard"),
        ({"protocol": {"name": "mine"}}, "digits-linf-0.15-mine"),
        ({"seed": 2}, "digits-linf-seed2"),
        ({"threat": "l2:0.5"}, "digits-l2-0.5"),
        ({"dataset": "mine"}, "mine-linf-0.15"),
        ({"threat": "unrestricted"}, "digits-unrestricted"),
    ],
)
def test_a_table_alone_has_the_name_that_it_has_among_others(make_cell, tables, cell, name):
    assert stems(tables([make_cell(**cell)])) == [name]


def test_a_protocol_of_a_plugin_says_which_radius_is_the_usual_one(make_cell, tables):
    found = tables([make_cell(dataset="mine", threat="linf:0.1"), make_cell(dataset="mine", threat="linf:0.2")])
    assert stems(found, radii=lambda protocol, dataset: ("l2:1", "linf:0.2", "linf:0.1")) == ["mine-linf-0.1", "mine-linf"]


def test_a_new_version_leaves_no_table_under_its_old_name(make_cell, tables, tmp_path):
    first = make_cell(protocol={"version": 1})
    (tmp_path / "mine.json").write_text('{"format": 1, "rows": []}')
    write_all(tables([first]), tmp_path)
    assert "digits-linf.md" in content(tmp_path)
    old = content(tmp_path)["digits-linf.csv"]
    write_all(tables([first, make_cell(protocol={"version": 2})]), tmp_path)
    expected = {f"digits-linf{version}.{ending}" for version in ("", "-quick-1") for ending in ("md", "json", "csv")}
    assert set(content(tmp_path)) == expected | {"mine.json"}
    assert content(tmp_path)["digits-linf-quick-1.csv"] == old


def test_runs_at_several_radii_one_after_the_other_keep_all_tables(make_cell, tables, tmp_path):
    for radius in ("0.5", "1.0"):
        write_all(tables([make_cell(threat=f"l2:{radius}")]), tmp_path)
    assert {name for name in content(tmp_path) if name.endswith("md")} == {"digits-l2-0.5.md", "digits-l2-1.0.md"}


def test_the_default_table_stays_when_another_radius_is_written(make_cell, tables, tmp_path):
    write_all(tables([make_cell()]), tmp_path)
    before = content(tmp_path)
    write_all(tables([make_cell(threat="linf:0.1")]), tmp_path)
    after = content(tmp_path)
    assert len(after) == 6
    assert {name: after[name] for name in before} == before


def test_tables_that_nothing_readable_tells_apart_get_a_checksum(make_cell, tables):
    names = stems(tables([make_cell(subset="s" * 64), make_cell(subset="t" * 64)]))
    assert len(set(names)) == 2
    assert all(name.startswith("digits-linf-") for name in names)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", "C:\\x", "x" * 900, "\x00", "-rf", "."])
def test_names_are_never_paths(make_cell, tables, tmp_path, name):
    folder = tmp_path / "in"
    write_all(tables([make_cell(dataset=name)]), folder)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert len([p for p in folder.iterdir() if p.is_file()]) == 3
    assert all(p.name[0].isalnum() for p in folder.iterdir())


def test_a_failed_write_leaves_the_old_table(tmp_path, tables, varied, monkeypatch):
    found = tables(varied)
    write_all(found, tmp_path)
    before = content(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError):
        write_all([replace(found[0], seed=7)], tmp_path)
    assert content(tmp_path) == before


def test_a_folder_that_cannot_be(tmp_path, tables, varied):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot make the folder"):
        write_all(tables(varied), tmp_path / "file" / "leaderboards")
