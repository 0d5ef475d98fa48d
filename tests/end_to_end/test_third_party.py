"""A stranger's distribution: built as a wheel, installed in a fresh environment, found, checked, run and ranked."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "rbl-example"


def run(*arguments: object, **environment: str) -> str:
    """Standard output of a command that succeeds, without a network."""
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RBL_STORE", "RBL_HOME")}
    done = subprocess.run(
        list(map(str, arguments)),
        capture_output=True,
        text=True,
        env=inherited | offline | environment,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__", "dist", "build", ".pytest_cache"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel in it; everything else is this environment's."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    interpreter = folder / "venv" / "bin" / "python"
    own = Path(run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    shared = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()])
    # addsitedir, so that the .pth files of editable installations are read, too.
    (own / "shared.pth").write_text("".join(f"import site; site.addsitedir({place!r})\n" for place in shared))
    run(sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-deps", "--no-index", wheel)
    return interpreter


@pytest.fixture(scope="module")
def rbl(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("work")

    def call(*arguments: object) -> str:
        home = {"RBL_STORE": str(folder / "store"), "RBL_HOME": str(folder / "home")}
        return run(python, "-m", "robustbench_lite", *arguments, **home)

    return call


def test_the_wheel_holds_the_package_and_its_entry_point(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert {"rbl_example/__init__.py", "rbl_example/corner_walk.py", "rbl_example/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith("tests")]
    assert points.split() == ["[robustbench_lite]", "example", "=", "rbl_example"]


def test_the_example_comes_from_its_wheel(python: Path) -> None:
    where = run(python, "-c", "import rbl_example; print(rbl_example.__file__)")
    assert Path(where.strip()).is_relative_to(python.parents[1])


def test_it_is_found_and_nothing_is_wrong_with_it(rbl: Any) -> None:
    found = {entry["id"]: entry for entry in json.loads(rbl("list", "--json"))}
    assert {"example/corner-walk", "example/feature-squeezing"} <= found.keys()
    assert found["example/corner-walk"]["distribution"] == "rbl-example"
    plugins = json.loads(rbl("plugins", "--verify", "--json"))
    assert not [problem for problem in plugins["problems"] if problem["plugin"] == "example"]


def test_it_passes_the_conformance_suite(rbl: Any) -> None:
    checked = json.loads(rbl("check", "example", "--json"))
    assert {each["id"] for each in checked["objects"]} == {"example/corner-walk", "example/feature-squeezing"}
    assert all(each["counts"]["failed"] == 0 and each["counts"]["passed"] >= 19 for each in checked["objects"])


def test_its_own_tests_pass_where_it_is_installed(python: Path, wheel: Path) -> None:
    tests = wheel.parent / "source" / "tests"
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tests, "-k", "not CornerWalk", tests)
    assert " passed" in said


def test_it_is_run_and_ranked_with_the_others(rbl: Any, tmp_path: Path) -> None:
    asked = (
        "--defense",
        "standard,example/feature-squeezing",
        "--attack",
        "fgsm,corner-walk[queries=100]",
        "--dataset",
        "digits",
    )
    rbl("run", *asked, "--n", 64, "--executor", "inline", "--out", tmp_path / "out")
    written = "\n".join(path.read_text() for path in (tmp_path / "out").rglob("*.md"))
    shown = rbl("report")
    for table in (written, shown):
        assert "feature-squeezing" in table
        assert "corner-walk" in table
        assert "standard" in table
    status = json.loads(rbl("status", "--json"))
    cells = {(cell["defense"], cell["attack"]): cell["status"] for cell in status["cells"]}
    assert len(cells) == 4
    assert set(cells.values()) == {"done"}
