from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from robustbench_lite import AttackSpec, hookimpl
from robustbench_lite.errors import AmbiguousName, PluginError, UnknownName, UsageError
from robustbench_lite.records import Plugin, Problem
from robustbench_lite.registry import Registry, StrictPluginError, load

Install = Callable[..., None]

HEAD = """
from robustbench_lite import AttackSpec, DatasetSpec, DefenseSpec, MetricSpec, ProtocolSpec, hookimpl
def attack(name, **more):
    usual = {"factory": f"{__name__}_factories:Attack", "norms": ("linf",), "access": "gradient"}
    return AttackSpec(**{"name": name, **usual, **more})
"""
GOOD = """
@hookimpl
def rbl_attacks():
    yield attack("good")
"""
FACTORIES = """
from dataclasses import dataclass
@dataclass(frozen=True, kw_only=True)
class Attack:
    steps: int = 10
    def __call__(self, target, x, y, threat, rng):
        return x
"""


def write_distribution(
    site: Path, name: str, sources: dict[str, str], entry_points: dict[str, str], version: str = "1.0"
) -> None:
    site.mkdir(exist_ok=True)
    for module, source in sources.items():
        path = site / f"{module}.py"
        path.write_text(textwrap.dedent(source))
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    listed = "".join(f"{key} = {value}\n" for key, value in entry_points.items())
    (info / "entry_points.txt").write_text(f"[robustbench_lite]\n{listed}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("RBL_STRICT_PLUGINS", raising=False)
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Install:
    """Install a distribution ``name`` with one plugin module (namespace ``name``) and a factory module."""

    def installed(source: str, *, name: str = "rbltest", namespace: str = "", version: str = "1.0", **modules: str) -> None:
        module = name.replace("-", "_")
        sources = {module: HEAD + textwrap.dedent(source), f"{module}_factories": FACTORIES, **modules}
        write_distribution(site, name, sources, {namespace or name: module}, version)
        importlib.invalidate_caches()

    return installed


def of(registry: Registry, distribution: str = "rbltest") -> Plugin:
    (found,) = (p for p in registry.plugins if p.distribution == distribution)
    return found


def ids(registry: Registry, kind: str = "attack", distribution: str = "rbltest") -> list[str]:
    return [e.id for e in registry.entries(kind) if e.distribution == distribution]


def only(registry: Registry, distribution: str = "rbltest") -> Problem:
    """The one problem of a distribution; it names everything that its reader needs."""
    (problem,) = of(registry, distribution).problems
    assert (problem.distribution, problem.version) == (distribution, "1.0")
    assert problem in registry.problems
    assert problem.cause
    assert problem.fix
    line = str(problem)
    assert "\n" not in line
    for part in (distribution, "1.0", problem.fix):
        assert part in line
    return problem


# ------------------------------------------------------------------------------------------------------------ sound plugins


def test_a_sound_plugin(install: Install) -> None:
    install(GOOD)
    registry = load()
    plugin = of(registry)
    assert (plugin.version, plugin.namespace, plugin.origin) == ("1.0", "rbltest", "rbltest")
    assert plugin.counts == {"attack": 1}
    assert plugin.problems == []
    entry = registry.get("attack", "rbltest/good")
    assert (entry.kind, entry.module, entry.distribution, entry.version) == ("attack", "rbltest", "rbltest", "1.0")
    assert registry.factory(entry)().steps == 10
    described = json.loads(json.dumps(entry.to_json()))
    assert described["spec"]["norms"] == ["linf"]
    assert described["id"] == "rbltest/good"
    assert json.loads(json.dumps(plugin.to_json()))["counts"] == {"attack": 1}


def test_several_distributions_share_a_namespace(install: Install) -> None:
    install(GOOD, name="rbltest-a", namespace="shared")
    install(GOOD.replace("good", "other"), name="rbltest-b", namespace="shared")
    registry = load()
    assert [registry.get("attack", f"shared/{n}").distribution for n in ("good", "other")] == ["rbltest-a", "rbltest-b"]
    assert not [p for p in registry.problems if p.distribution.startswith("rbltest")]


def test_every_kind_in_one_plugin_with_one_name(install: Install) -> None:
    install(
        """
        where = "rbltest_factories:Attack"
        @hookimpl
        def rbl_attacks(): return [attack("x")]
        @hookimpl
        def rbl_defenses(): return (DefenseSpec(name="x", factory=where),)
        @hookimpl
        def rbl_datasets(): return {DatasetSpec(name="x", factory=where)}
        @hookimpl
        def rbl_metrics(): return iter([MetricSpec(name="x", factory=where, scope="cell", direction="higher")])
        @hookimpl(specname="rbl_protocols")
        def my_protocols(): yield ProtocolSpec(name="x", factory=where)
        """
    )
    registry = load()
    assert of(registry).problems == []
    assert of(registry).counts == {"attack": 1, "defense": 1, "dataset": 1, "metric": 1, "protocol": 1}
    for kind in of(registry).counts:
        assert registry.get(kind, "rbltest/x").kind == kind


def test_lazy_attributes_of_a_plugin_stay_unloaded(install: Install) -> None:
    install(
        GOOD
        + """
loaded = []
def __dir__():
    return ["rbl_attacks", "rbl_heavy"]
def __getattr__(name):
    loaded.append(name)
    raise AttributeError(name)
"""
    )
    registry = load()
    assert ids(registry) == ["rbltest/good"]
    assert "rbl_heavy" not in sys.modules["rbltest"].loaded


def test_an_object_as_plugin() -> None:
    class Plug:
        @property
        def rbl_metrics(self) -> object:
            raise SystemExit

        @hookimpl
        def rbl_attacks(self) -> list[AttackSpec]:
            return [AttackSpec(name="a", factory="m:A", norms=("l2",), access="none")]

    registry = Registry()
    record = registry.add(Plug(), namespace="mine", distribution="d")
    assert record.problems == []
    assert [e.id for e in registry.entries("attack")] == ["mine/a"]


# ----------------------------------------------------------------------------------------------------------- broken plugins


@pytest.mark.parametrize(
    ("source", "cause", "fix"),
    [
        ("import no_such_module_at_all", "No module named 'no_such_module_at_all'", "install 'no_such_module_at_all'"),
        ("from robustbench_lite import NoSuchName", "cannot import name 'NoSuchName'", "go together"),
        ("raise SystemExit(3)", "sys.exit(3)", "remove the exit"),
        ("import sys; sys.exit()", "sys.exit()", "remove the exit"),
        ("1/0", "ZeroDivisionError", "correct rbltest"),
        ("def (", "SyntaxError", "correct rbltest"),
        ("raise GeneratorExit", "GeneratorExit", "correct rbltest"),
        ("raise StopIteration", "StopIteration", "correct rbltest"),
        ("class E(Exception):\n    def __str__(self): 1/0\nraise E", "E", "correct rbltest"),
    ],
)
def test_plugins_that_break_at_import(install: Install, source: str, cause: str, fix: str) -> None:
    install(source)
    install(GOOD, name="rbltest-neighbour")
    registry = load()
    problem = only(registry)
    assert "cannot be imported" in problem.cause
    assert cause in problem.cause
    assert fix in problem.fix
    assert "rbltest.py" in problem.cause or "rbltest" in problem.fix
    assert of(registry).counts == {}
    assert ids(registry, distribution="rbltest-neighbour") == ["rbltest-neighbour/good"]


def test_the_place_of_an_exception_is_named(install: Install) -> None:
    install("def f():\n    1/0\nf()")
    line = (HEAD + "def f():\n    1/0\n").count("\n")
    assert f"rbltest.py, line {line})" in only(load()).cause


def test_keyboard_interrupt_passes(install: Install) -> None:
    install("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load()


def test_an_entry_point_to_a_missing_module(site: Path) -> None:
    write_distribution(site, "rbltest", {}, {"rbltest": "rbltest_gone"})
    problem = only(load())
    assert "No module named 'rbltest_gone'" in problem.cause
    assert "reinstall rbltest" in problem.fix


def test_an_entry_point_to_a_missing_attribute(site: Path) -> None:
    write_distribution(site, "rbltest", {"rbltest": HEAD + GOOD}, {"rbltest": "rbltest:plugin"})
    assert "no attribute 'plugin'" in only(load()).cause


@pytest.mark.parametrize("raised", ["RuntimeError('boom')", "SystemExit(1)", "KeyError('boom')", "BaseException('boom')"])
def test_an_exception_in_a_hook(install: Install, raised: str) -> None:
    install(
        f"""
        @hookimpl
        def rbl_attacks():
            raise {raised}
        @hookimpl
        def rbl_metrics():
            return [MetricSpec(name="m", factory="a:B", scope="cell", direction="higher")]
        """
    )
    registry = load()
    problem = only(registry)
    assert problem.object == "rbl_attacks"
    assert "it failed" in problem.cause
    assert of(registry).counts == {"metric": 1}


def test_specs_before_an_exception_are_kept(install: Install) -> None:
    install(
        """
        @hookimpl
        def rbl_attacks():
            yield attack("one")
            yield attack("two")
            raise RuntimeError("boom")
            yield attack("three")
        """
    )
    registry = load()
    assert "RuntimeError: boom" in only(registry).cause
    assert "the 2 before it are kept" in only(registry).cause
    assert ids(registry) == ["rbltest/one", "rbltest/two"]


def test_a_field_that_specs_do_not_have_costs_only_what_follows(install: Install) -> None:
    install('@hookimpl\ndef rbl_attacks():\n    yield attack("one")\n    yield attack("two", colour="red")')
    registry = load()
    assert "unexpected keyword argument 'colour'" in only(registry).cause
    assert ids(registry) == ["rbltest/one"]


def test_a_misspelt_hook(install: Install) -> None:
    install(GOOD + "@hookimpl\ndef rbl_atacks():\n    return []")
    registry = load()
    problem = only(registry)
    assert problem.object == "rbl_atacks"
    assert "did you mean 'rbl_attacks'" in problem.cause
    assert ids(registry) == ["rbltest/good"]


def test_a_hook_without_its_marker(install: Install) -> None:
    install(GOOD.replace("@hookimpl", ""))
    registry = load()
    assert "not marked" in only(registry).cause
    assert "@hookimpl" in only(registry).fix
    assert ids(registry) == []


@pytest.mark.parametrize("signature", ["config", "config, *, x=1", "*, config", "self"])
def test_a_wrong_signature(install: Install, signature: str) -> None:
    install(
        GOOD + f"@hookimpl\ndef rbl_metrics({signature}):\n    return []\n@hookimpl\ndef rbl_cell_finished(cell, colour): ..."
    )
    registry = load()
    problems = {p.object: p for p in of(registry).problems}
    assert set(problems) == {"rbl_metrics", "rbl_cell_finished"}
    assert "colour" in problems["rbl_cell_finished"].cause
    assert "cell, status" in problems["rbl_cell_finished"].fix
    assert ids(registry) == ["rbltest/good"]


def test_hook_wrappers_are_refused(install: Install) -> None:
    install(GOOD + "@hookimpl(wrapper=True)\ndef rbl_metrics():\n    return (yield)")
    registry = load()
    assert "wrappers" in only(registry).cause
    assert ids(registry) == ["rbltest/good"]


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("pass", "returned nothing"),
        ("return 'pgd'", "type str"),
        ("return attack('one')", "type AttackSpec"),
        ("return 3", "type int"),
        ("return {'one': attack('one')}", "type dict"),
    ],
)
def test_a_hook_that_returns_no_iterable(install: Install, body: str, cause: str) -> None:
    install(f"@hookimpl\ndef rbl_attacks():\n    {body}")
    assert cause in only(load()).cause


