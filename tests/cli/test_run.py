"""run, plan, status and report, from the command line to what is printed, stored and written."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from robustbench_lite.cli import progress
from robustbench_lite.store import Store
from tests.support import TOY, invoke, written

REQUEST = {
    "dataset": "toy/blobs",
    "n": 32,
    "threat": "linf:0.08",
    "defense": "toy/mean,toy/mean[scale=2]",
    "attack": "toy/shift,toy/minimal",
    "executor": "inline",
}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """RBL_STORE, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RBL_STORE", "results")
    return tmp_path / "results"


def options(**changes: object) -> list[str]:
    return [word for key, value in (REQUEST | changes).items() for word in (f"--{key.replace('_', '-')}", str(value))]


def plugin(folder: Path, version: int = 1, parameters: str = "", defense_version: int = 1) -> Path:
    """A plugin with one attack and one defense, of some version."""
    own = folder / f"{version}{parameters[:1]}{defense_version}"
    own.mkdir()
    text = f"""
from dataclasses import dataclass
from robustbench_lite import AttackSpec, DefenseSpec, hookimpl

@hookimpl
def rbl_attacks():
    yield AttackSpec(name="push", factory="lab:Push", norms=("linf",), access="gradient", version={version})

@hookimpl
def rbl_defenses():
    yield DefenseSpec(name="grey", factory="lab:Grey", version={defense_version})

@dataclass(frozen=True, kw_only=True)
class Push:
    share: float = 1.0
    {parameters}

    def __call__(self, target, x, y, threat, rng):
        return threat.project(x, x - self.share * threat.eps * (2.0 * y.view(-1, 1, 1, 1) - 1))

@dataclass(frozen=True, kw_only=True)
class Grey:
    def __call__(self, info, weights):
        from torch import nn
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        nn.init.constant_(module[1].weight[0].data, -1.0)
        nn.init.constant_(module[1].weight[1].data, 1.0)
        module[1].bias.data = module[1].bias.data.new_tensor([8.0, -8.0])
        return module
"""
    return written(own, "lab", text)


def rows(done: Any) -> dict[str, dict[str, Any]]:
    (table,) = done.json if isinstance(done.json, list) else done.json["tables"]
    return {row["defense"]["label"]: row for row in table["rows"]}


# ------------------------------------------------------------------------------------------------------- run and plan


def test_a_run_prints_what_a_report_prints_and_the_second_computes_nothing(store: Path) -> None:
    first = invoke("run", *options(), "--json")
    assert "running 4 cells, 4 shards" in first.err
    assert {cell["status"] for cell in first.json["finished"].values()} == {"done"}
    assert [row["rank"] for row in first.json["tables"][0]["rows"]] == [1, 1]
    assert invoke("report", "--json").json == first.json["tables"]
    attempts = sorted(store.glob("cells/*/*/attempts/*"))
    second = invoke("run", *options(), "--json")
    assert second.json["finished"] == {}
    assert second.json["tables"] == first.json["tables"]
    assert "nothing left to run: 4 cells stored" in second.err
    assert sorted(store.glob("cells/*/*/attempts/*")) == attempts


def test_plan_and_dry_run_say_the_same_and_write_nothing(store: Path) -> None:
    planned = invoke("plan", *options(), "--json").json
    assert planned == invoke("run", *options(), "--dry-run", "--json").json
    assert planned["counts"] == {"run": 4}
    assert not store.exists()
    shown = invoke("plan", *options()).out
    assert "4 cells: 4 run" in shown
    invoke("run", *options(attack="toy/shift"))
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    planned = invoke("plan", *options(), "--json").json
    assert planned["counts"] == {"cached": 2, "run": 2}
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_a_configuration_and_the_options_mean_the_same(tmp_path: Path) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(REQUEST | {"store": "other", "plugin": str(TOY)}))
    from_options = invoke("run", *options(), "--json").json["tables"]
    from_file = invoke("run", "--config", "run.yaml", "--json", plugin=None).json["tables"]
    strip = [json.dumps(tables, sort_keys=True) for tables in (without_seconds(from_options), without_seconds(from_file))]
    assert strip[0] == strip[1]
    keys = [{cell.key for cell in Store.open(name, read_only=True).cells()} for name in ("results", "other")]
    assert keys[0] == keys[1]
    assert invoke("plan", "--config", "run.yaml", "--n", 8, "--json").json["cells"][0]["n"] == 8


