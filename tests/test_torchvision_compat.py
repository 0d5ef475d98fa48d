"""Importing torchvision, in processes of their own: a failed import leaves traces that no test should share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that looks for modules in ``path`` first."""
    places = [str(p) for p in path] + [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def impostor(tmp_path: Path) -> Path:
    """A folder with a torchvision of its own, whose ``__init__`` a test writes."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "part.py").write_text("loads = []\n")
    return package / "__init__.py"


def test_the_installed_torchvision_is_imported_whether_or_not_it_matches_torch() -> None:
    done = python(
        "import sys, torch\n"
        "from robustbench_lite.torchvision_compat import import_torchvision\n"
        "torchvision = import_torchvision()\n"
        "assert import_torchvision() is torchvision is sys.modules['torchvision']\n"
        "from torchvision.transforms import v2\n"
        "assert v2.functional.horizontal_flip(torch.eye(3)[None])[0].tolist() == torch.eye(3).flip(1).tolist()\n"
        "model = torchvision.models.resnet18(num_classes=5).eval()\n"
        "assert model(torch.rand(1, 3, 32, 32)).shape == (1, 5)\n"
    )
    assert done.returncode == 0, done.stderr


def test_undeclared_operators_are_declared_and_the_import_starts_afresh(impostor: Path) -> None:
    impostor.write_text(
        "import torch\n"
        "from torchvision import part\n"
        "part.loads.append(1)\n"
        "for name in ('nms', 'qnms'):\n"
        "    torch.library.register_fake(f'torchvision::{name}')(lambda dets, scores, iou_threshold: dets)\n"
    )
    done = python(
        "import torch\n"
        "from robustbench_lite.torchvision_compat import import_torchvision\n"
        "torchvision = import_torchvision()\n"
        "assert torchvision.part.loads == [1], torchvision.part.loads\n"
        "try:\n"
        "    torch.ops.torchvision.nms(torch.rand(1, 4), torch.rand(1), 0.5)\n"
        "except NotImplementedError:\n"
        "    print('no implementation')\n",
        impostor.parent.parent,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "no implementation"), done.stderr


def test_a_matching_torchvision_is_left_as_it_is(impostor: Path) -> None:
    impostor.write_text("matches = True\n")
    done = python(
        "import torch\n"
        "from robustbench_lite.torchvision_compat import import_torchvision\n"
        "assert import_torchvision().matches\n"
        "assert not hasattr(torch.ops.torchvision, 'nms')\n",
        impostor.parent.parent,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "fault",
    [
        "raise ImportError('libcudart is missing')",
        "raise RuntimeError('operator torchvision::warp does not exist')",
        "raise RuntimeError('operator torchvision::nms does not exist')",  # also after it was declared
    ],
)
def test_what_cannot_be_mended_is_an_error_with_its_cause(impostor: Path, fault: str) -> None:
    impostor.write_text(fault + "\n")
    done = python(
        "from robustbench_lite.errors import RblError\n"
        "from robustbench_lite.torchvision_compat import import_torchvision\n"
        "try:\n"
        "    import_torchvision()\n"
        "except RblError as error:\n"
        "    print(error, '| cause:', type(error.__cause__).__name__)\n",
        impostor.parent.parent,
    )
    assert "cannot be imported beside torch" in done.stdout, done.stderr
    assert fault.split("'")[1] in done.stdout
    assert "install the torchvision release" in done.stdout
    assert "cause: " + fault.split()[1].partition("(")[0] in done.stdout