@pytest.mark.filterwarnings("error")
def test_a_coroutine_as_hook(install: Install) -> None:
    install("@hookimpl\nasync def rbl_attacks():\n    return []")
    assert "type coroutine" in only(load()).cause


def test_a_hook_that_never_ends(install: Install) -> None:
    install("import itertools\n@hookimpl\ndef rbl_attacks():\n    for i in itertools.count():\n        yield attack(f'a{i}')")
    registry = load()
    assert "more than" in only(registry).cause
    assert registry.get("attack", "rbltest/a0")


def test_a_spec_of_the_wrong_type(install: Install) -> None:
    install(
        """
        @hookimpl
        def rbl_attacks():
            yield DefenseSpec(name="d", factory="a:B")
            yield "pgd"
            yield AttackSpec
            yield attack("good")
        """
    )
    registry = load()
    causes = [str(p) for p in of(registry).problems]
    assert ["DefenseSpec is no AttackSpec" in c for c in causes] == [True, False, False]
    assert "yield it from rbl_defenses" in causes[0]
    assert "type str" in causes[1]
    assert ids(registry) == ["rbltest/good"]
    assert ids(registry, "defense") == []


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        ({"norms": ("linf", "l3")}, "unknown norm 'l3'; known: linf"),
        ({"norms": 5}, "norms must be a tuple"),
        ({"name": "My Attack"}, "lower-case"),
        ({"name": 5}, "lower-case"),
        ({"factory": "rbltest.fmn.FMN"}, "package.module:attribute"),
        ({"access": "telepathy"}, "unknown access 'telepathy'"),
        ({"norms": ([],)}, "unknown norm"),
    ],
)
def test_a_spec_with_a_wrong_field(install: Install, more: dict[str, object], cause: str) -> None:
    install(f"@hookimpl\ndef rbl_attacks():\n    yield attack('good')\n    yield attack(**{ {'name': 'bad', **more}!r})")
    registry = load()
    assert cause in only(registry).cause
    assert "AttackSpec" in only(registry).fix
    assert ids(registry) == ["rbltest/good"]