def without_seconds(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for table in tables:
        for row in table["rows"]:
            row["cost"].pop("seconds")
    return tables


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attack": "toy/shift", "threat": "l2:1"}, "norm l2 not supported by shift (it has linf)"),
        ({"attack": "toy/shift", "threat": "linf"}, "shift needs a radius: write linf:EPS"),
        ({"attack": "toy/shift", "threat": "union:linf:0.1+l2:1"}, "norm union not supported by shift (it has linf)"),
        ({"attack": "toy/minimal", "threat": "union:linf:0.1+l2:1"}, "norm union not supported by minimal (it has linf)"),
        ({"defense": "toy/needs-training"}, "no weights: rbl train needs-training --dataset blobs"),
        ({"defense": "toy/not-a-module"}, "unusable: defense toy/not-a-module of toy.py built str, not a torch.nn.Module"),
    ],
)
def test_what_cannot_be_run_is_skipped_with_a_reason(changes: dict[str, str], reason: str) -> None:
    planned = invoke("plan", *options(**changes), "--json").json
    assert {(cell["state"], cell["reason"]) for cell in planned["cells"]} == {("skip", reason)}
    done = invoke("run", *options(**changes), code=2)
    assert reason in done.err
    assert "nothing could be run" in done.err


def test_a_minimal_norm_attack_under_a_union_is_skipped(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "lab",
        "from robustbench_lite import AttackSpec, hookimpl\n@hookimpl\ndef rbl_attacks():\n"
        "    yield AttackSpec(name='both', factory='lab:Both', norms=('linf', 'l2', 'union'), access='scores', "
        "goal='minimal-norm')\n"
        "from dataclasses import dataclass\n@dataclass(frozen=True, kw_only=True)\nclass Both:\n"
        "    def __call__(self, target, x, y, threat, rng):\n        return x\n",
    )
    request = options(attack="lab/both,toy/shift", threat="union:linf:0.1+l2:1")
    planned = invoke("--plugin", TOY, "plan", *request, "--json", plugin=file).json["cells"]
    reasons = {cell["attack"]: cell["reason"] for cell in planned}
    assert reasons["both"] == "both minimises one norm and a union has several: run it under linf"
    assert invoke("--plugin", TOY, "run", *options(attack="lab/both"), plugin=file).code == 0


def test_all_passes_over_what_cannot_be_used() -> None:
    planned = invoke("plan", *options(defense="all", attack="toy/shift"), "--json").json["cells"]
    state = {cell["defense"]: cell["state"] for cell in planned}
    assert state["mean"] == state["noisy-mean"] == "run"
    assert state["needs-training"] == state["not-a-module"] == state["pgd-at"] == "skip"


def test_a_failed_cell_is_shown_unranked_and_the_run_exits_with_1() -> None:
    done = invoke("run", *options(attack="toy/shift,toy/raises", defense="toy/mean"), code=1)
    assert "error: mean x raises (blobs, linf:0.08): ValueError: half way through" in done.err
    assert "1 of 2 cells failed; what succeeded is kept, and the same command tries them again" in done.err
    assert "| mean | raises: error: ValueError: half way through |" in " ".join(done.out.split())
    row = rows(invoke("report", "--json"))["mean"]
    assert row["rank"] is None
    assert row["worst_case"] is None
    assert row["attacks"]["raises"]["robust_accuracy"] is None
    assert row["attacks"]["shift"]["robust_accuracy"]["n"] == 32
    status = invoke("status")
    assert "half way through" in status.out
    assert "2 cells, 1 done" in status.out


