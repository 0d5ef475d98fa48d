"""Whatever is misspelt: the message names the thing, the cause and the fix, and the exit code is 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import TOY, invoke

# What comes last wins, so that a case changes one thing of a request that is sound.
SOUND = "--dataset toy/blobs --n 32 --threat linf:0.08 --executor inline --defense toy/mean --attack toy/shift --store s"

REQUESTS = [
    ("--defense toy/meen", ["unknown defense 'toy/meen'", "did you mean 'toy/mean'", "rbl list defenses"]),
    ("--attack toy/shfit", ["unknown attack 'toy/shfit'", "did you mean 'toy/shift'", "rbl list attacks"]),
    ("--dataset toy/blob", ["unknown dataset 'toy/blob'", "did you mean 'toy/blobs'", "rbl list datasets"]),
    ("--defense toy/mean[scle=1]", ["toy/mean has no parameter 'scle'", "did you mean 'scale'", "rbl show toy/mean"]),
    ("--defense toy/mean[scale=lots]", ["scale must be float", "'lots'", "rbl show toy/mean"]),
    ("--defense toy/mean[scale=1", ["this '[' is never closed", "name[key=value,key=value]"]),
    ("--defense ,", ["cannot read ','", "a name is missing", "name[key=value,key=value]"]),
    ("--threat lfin:0.1", ["unknown norm 'lfin'", "did you mean 'linf'"]),
    ("--threat linf:8//255", ["'8//255' is neither a number nor a fraction", "linf:8/255"]),
    ("--threat linf:-1", ["radius must be 0 or more", "linf:8/255"]),
    ("--threat union:linf:0.1", ["at least two balls", "union:linf:0.03+l2:0.5"]),
    ("--protocol quik", ["no protocol 'quik'", "did you mean 'quick'"]),
    ("--protocol none.yaml", ["no protocol file none.yaml", "path of a YAML file"]),
    ("--config none.yaml", ["no configuration file none.yaml", "--config run.yaml"]),
    ("--weights toy/mean", ["'toy/mean' must read DEFENSE=FILE", "pgd-at=mine.safetensors"]),
    ("--weights toy/mean[scale=2]", ["must read DEFENSE=FILE"]),
    ("--weights toy/meen=w.safetensors", ["unknown defense 'toy/meen'", "did you mean 'toy/mean'"]),
    ("--weights toy/guessing=w.safetensors", ["weights were given for guessing", "not among the defenses", "mean"]),
    ("--weights toy/mean=w.safetensors", ["no weights file w.safetensors for toy/mean", "--weights DEFENSE=FILE"]),
    ("--executor clod", ["'clod' is not one of 'local', 'inline'"]),
    ("--device gpu", ["unknown device 'gpu'", "--device auto, cpu, cuda or cuda:0,cuda:1"]),
    ("--device cpu,cuda:0", ["cpu cannot be combined", "--device"]),
    ("--device cuda:1,cuda:1", ["stands twice", "--workers 2"]),
    ("--device cuda:99", ["device cuda:99 is not there", "rbl doctor", "--device cpu"]),
    ("--workers 0", ["--workers: input should be greater than or equal to 1, not 0"]),
    ("--n 0", ["--n: input should be greater than or equal to 1, not 0"]),
    ("--n many", ["--n", "'many' is not a valid integer"]),
    ("--seed -1", ["--seed: input should be greater than or equal to 0, not -1"]),
    ("--timeout -1", ["--timeout: input should be greater than 0, not -1"]),
    ("--micro-batch 0", ["--micro-batch: input should be greater than or equal to 1"]),
    ("--shard 3/2", ["shard '3/2' must read i/n", "--shard 2/8"]),
    ("--defence toy/mean", ["No such option '--defence'", "--defense"]),
    ("--store file", ["file is a file, not a result store", "--store"]),
    ("--store folder", ["folder is not empty and no result store", "--store"]),
    ("--store newer", ["newer is a store of format 99", "pip install --upgrade"]),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no store")
    for name, file, text in (("folder", "notes.txt", "mine"), ("newer", "FORMAT", "robustbench-lite store 99\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    return tmp_path


@pytest.mark.parametrize(("wrong", "said"), REQUESTS, ids=[wrong for wrong, _ in REQUESTS])
def test_a_request(folder: Path, wrong: str, said: list[str]) -> None:
    option, _, value = wrong.partition(" ")
    words = SOUND.split()
    if option in words:
        words[words.index(option) + 1] = value
        wrong = ""
    before = sorted(path.name for path in folder.rglob("*"))
    done = invoke("run", *words, *wrong.split(), code=2)
    for text in said:
        assert text in done.err
    assert done.out == ""
    if option != "--device" or "99" not in value:
        for other in ("plan", "run --dry-run"):
            assert text in invoke(*other.split(), *words, *wrong.split(), code=2).err
    after = sorted(path.name for path in folder.rglob("*"))
    assert set(after) - set(before) <= {"s", "FORMAT"}, "a refused request leaves no more than an empty store"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("runn", ["no command 'runn'", "did you mean 'run'"]),
        ("frobnicate", ["no command 'frobnicate'", "rbl --help"]),
        ("list atacks", ["no kind 'atacks'", "did you mean 'attacks'"]),
        ("show toy/shfit", ["nothing is registered under the name 'toy/shfit'", "did you mean 'toy/shift'"]),
        ("show", ["Missing argument 'NAME'"]),
        ("report --store none", ["no results in none", "rbl run fills a store"]),
        ("report --store folder", ["no results in folder", "rbl run fills a store"]),
        ("report --store newer", ["newer is a store of format 99", "pip install --upgrade"]),
        ("report --threat foo:1", ["unknown norm 'foo'", "linf:8/255"]),
        ("status --store none", ["no results in none", "rbl run fills a store"]),
        ("status --store file", ["'file' is a file"]),
        ("run --no-such", ["No such option '--no-such'"]),
        ("--no-such run", ["No such option '--no-such'"]),
        ("--plugin none.py list", ["none.py", "--plugin takes the path of an existing .py file"]),
        ("--plugin folder list", ["folder", "--plugin takes the path of an existing .py file"]),
    ],
)
def test_a_command_line(line: str, said: list[str]) -> None:
    plugin = TOY if line.startswith("show") else None
    done = invoke(*line.split(), plugin=plugin, code=2)
    for text in said:
        assert text in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("defence: all", ["run.yaml: unknown key 'defence'", "did you mean 'defense'"]),
        ("worker: 2", ["unknown key 'worker'", "did you mean 'workers'"]),
        ("n: many", ["run.yaml: n: ", "'many'"]),
        ("- defense", ["run.yaml must be a mapping"]),
        ("defense: [", ["run.yaml is not valid YAML"]),
        ("plugin: none.py", ["none.py", "existing .py file"]),
        ("weights: pgd-at", ["run.yaml: weights: 'pgd-at' must read DEFENSE=FILE"]),
    ],
)
def test_a_configuration(folder: Path, text: str, said: list[str]) -> None:
    (folder / "run.yaml").write_text(text)
    done = invoke("plan", "--config", "run.yaml", code=2)
    for part in said:
        assert part in done.err


def test_verbose_adds_the_traceback_and_changes_no_exit_code() -> None:
    from tests.support import rbl

    done = rbl("--verbose", "run", "--defense", "meen", "--attack", "toy/shift", "--dataset", "toy/blobs", "--threat", "linf:1",
               code=2)  # fmt: skip
    assert "Traceback" in done.stderr
    assert "rbl: unknown defense 'meen'" in done.stderr


def test_a_protocol(folder: Path) -> None:
    (folder / "mine.yaml").write_text("name: mine\nversion: 1\ndefault: {treats: ['linf:0.1']}\n")
    done = invoke("run", *SOUND.split(), "--protocol", "mine.yaml", code=2)
    assert "mine.yaml: unknown key 'default.treats'" in done.err
    assert "did you mean 'threats'" in done.err


def test_a_data_set_without_a_threat_model_says_how_to_give_one() -> None:
    done = invoke("run", "--dataset", "toy/blobs", "--defense", "toy/mean", "--attack", "toy/shift", "--store", "s", code=2)
    assert "sets no threat model for data set blobs" in done.err
    assert "--threat linf:8/255" in done.err


def test_a_filter_that_fits_nothing_says_what_there_is() -> None:
    invoke("run", *SOUND.split())
    done = invoke("report", "--store", "s", "--dataset", "blob", code=2)
    assert "no results in s on data set 'blob'" in done.err
    assert "did you mean 'blobs'" in done.err
    done = invoke("report", "--store", "s", "--threat", "l2:1", code=2)
    assert "no results in s under l2:1" in done.err
    assert "there are results of blobs, linf:0.08" in done.err
