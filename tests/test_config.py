"""YAML into models: every mistake names the source, the key and the nearest known one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from robustbench_lite import InvalidConfig
from robustbench_lite.config import read_yaml, validate
from robustbench_lite.request import RunRequest, load_request, parse_devices


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    radius: float = 1.0


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: int
    inner: Inner = Inner()
    table: Mapping[str, Inner] = {}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("versoin: 1", "here: unknown key 'versoin'", "did you mean 'version'?"),
        ("{version: 1, inner: {radios: 2}}", "here: unknown key 'inner.radios'", "did you mean 'radius'?"),
        ("{version: 1, table: {a: {radios: 2}}}", "here: unknown key 'table.a.radios'", "did you mean 'radius'?"),
        ("{version: 1, zzz: 2}", "here: unknown key 'zzz'", "known keys: version, inner, table"),
        ("inner: {}", "here: version: field required", "add a line 'version: ...'"),
        ("version: one", "here: version: input should be a valid integer, unable to parse string as an integer, not 'one'", ""),
        ("{version: 1, inner: {radius: [1]}}", "here: inner.radius: input should be a valid number, not [1]", ""),
    ],
)
def test_a_mistake(text: str, message: str, hint: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        validate(Outer, read_yaml(text, source="here"), source="here")
    assert refused.value.message == message
    assert refused.value.hint == hint


def test_a_source_spells_its_keys() -> None:
    with pytest.raises(InvalidConfig, match=r"^line: --micro-batch: ") as refused:
        validate(RunRequest, {"micro_batch": 0}, source="line", spell=lambda key: "--" + key.replace("_", "-"))
    assert "not 0" in str(refused.value)


def test_an_empty_file_asks_for_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing\n")
    assert load_request(tmp_path / "run.yaml", {}) == RunRequest()


@pytest.mark.parametrize("text", ["key: !!python/object/apply:os.system ['true']", "1: 2", "- a", "just text", "a: [", "\x00"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfig, match=r"^here "):
        read_yaml(text, source="here")


def test_weights_and_plugins_are_written_alike_in_a_file_and_on_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    wanted = {"jpeg[base=pgd-at]": Path("b.pt"), "pgd-at": Path("w.pt")}
    for text in (
        "weights: {'jpeg[base=pgd-at]': b.pt, pgd-at: w.pt}\nplugin: p.py",
        "weights: ['jpeg[base=pgd-at]=b.pt', pgd-at=w.pt]\nplugin: [p.py]",
    ):
        config.write_text(text)
        found = load_request(config, {})
        assert found.weights == wanted
        assert found.plugin == (Path("p.py"),)
    assert load_request(None, {"weights": ("jpeg[base=pgd-at]=b.pt", "pgd-at=w.pt"), "plugin": [Path("p.py")]}) == found


def test_devices() -> None:
    assert parse_devices("auto") == ("auto",)
    assert parse_devices("cpu") == ("cpu",)
    assert parse_devices("cuda") == ("cuda:0",)
    assert parse_devices("cuda:0, cuda:3") == ("cuda:0", "cuda:3")