def test_a_spec_that_cannot_even_be_checked(install: Install) -> None:
    install(
        """
        class Hostile(AttackSpec):
            def problems(self):
                raise SystemExit("no")
        @hookimpl
        def rbl_attacks():
            yield Hostile(name="bad", factory="a:B", norms=("l2",), access="none")
            yield attack("good")
        """
    )
    registry = load()
    assert "Hostile cannot be checked" in only(registry).cause
    assert ids(registry) == ["rbltest/good"]


def test_a_refused_spec_is_explained_when_it_is_asked_for(install: Install) -> None:
    install("@hookimpl\ndef rbl_attacks():\n    yield attack('rbltest-bad', norms=('l3',))")
    registry = load()
    for name in ("rbltest-bad", "rbltest/rbltest-bad"):
        with pytest.raises(UnknownName, match="was refused: unknown norm 'l3'"):
            registry.get("attack", name)
    with pytest.raises(UnknownName, match="unknown defense"):
        registry.get("defense", "rbltest-bad")


def test_an_api_that_is_too_new(install: Install) -> None:
    install("@hookimpl\ndef rbl_attacks():\n    yield attack('bad', api=99, norms=('l3',))\n    yield attack('good')")
    registry = load()
    assert "plugin API 99" in only(registry).cause
    assert only(registry).fix == "upgrade robustbench-lite"
    assert ids(registry) == ["rbltest/good"]