def test_a_time_limit_costs_the_cell_in_this_process_too() -> None:
    done = invoke("run", *options(attack="toy/hangs,toy/shift", defense="toy/mean"), "--timeout", 0.5, code=1)
    assert "timeout: mean x hangs (blobs, linf:0.08): longer than 0.5 s" in done.err
    assert "raise --timeout" in done.err
    assert {cell["status"] for cell in invoke("status", "--json").json["cells"]} == {"done", "timeout"}


def test_examples_are_kept_where_asked(store: Path) -> None:
    invoke("run", *options(attack="toy/shift", defense="toy/mean"), "--keep-examples")
    (cell,) = Store.open(store, read_only=True).cells()
    kept, stored = cell.read_examples(0), cell.load()
    assert kept["x"].shape == kept["x_adv"].shape == (32, 1, 4, 4)
    assert (kept["index"] == stored.arrays["index"]).all()
    changed = abs(kept["x_adv"] - kept["x"]).max(axis=(1, 2, 3))
    assert changed == pytest.approx(stored.arrays["linf"], abs=1e-6)


def test_the_first_beaten_examples_are_kept_however_the_run_went(store: Path) -> None:
    request = ("run", *options(attack="toy/shift", defense="toy/mean", n=600, threat="linf:0.02"))
    invoke(*request)
    (cell,) = Store.open(store).cells()
    arrays = cell.load().arrays
    beaten = arrays["index"][arrays["success"]]
    in_the_first_shard = int(arrays["success"][:256].sum())
    wanted = in_the_first_shard + 3
    assert 0 < in_the_first_shard < wanted < len(beaten)
    (cell.folder / "done.json").unlink()
    (cell.folder / "shard-00001.safetensors").unlink()
    invoke(*request, "--keep-examples", wanted)  # the first shard is whole: its images are gone, and count all the same
    (kept,) = cell.examples()
    assert kept["index"].tolist() == beaten[in_the_first_shard:wanted].tolist()
    for shard in range(3):
        (cell.folder / f"shard-{shard:05d}.safetensors").unlink()
    (cell.folder / "done.json").unlink()
    invoke(*request, "--keep-examples", wanted)
    assert [i for kept in cell.examples() for i in kept["index"].tolist()] == beaten[:wanted].tolist()
    assert Store.open(store).check() == []


@pytest.mark.parametrize("given", ["some", "1.5"])
def test_a_number_of_examples_that_is_none_is_refused(given: str) -> None:
    assert "--keep-examples" in invoke("run", *options(), "--keep-examples", given, code=2).err


def test_a_page_is_written_with_images(store: Path) -> None:
    from tests.leaderboard.pages import Page

    invoke("run", *options(), "--keep-examples", 2)
    done = invoke("report", "--html", "out/report.html")
    assert done.out == ""
    assert "wrote out/report.html" in done.err
    page = Page(Path("out/report.html").read_text(encoding="utf-8"))
    assert "blobs, linf:0.08" in page.text
    assert "rbl --plugin" in page.text
    assert len(page.all("img")) == 12  # two defenses, two images each
    assert "mean" in invoke("report", "--html", "report.html", "--format", "csv").out
    assert "in the way" in invoke("report", "--html", "report.html/x.html", code=1).err


def test_on_a_terminal_there_is_a_bar_and_a_line_for_each_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    done = invoke("run", *options(attack="toy/shift,toy/raises", defense="toy/mean"), code=1)
    assert "running 2 cells, 2 shards" in screen.getvalue()
    assert "done    mean x shift (blobs, linf:0.08)" in screen.getvalue()
    assert "error   mean x raises (blobs, linf:0.08): ValueError: half way through" in screen.getvalue()
    assert "shards" in screen.getvalue()
    assert "[2/2]" not in done.err


