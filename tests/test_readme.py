"""The README keeps its word: its table is the committed one, its plugin works when pasted, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from robustbench_lite.cli import COMMANDS
from tests.support import invoke

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_its_table_is_the_leaderboard_that_stands_beside_it() -> None:
    """The same rows and columns, and every accuracy inside the other's interval: seconds and last digits are the machine's."""
    shown = re.search(r"<!-- table: (\S+) -->\n(.*?)<!-- end of table -->", README, flags=re.DOTALL)
    assert shown is not None
    first = re.search(r"(?:^\|.*\n)+", (ROOT / shown[1]).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert first is not None
    mine, theirs = cells(shown[2]), cells(first[0])
    assert len(mine) >= 6
    assert mine[0] == theirs[0]
    assert {row[1] for row in mine} == {row[1] for row in theirs}
    by_name = {row[1]: row for row in theirs}
    for row in mine[1:]:
        for found, expected in zip(row, by_name[row[1]], strict=True):
            if interval := re.match(r"\S+ \[(\S+), (\S+)\]", expected):
                assert float(interval[1]) <= float(found.split()[0]) <= float(interval[2])


def cells(markdown: str) -> list[list[str]]:
    """The cells of the first table in a text, without the line under its header."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_its_commands_exist() -> None:
    used = {words[1] for block in blocks("sh") for line in re.split("[\n;]", block) if len(words := _command(line)) > 1}
    assert used
    assert used <= set(COMMANDS)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {"leaderboard", "test"} <= set(targets)


def _command(line: str) -> list[str]:
    words = line.split("#")[0].split()
    if words[:1] != ["rbl"]:
        return []
    return [words[0], *words[3:]] if words[1:2] == ["--plugin"] else words


def test_its_plugin_works_when_pasted(tmp_path: Path) -> None:
    code = blocks("python")[0]
    assert len(code.strip().splitlines()) <= 36
    (tmp_path / "momentum.py").write_text(code, encoding="utf-8")
    plugin, store = tmp_path / "momentum.py", tmp_path / "store"
    run = ("run", "--defense", "standard,pgd-at", "--attack", "mi-fgsm,fgsm", "--n", 64, "--store", store, "--json")
    (table,) = invoke(*run, plugin=plugin).json["tables"]
    robust = {
        row["defense"]["label"]: {name: cell["robust_accuracy"]["value"] for name, cell in row["attacks"].items()}
        for row in table["rows"]
    }
    assert robust["standard"]["mi-fgsm"] < robust["pgd-at"]["mi-fgsm"]
    assert robust["pgd-at"]["mi-fgsm"] <= robust["pgd-at"]["fgsm"]
    invoke("check", "mi-fgsm", plugin=plugin)


def test_the_plugin_of_the_readme_needs_no_torch_to_be_listed() -> None:
    code = blocks("python")[0]
    assert not re.search(r"^(import|from) torch", code, flags=re.MULTILINE)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_its_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