def test_an_api_that_is_too_old(install: Install) -> None:
    install("@hookimpl\ndef rbl_attacks():\n    yield attack('bad', api=0)")
    assert only(load()).fix == "upgrade rbltest"


def test_a_duplicate_id_in_one_distribution(install: Install) -> None:
    install("@hookimpl\ndef rbl_attacks():\n    yield attack('x', summary='first')\n    yield attack('x', summary='second')")
    registry = load()
    problem = only(registry)
    assert "already registered by rbltest 1.0" in problem.cause
    assert problem.object == "rbltest/x"
    assert registry.get("attack", "rbltest/x").spec.summary == "first"
    assert of(registry).counts == {"attack": 1}


def test_a_duplicate_id_across_distributions(install: Install) -> None:
    install(GOOD, name="rbltest-b", namespace="shared")
    install(GOOD, name="rbltest-a", namespace="shared")
    registry = load()
    problem = only(registry, "rbltest-b")
    assert "rbltest-a 1.0" in problem.cause
    assert "uninstall rbltest-b or rbltest-a" in problem.fix
    assert of(registry, "rbltest-a").problems == []
    assert registry.get("attack", "shared/good").distribution == "rbltest-a"


def test_a_namespace_that_is_no_name(install: Install) -> None:
    install(GOOD, namespace="My_Lab")
    problem = only(load())
    assert "namespace 'My_Lab'" in problem.cause
    assert "'my-lab'" in problem.fix