def test_an_observer_that_raises_costs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "watch.py"
    file.write_text(
        "from robustbench_lite import hookimpl\n"
        "@hookimpl\ndef rbl_cell_finished(cell, status):\n    open('seen', 'a').write(status)\n    raise SystemExit(4)\n"
        "@hookimpl\ndef rbl_run_finished(store, counts):\n    open('seen', 'a').write(str(counts))\n    print(1 / 0)\n"
    )
    request = options(attack="toy/shift,toy/raises", defense="toy/mean")
    invoke("--plugin", TOY, "run", *request, "--json", plugin=file, code=1)
    seen = Path("seen").read_text()
    assert seen.count("done") == 2
    assert seen.count("error") == 2
    assert seen.endswith(("{'error': 1, 'done': 1}", "{'done': 1, 'error': 1}"))


# ------------------------------------------------------------------------------------------------------------ reports


def test_rendering_twice_gives_the_same_bytes_and_the_tables_name_their_command(tmp_path: Path) -> None:
    invoke("run", *options(), "--out", "a b")
    run = (tmp_path / "a b" / "blobs-linf-0.08.md").read_text()
    assert f"- made by: `rbl --plugin {TOY} run --dataset toy/blobs " in run
    assert "--out 'a b'`" in run
    for _ in range(2):
        invoke("report", "--out", "tables")
        found = {path.name: path.read_bytes() for path in Path("tables").iterdir()}
        assert sorted(found) == ["blobs-linf-0.08.csv", "blobs-linf-0.08.json", "blobs-linf-0.08.md"]
    assert b"report --out tables`" in found["blobs-linf-0.08.md"]
    assert found["blobs-linf-0.08.csv"] == (tmp_path / "a b" / "blobs-linf-0.08.csv").read_bytes()


def test_every_format_of_report() -> None:
    invoke("run", *options())
    markdown = invoke("report").out
    assert markdown.startswith("# blobs, linf:0.08\n")
    assert invoke("leaderboard").out == markdown.replace(" report`", " leaderboard`")
    assert invoke("report", "--format", "csv").out.startswith("rank,defense,id,")
    assert "blobs, linf:0.08: quick@2" in invoke("report", "--format", "terminal").out
    assert len(invoke("report", "--json").json) == 1


def test_minimal_norm_results_are_shown_at_any_radius() -> None:
    done = invoke("run", *options(attack="toy/minimal", threat="linf"))
    assert "no radius is known" in done.err
    robust = [
        rows(invoke("report", "--threat", f"linf:{eps}", "--json"))["mean"]["worst_case"]["value"] for eps in (0.001, 0.05, 0.2)
    ]
    assert robust[0] > robust[1] > robust[2]


def test_results_of_an_attacks_old_version_are_not_ranked(tmp_path: Path) -> None:
    request = options(defense="toy/mean,lab/grey", attack="toy/shift,lab/push")
    invoke("--plugin", TOY, "run", *request, plugin=plugin(tmp_path))
    new = plugin(tmp_path, version=2)
    planned = invoke("--plugin", TOY, "plan", *request, "--json", plugin=new).json
    assert {cell["reason"] for cell in planned["cells"] if cell["state"] == "run"} == {
        "stale: attack version changed since the stored result"
    }
    before = invoke("--plugin", TOY, "report", "--json", plugin=new)
    said = "2 stored results are out of date and not ranked: attack lab/push was of version 1, installed is version 2"
    assert said in before.err
    assert list(rows(before)["mean"]["attacks"]) == ["shift"]
    invoke("--plugin", TOY, "run", *request, plugin=new)
    after = rows(invoke("--plugin", TOY, "report", "--json", plugin=new))
    assert [row["rank"] for row in after.values()] == [1, 1]
    assert list(after["mean"]["attacks"]) == ["push", "shift"]


