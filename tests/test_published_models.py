"""The one-file plugin with other people's models: what it loads, and what it says where there is nothing to load."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_lite.registry import load
from robustbench_lite.resolve import resolve_dataset, resolve_defense
from tests.support import invoke, rbl_json

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "examples" / "third-party-models" / "published_models.py"

# On all 10,000 test images of MNIST and the first 1,000 of CIFAR-10, as measured by others.
CLEAN = {
    "lpd-mlp": ("mnist", 95.91),
    "adv-mlp": ("mnist", 96.67),
    "kw-conv": ("mnist", 98.20),
    "advertorch-lenet": ("mnist", 98.64),
    "kw-conv-l2": ("arrays[path=cifar10]", 55.30),
    "eran-conv": ("arrays[path=cifar10]", 63.00),
}


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the published files; skips where there is none."""
    for candidate in (os.environ.get("RBL_MODELS"), ROOT.parent / "shared" / "models"):
        if candidate and (Path(candidate) / "LPD_MLP_B_0.1.pth").is_file():
            monkeypatch.setenv("RBL_MODELS", str(candidate))
            return Path(candidate)
    pytest.skip("no published models: set RBL_MODELS to the folder that examples/third-party-models/README.md describes")


@pytest.fixture
def arrays(tmp_path: Path) -> str:
    """A data set of the name and shape of MNIST with six images, where no real data are needed."""
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    classes = np.array([str(k) for k in range(10)])
    np.savez(tmp_path / "mnist.npz", x_test=images, y_test=np.arange(12) % 10, classes=classes)
    return f"arrays[path={tmp_path / 'mnist.npz'}]"


def test_it_brings_six_defenses_and_no_torch() -> None:
    found = rbl_json("list", "defenses", plugin=PLUGIN)
    assert {entry["id"] for entry in found if entry["namespace"] == "published-models"} == {
        f"published-models/{n}" for n in CLEAN
    }
    (record,) = [p for p in rbl_json("plugins", plugin=PLUGIN)["plugins"] if p["namespace"] == "published-models"]
    assert not record["problems"]


@pytest.mark.parametrize("name", CLEAN)
def test_it_is_as_accurate_as_published(name: str, files: Path, real_data: Path) -> None:
    registry = load([PLUGIN])
    selector, published = CLEAN[name]
    dataset = resolve_dataset(registry, selector, real_data)
    model = resolve_defense(registry, name, dataset.info).build()
    subset = dataset.subset(10_000 if selector == "mnist" else 1000)
    right = 0
    with torch.no_grad():
        for rows in torch.tensor(subset).split(500):
            x, y = dataset.bundle.test.batch(rows.tolist())  # type: ignore[attr-defined]
            right += int((model(x).argmax(1) == y).sum())
    assert 100 * right / len(subset) == pytest.approx(published, abs=0.005)


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: Path, arrays: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("run", "--dataset", arrays, "--defense", "kw-conv", "--attack", "fgsm", "--threat", "linf:0.1")
    monkeypatch.setenv("RBL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("RBL_MODELS", str(tmp_path / "models"))
    said = invoke(*words, plugin=PLUGIN, code=2).err
    for wanted in (
        "kw2018_mnist.pth",
        str(tmp_path / "models"),
        "RBL_MODELS",
        "https://github.com/locuslab/convex_adversarial",
    ):
        assert wanted in said
    monkeypatch.delenv("RBL_MODELS")
    monkeypatch.chdir(tmp_path)
    assert "RBL_MODELS names no folder" in invoke(*words, plugin=PLUGIN, code=2).err


def test_a_file_of_another_architecture_is_refused(tmp_path: Path, arrays: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"0.weight": torch.zeros(100, 784), "0.bias": torch.zeros(100)}, tmp_path / "other.pth")
    monkeypatch.setenv("RBL_MODELS", str(tmp_path))
    registry = load([PLUGIN])
    info = resolve_dataset(registry, arrays, tmp_path).info
    with pytest.raises(Exception, match=r"other.pth holds tensors of shapes .*; this model has"):
        resolve_defense(registry, "lpd-mlp[file=other.pth]", info).build()


def test_tensors_are_taken_in_order_whatever_they_are_called(
    tmp_path: Path, arrays: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file wraps them in ``{"state_dict": [...]}``."""
    shapes = [(100, 784), (100,), (100, 100), (100,), (10, 100), (10,)]
    state = {f"a name {i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    monkeypatch.setenv("RBL_MODELS", str(tmp_path))
    registry = load([PLUGIN])
    info = resolve_dataset(registry, arrays, tmp_path).info
    for number, content in enumerate([state, [state], {"state_dict": state}, {"state_dict": [state], "epoch": 3}]):
        torch.save(content, tmp_path / f"{number}.pth")
        model = resolve_defense(registry, f"lpd-mlp[file={number}.pth]", info).build()
        x = torch.rand(3, 1, 28, 28)
        hidden = (x.flatten(1) @ state["a name 0"].T + state["a name 1"]).relu()
        hidden = (hidden @ state["a name 2"].T + state["a name 3"]).relu()
        torch.testing.assert_close(model(x), hidden @ state["a name 4"].T + state["a name 5"])


def test_it_runs(files: Path, real_data: Path, tmp_path: Path) -> None:
    words = ("run", "--dataset", "mnist", "--defense", "lpd-mlp", "--attack", "fgsm", "--threat", "linf:0.1", "--n", "200")
    where = {"RBL_DATA": str(real_data), "RBL_STORE": str(tmp_path / "store"), "RBL_MODELS": str(files)}
    (row,) = rbl_json(*words, "--executor", "inline", plugin=PLUGIN, **where)["tables"][0]["rows"]
    assert 0.8 < row["worst_case"]["value"] < row["clean_accuracy"]["value"]