def test_a_plugin_that_brings_nothing(install: Install) -> None:
    install("x = 1")
    problem = only(load())
    assert problem.severity == "warning"
    assert "rbl_attacks" in problem.fix


def test_damaged_metadata_of_a_plugin(site: Path, install: Install) -> None:
    install(GOOD)
    for name, text in {
        "rbltest_x-1.0": "[robustbench_lite]\nno equals sign\n",
        "nameless-1.0": "[robustbench_lite]\na=b\n",
    }.items():
        (site / f"{name}.dist-info").mkdir()
        (site / f"{name}.dist-info/entry_points.txt").write_text(text)
    (site / "rbltest_x-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: rbltest-x\nVersion: 1.0\n")
    (site / "unreadable-1.0.dist-info").mkdir()
    (site / "unreadable-1.0.dist-info/entry_points.txt").write_bytes(b"\xff\xfe\x00")
    registry = load()
    found = [p for p in registry.problems if str(site) in p.cause]
    assert sorted(p.distribution for p in found if p.severity == "error") == ["?", "rbltest-x"]
    assert [p.distribution for p in found if p.severity == "warning"] == ["?"]
    assert ids(registry) == ["rbltest/good"]


def test_only_the_first_of_two_copies_counts(
    site: Path, tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_distribution(tmp_path / "stale", "Rbltest", {}, {"rbltest": "rbltest_gone"}, version="0.9")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "stale")])
    install(GOOD)
    registry = load()
    assert of(registry).version == "1.0"
    assert not [p for p in registry.plugins if p.version == "0.9"]


# ----------------------------------------------------------------------------------------------------------------- printing