def test_results_of_a_defenses_old_version_are_shown_apart(tmp_path: Path) -> None:
    request = options(defense="toy/mean,lab/grey", attack="toy/shift")
    invoke("--plugin", TOY, "run", *request, plugin=plugin(tmp_path))
    new = plugin(tmp_path, defense_version=2)
    done = invoke("--plugin", TOY, "report", "--json", plugin=new)
    assert "1 stored result is out of date and not ranked: defense lab/grey was of version 1" in done.err
    assert {name: row["rank"] for name, row in rows(done).items()} == {"mean": 1, "grey": None}
    assert rows(done)["grey"]["not_ranked_because"] == [
        "out of date: defense lab/grey was of version 1, installed is version 2"
    ]
    hidden = invoke("--plugin", TOY, "report", "--hide-outdated", "--json", plugin=new)
    assert list(rows(hidden)) == ["mean"]


def test_a_parameter_that_is_new_makes_the_results_before_it_old(tmp_path: Path) -> None:
    request = options(defense="toy/mean,lab/grey", attack="lab/push")
    invoke("--plugin", TOY, "run", *request, plugin=plugin(tmp_path))
    new = plugin(tmp_path, parameters="other: int = 3")
    invoke("--plugin", TOY, "run", *request, plugin=new)
    done = invoke("--plugin", TOY, "report", "--json", plugin=new)
    assert "2 stored results are out of date and not ranked: attack push: parameters other changed since" in done.err
    assert [row["rank"] for row in rows(done).values()] == [1, 1]


def test_results_of_a_plugin_that_is_gone_are_shown() -> None:
    invoke("run", *options())
    done = invoke("report", "--json", plugin=None)
    assert [row["rank"] for row in rows(done).values()] == [1, 1]
    assert "left out" not in done.err


def test_results_with_other_weights_than_a_run_would_use_are_shown_apart_where_there_are_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    from robustbench_lite.weights import read_card

    monkeypatch.setenv("RBL_HOME", str(tmp_path / "home"))
    request = ("run", "--defense", "standard", "--attack", "fgsm", "--n", 16, "--executor", "inline")
    invoke(*request, plugin=None)
    shipped = next(Path(p) for p in [invoke("doctor", "--json", plugin=None).json["weights"]["rbl/standard on digits"][9:]])
    card = read_card(shipped)
    other = {name: value * 1.01 for name, value in load_file(shipped).items()}
    save_file(other, "mine.safetensors", metadata={"card": json.dumps(card)})
    done = invoke(*request, "--weights", "standard=mine.safetensors", "--json", plugin=None)
    assert list(rows(done)) == ["standard"]
    report = invoke("report", "--json", plugin=None)
    assert "1 stored result is out of date and not ranked: defense standard: weights changed since" in report.err
    current, old = rows(report).values()
    assert (current["rank"], current["defense"]["label"], old["rank"]) == (1, "standard", None)
    assert old["defense"]["weights"] == rows(done)["standard"]["defense"]["weights"] != current["defense"]["weights"]
    assert old["not_ranked_because"] == ["out of date: defense standard: weights changed since"]


def test_a_second_radius_keeps_the_name_of_the_first(tmp_path: Path) -> None:
    request = ("run", "--defense", "standard", "--attack", "fgsm", "--n", 16, "--executor", "inline", "--out", "tables")
    invoke(*request, plugin=None)
    first = (tmp_path / "tables" / "digits-linf.md").read_bytes()
    invoke(*request, "--threat", "linf:0.1", plugin=None)
    assert (tmp_path / "tables" / "digits-linf.md").read_bytes() == first
    assert "linf:0.1" in (tmp_path / "tables" / "digits-linf-0.1.md").read_text()
    invoke("report", "--out", "tables", plugin=None)
    assert sorted(path.name for path in (tmp_path / "tables").glob("*.md")) == ["digits-linf-0.1.md", "digits-linf.md"]


def test_an_attack_that_was_named_is_not_left_out_without_a_word() -> None:
    """Its column is missing from the table, and the worst case is over fewer attacks than were asked for."""
    named = invoke("run", *options(attack="toy/shift,rbl/ddn"))
    assert "ddn was skipped everywhere: norm linf not supported by ddn" in named.err
    assert "shift was skipped" not in named.err
    assert "was skipped" not in invoke("run", *options()).err
