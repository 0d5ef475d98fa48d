from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_lite import InvalidConfig, InvalidThreat, RblError, UnknownName, UsageError
from robustbench_lite.protocol import Protocol, builtin_protocols, find_protocol, parse_protocol
from robustbench_lite.request import load_request, parse_shard
from robustbench_lite.threat import Threat


def test_yaml_and_options_mean_the_same_thing(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "defense: pgd-at,standard\nattack: ['pgd[steps=5]', fgsm]\nthreat: 'linf:8/255'\nn: 64\nseed: 3\nstore: here\n"
    )
    from_file = load_request(config, {})
    from_options = load_request(
        None,
        {
            "defense": ("pgd-at", "standard"),
            "attack": ("pgd[steps=5],fgsm",),
            "threat": ("linf:8/255",),
            "n": 64,
            "seed": 3,
            "store": Path("here"),
        },
    )
    assert from_file == from_options
    assert load_request(config, {"n": 8}).n == 8  # an option wins over the file


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("defence: all", "unknown key 'defence'", "defense"),
        ("n: many", "n: ", ""),
        ("n: 0", "greater than or equal to 1", ""),
        ("threat: linf:8//255", "neither a number nor a fraction", "linf:8/255"),
        ("executor: cloud", "executor", ""),
        ("defense: []", "nothing selected", "all"),
        ("shard: 3/2", "must read i/n", "2/8"),
        ("- a list", "must be a mapping", "dataset: digits"),
        ("n: [1", "not valid YAML", ""),
    ],
)
def test_a_bad_configuration_names_the_file_the_key_and_the_cure(tmp_path: Path, text: str, message: str, hint: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(RblError) as refused:
        load_request(config, {})
    assert isinstance(refused.value, (InvalidConfig, UsageError))
    assert "run.yaml" in str(refused.value)
    assert message in str(refused.value)
    assert hint in refused.value.hint


def test_a_missing_configuration_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="no configuration file"):
        load_request(tmp_path / "none.yaml", {})


def test_shards() -> None:
    assert parse_shard("2/8") == (2, 8)
    for bad in ("0/8", "9/8", "1", "a/b", "1/0"):
        with pytest.raises(UsageError):
            parse_shard(bad)


def test_built_in_protocols_are_as_published() -> None:
    standard = builtin_protocols()["standard"]
    for name in ("cifar10", "cifar100"):
        assert standard.rules(name).threats == ("linf:8/255", "l2:0.5")
        assert standard.rules(name).n == 10000
    assert standard.rules("imagenet").threats == ("linf:4/255",)
    assert standard.rules("imagenet").n == 5000
    quick = builtin_protocols()["quick"]
    assert [Threat.parse(t).eps for t in quick.rules("digits").threats] == [0.15]
    assert quick.rules("unheard-of").threats == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: mine\nversion: 1\ndatasets: {digits: {thread: ['linf:1']}}", "unknown key 'datasets.digits.thread'"),
        ("name: mine\nversion: 1\neots: 3", "unknown key 'eots'"),
        ("name: mine", "version: field required"),
        ("name: mine\nversion: 0", "version"),
        ("name: mine\nversion: 1\ndefault: {threats: ['l3:1']}", "unknown norm 'l3'"),
    ],
)
def test_a_bad_protocol_names_its_source_and_key(text: str, message: str) -> None:
    with pytest.raises((InvalidConfig, InvalidThreat)) as refused:
        parse_protocol(text, source="mine.yaml")
    assert message in str(refused.value)
    assert "mine.yaml" in str(refused.value)


def test_protocols_are_found_by_name_file_and_plugin(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nversion: 2\ndefault: {threats: ['linf:0.1']}\n")
    assert find_protocol(str(file)) == Protocol(name="mine", version=2, default={"threats": ("linf:0.1",)})  # type: ignore[arg-type]
    contributed = {"lab/other": "name: other\nversion: 1\n"}
    assert find_protocol("other", contributed) == find_protocol("lab/other", contributed)
    with pytest.raises(UnknownName) as refused:
        find_protocol("standart")
    assert "standard" in refused.value.hint
    with pytest.raises(UnknownName):
        find_protocol(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(("given", "kept"), [("true", "all"), ("false", 0), ("all", "all"), ("8", 8), ("'8'", 8), ("0", 0)])
def test_examples_to_keep(tmp_path, given, kept):
    path = tmp_path / "run.yaml"
    path.write_text(f"keep_examples: {given}\n")
    assert load_request(path, {}).keep_examples == kept


@pytest.mark.parametrize("given", ["-1", "some", "1.5"])
def test_examples_to_keep_are_a_number_or_all(given):
    with pytest.raises(InvalidConfig, match="keep-examples"):
        load_request(None, {"keep_examples": given})