@pytest.mark.parametrize(
    "statement",
    [
        "print('hello')",
        "import sys; sys.stdout.write('hello\\n')",
        "import sys; sys.stdout.reconfigure(line_buffering=True); print('hello')",
        "import sys; sys.stdout.buffer.write(b'hello\\n')",
        "import sys; sys.stdout.writelines(['hello'])",
    ],
)
def test_printing_at_import_leaves_stdout_clean(install: Install, statement: str, capsys: pytest.CaptureFixture[str]) -> None:
    install(f"{statement}\n{GOOD}")
    registry = load()
    assert only(registry).severity == "warning"
    assert "prints to stdout" in only(registry).cause
    assert ids(registry) == ["rbltest/good"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello" in err


def test_printing_in_hooks_specs_and_factories(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(
        """
        class Loud(AttackSpec):
            def problems(self):
                print("hello from a spec")
                return []
        @hookimpl
        def rbl_attacks():
            print("hello from a hook")
            yield Loud(name="loud", factory="rbltest_loud:A", norms=("l2",), access="none")
        @hookimpl
        def rbl_cell_finished():
            print("hello from an observer")
        """,
        rbltest_loud="print('hello from a factory')\nA = 1",
    )
    registry = load()
    assert "prints to stdout" in only(registry).cause
    assert only(registry).object == "rbl_attacks"
    registry.factory(registry.get("attack", "loud"))
    registry.notify("rbl_cell_finished", cell={}, status="done")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("hello") == 4


def test_a_handler_that_keeps_stdout_still_works(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("import logging, sys\nhandler = logging.StreamHandler(sys.stdout)\nsys.stdout.close()\n" + GOOD)
    assert of(load()).problems == []
    print("stdout is open")
    sys.modules["rbltest"].handler.emit(logging.LogRecord("x", 40, "f", 1, "said later", None, None))
    out, err = capsys.readouterr()
    assert out == "stdout is open\n"
    assert "said later" in err


# ---------------------------------------------------------------------------------------------------- in a process of its own

REPORT = """
import json, sys
{before}
from robustbench_lite.registry import load
registry = load()
mine = [p for p in registry.problems if p.distribution.startswith("rbltest")]
print(json.dumps({{"problems": [p.to_json() for p in mine], "torch": "torch" in sys.modules}}))
"""


def report(site: Path, before: str = "", **environment: str) -> SimpleNamespace:
    done = subprocess.run(
        [sys.executable, "-c", REPORT.format(before=before)],
        env={**os.environ, "PYTHONPATH": str(site), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return SimpleNamespace(err=done.stderr, **json.loads(done.stdout))


def test_json_stays_whole_and_the_command_goes_on(site: Path, install: Install) -> None:
    install("print('hello')\n" + GOOD)
    install("import sys\nprint('{')\nsys.exit(3)", name="rbltest-exit")
    found = report(site)
    assert [p["severity"] for p in found.problems] == ["warning", "warning", "error"]
    assert "hello" in found.err
    assert not found.torch


@pytest.mark.parametrize("before", ["", "import torch"])
def test_importing_torch_is_reported_as_slow(site: Path, install: Install, before: str) -> None:
    (site / "torch.py").write_text("nn = 1")  # what it would be is slow to import; here only its name matters
    install("import rbltest_heavy\n" + GOOD, rbltest_heavy="import torch")
    install(GOOD, name="rbltest-light")
    write_distribution(site, "rbltest-own", {"rbltest_own": "import torch\n" + HEAD + GOOD}, {"rbltest-own": "rbltest_own"})
    found = report(site, before)
    slow = {p["distribution"]: p for p in found.problems}
    assert set(slow) == ({"rbltest", "rbltest-own"} if not before else {"rbltest-own"})
    for problem in slow.values():
        assert problem["severity"] == "warning"
        assert "imports torch" in problem["cause"]


# ------------------------------------------------------------------------------------------------------------------- strict


def test_strict_raises_with_everything_that_is_wrong(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("1/0")
    install("print('hello')\n" + GOOD + "@hookimpl\ndef rbl_atacks(): ...", name="rbltest-b")
    monkeypatch.setenv("RBL_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError) as caught:
        load()
    assert isinstance(caught.value, StrictPluginError)
    for words in ("ZeroDivisionError", "rbl_atacks", "rbltest-b 1.0", "RBL_STRICT_PLUGINS"):
        assert words in caught.value.message
    assert "prints to stdout" not in caught.value.message
    assert ids(caught.value.registry, distribution="rbltest-b") == ["rbltest-b/good"]


@pytest.mark.parametrize(("value", "raises"), [("1", True), ("0", False), ("", False)])
def test_strict_values(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch, value: str, raises: bool) -> None:
    file = tmp_path / "rbltest_file.py"
    file.write_text("1/0")
    monkeypatch.setenv("RBL_STRICT_PLUGINS", value)
    try:
        load([file], entry_points=False)
    except StrictPluginError:
        assert raises
    else:
        assert not raises


def test_strict_lets_warnings_pass(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rbltest_file.py"
    file.write_text("print('hello')")
    monkeypatch.setenv("RBL_STRICT_PLUGINS", "1")
    assert {p.severity for p in load([file], entry_points=False).problems} == {"warning"}


# ------------------------------------------------------------------------------------------------------------------ look-up


def registry_of(*names: tuple[str, str]) -> Registry:
    """Attacks by (namespace, name), each from a distribution called after its namespace."""
    registry = Registry()
    for namespace, name in names:
        spec = AttackSpec(name=name, factory="a:B", norms=("l2",), access="none")
        registry.add(
            SimpleNamespace(rbl_attacks=hookimpl(lambda s=spec: [s])), namespace=namespace, distribution=f"dist-{namespace}"
        )
    assert registry.problems == []
    return registry


def test_ids_and_short_names() -> None:
    registry = registry_of(("b", "pgd"), ("a", "fgsm"), ("a", "cw"))
    assert [e.id for e in registry.entries("attack")] == ["a/cw", "a/fgsm", "b/pgd"]
    assert registry.get("attack", "pgd").id == "b/pgd"
    assert registry.get("attack", "b/pgd").id == "b/pgd"
    assert registry.entries("metric") == []


def test_an_ambiguous_short_name() -> None:
    registry = registry_of(("b", "pgd"), ("a", "pgd"))
    with pytest.raises(AmbiguousName, match=r"a/pgd \(of dist-a\), b/pgd \(of dist-b\)"):
        registry.get("attack", "pgd")
    assert registry.get("attack", "b/pgd").distribution == "dist-b"


def test_an_unknown_name() -> None:
    registry = registry_of(("a", "pgd"), ("a", "square"))
    with pytest.raises(UnknownName, match="unknown attack 'sqare'; did you mean 'square'") as caught:
        registry.get("attack", "sqare")
    assert caught.value.hint == "rbl list attacks"
    with pytest.raises(UnknownName, match="did you mean 'a/pgd'"):
        registry.get("attack", "b/pgd")
    with pytest.raises(UnknownName, match="unknown defense 'pgd'"):
        registry.get("defense", "pgd")
    with pytest.raises(UnknownName, match="unknown kind 'attacks'; did you mean 'attack'"):
        registry.entries("attacks")


def test_an_unknown_name_points_at_broken_plugins(install: Install) -> None:
    install("1/0")
    with pytest.raises(UnknownName) as caught:
        load().get("attack", "zzzzzz")
    assert "rbl plugins" in caught.value.hint


# --------------------------------------------------------------------------------------------------------------- observers


def test_observers_are_isolated_and_take_what_they_want(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    observer = """
    seen = []
    @hookimpl
    def rbl_run_finished({arguments}):
        seen.append({arguments})
        {then}
    """
    install(observer.format(arguments="counts", then="raise SystemExit(3)"), name="rbltest-a")
    install(observer.format(arguments="store", then="pass"), name="rbltest-b")
    registry = load()
    with caplog.at_level(logging.ERROR):
        registry.notify("rbl_run_finished", store="folder", counts={"done": 3})
    assert sys.modules["rbltest_a"].seen == [{"done": 3}]
    assert sys.modules["rbltest_b"].seen == ["folder"]
    (record,) = [r for r in caplog.records if "rbltest" in r.getMessage()]
    assert "rbl_run_finished of rbltest-a 1.0" in record.getMessage()
    assert "sys.exit(3)" in record.getMessage()


# ---------------------------------------------------------------------------------------------------------------- factories


@pytest.mark.parametrize(
    ("factory", "source", "cause", "fix"),
    [
        ("rbltest_gone:A", "", "No module named 'rbltest_gone'", "there is no module 'rbltest_gone'"),
        ("rbltest_f:Atack", "class Attack: ...", "no attribute 'Atack'", "did you mean 'Attack'"),
        ("rbltest_f:A", "import no_such_module_at_all", "no_such_module_at_all", "install 'no_such_module_at_all'"),
        ("rbltest_f:A", "raise SystemExit(3)", "sys.exit(3)", "remove the exit"),
        ("rbltest_f:A", "A = undefined", "NameError", "correct rbltest_f"),
        (
            "rbltest_f:A",
            "from robustbench_lite import MissingData\nraise MissingData('no data', hint='get it')",
            "no data",
            "get it",
        ),
    ],
)
def test_a_factory_that_cannot_be_loaded(install: Install, factory: str, source: str, cause: str, fix: str) -> None:
    install(f"@hookimpl\ndef rbl_attacks():\n    yield attack('rbltest-x', factory={factory!r})", rbltest_f=source)
    registry = load()
    assert of(registry).problems == []
    entry = registry.get("attack", "rbltest-x")
    with pytest.raises(PluginError) as caught:
        registry.factory(entry)
    for words in ("rbltest 1.0", factory, cause):
        assert words in caught.value.message
    assert fix in caught.value.hint
    (problem,) = [p for p in registry.verify() if p.distribution == "rbltest"]
    assert (problem.object, problem.version, problem.severity) == ("rbltest/rbltest-x", "1.0", "error")
    assert cause in problem.cause
    assert fix in problem.fix
    assert of(registry).problems == []


VERIFIED = """
from dataclasses import dataclass
from pathlib import Path
class Odd: ...
class NoDataclass:
    def __call__(self): ...
@dataclass
class Sound:
    steps: int = 3
    def __call__(self): ...
@dataclass
class UnknownType:
    thing: Odd
    def __call__(self): ...
@dataclass
class NotCallable:
    steps: int = 3
def function(cell, *, level: float = 0.95): ...
def untyped(cell, *, level): ...
text = "name: x"
missing = Path("/nowhere/x.yaml")
"""


def test_verify(install: Install) -> None:
    install(
        """
        f = "rbltest_f:"
        @hookimpl
        def rbl_attacks():
            for name in ("Sound", "NoDataclass", "UnknownType", "NotCallable"):
                yield attack(name.lower(), factory=f + name)
        @hookimpl
        def rbl_metrics():
            for name in ("function", "untyped"):
                yield MetricSpec(name=name, factory=f + name, scope="cell", direction="higher")
        @hookimpl
        def rbl_protocols():
            for name in ("text", "missing", "Sound"):
                yield ProtocolSpec(name=name.lower(), factory=f + name)
        @hookimpl
        def rbl_defenses():
            yield DefenseSpec(name="wrapper", kind="wrapper", factory=f + "Sound")
        """,
        rbltest_f=VERIFIED,
    )
    registry = load()
    assert of(registry).problems == []
    found = {(p.object.partition("/")[2], p.cause) for p in registry.verify() if p.distribution == "rbltest"}
    said = dict(found)
    assert len(found) == len(said) == 7
    for name, words in {
        "nodataclass": "without @dataclass",
        "unknowntype": "'thing'",
        "notcallable": "cannot be called",
        "untyped": "'level'",
        "missing": "does not exist",
        "sound": "not YAML text",
        "wrapper": "without a parameter 'base'",
    }.items():
        assert words in said[name]


def test_specs_that_nothing_is_wrong_with_verify_clean(install: Install) -> None:
    install(GOOD)
    assert not [p for p in load().verify() if p.distribution == "rbltest"]


# ---------------------------------------------------------------------------------------------------------- one-file plugins

FILE = """
from dataclasses import dataclass
from robustbench_lite import AttackSpec, hookimpl

@hookimpl
def rbl_attacks():
    yield AttackSpec(name="mine", factory="rbltest_file:Attack", norms=("linf",), access="gradient")

@dataclass(frozen=True, kw_only=True)
class Attack:
    steps: int = 10
    def __call__(self, target, x, y, threat, rng): return x
"""


def test_a_file(tmp_path: Path, site: Path) -> None:
    file = tmp_path / "rbltest_file.py"
    file.write_text(FILE)
    registry = load([file, tmp_path / "." / "rbltest_file.py"], entry_points=False)
    assert registry.problems == []
    (plugin,) = registry.plugins
    assert (plugin.namespace, plugin.distribution, plugin.origin) == ("rbltest-file", "rbltest_file.py", str(file.resolve()))
    entry = registry.get("attack", "rbltest-file/mine")
    assert registry.factory(entry)(steps=3).steps == 3
    assert registry.verify() == []
    again = load([file], entry_points=False)
    assert again.problems == []
    assert again.factory(again.get("attack", "mine")) is registry.factory(entry)


@pytest.mark.parametrize("stem", ["json", "sys", "pytest", "torch", "robustbench-lite"])
def test_a_file_does_not_hide_a_module(tmp_path: Path, site: Path, stem: str) -> None:
    before = sys.modules.get(stem)
    file = tmp_path / f"{stem}.py"
    file.write_text(FILE)
    registry = load([file], entry_points=False)
    (problem,) = registry.problems
    assert "would hide the module" in problem.cause
    assert f"rename {stem}.py" in problem.fix
    assert sys.modules.get(stem) is before


def test_a_file_on_the_path_of_imports_does_not_hide_itself(site: Path) -> None:
    file = site / "rbltest_file.py"
    file.write_text(FILE)
    assert load([file], entry_points=False).problems == []


def test_a_broken_file_leaves_nothing_behind(tmp_path: Path, site: Path) -> None:
    file = tmp_path / "rbltest_file.py"
    file.write_text(FILE + "1/0")
    (problem,) = load([file], entry_points=False).problems
    assert "ZeroDivisionError" in problem.cause
    assert "run without rbltest_file.py" in problem.fix
    assert "rbltest_file" not in sys.modules
    file.write_text(FILE)
    assert load([file], entry_points=False).problems == []


@pytest.mark.parametrize("name", ["missing.py", "plugin.txt", "9lives.py", "_.py", "a b.py"])
def test_a_file_that_is_no_plugin(tmp_path: Path, name: str) -> None:
    if name != "missing.py":
        (tmp_path / name).write_text(FILE)
    with pytest.raises(UsageError):
        load([tmp_path / name], entry_points=False)
