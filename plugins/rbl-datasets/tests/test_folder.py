"""The user's own folder of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rbl_datasets.folder import ImageFolder
from robustbench_lite import DatasetBundle, MissingData, UsageError
from robustbench_lite.data import fetch


def picture(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (6, 5, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three test images of ants and two of bees, and one of each for training; 6 x 5 pixels in colour."""
    root = tmp_path / "Insects"
    for i, name in enumerate(["test/ant/a.png", "test/ant/b.PNG", "test/ant/c.bmp", "test/bee/a.png", "test/bee/b.png"]):
        save(root / name, picture(i))
    for i, name in enumerate(["train/ant/x.png", "train/bee/x.png"]):
        save(root / name, picture(10 + i))
    return root


def load(folder: Path, **settings: object) -> DatasetBundle:
    return ImageFolder(path=str(folder), **settings)(folder.parent)  # type: ignore[arg-type]


def test_images_labels_and_classes_come_from_the_folders(folder: Path) -> None:
    bundle = load(folder)
    x, y = fetch(bundle.test, range(5))
    assert torch.equal(x, torch.stack([torch.tensor(picture(i)).permute(2, 0, 1).float() / 255 for i in range(5)]))
    assert y.tolist() == [0, 0, 0, 1, 1]
    assert (bundle.info.name, bundle.info.classes, bundle.info.shape) == ("insects", ("ant", "bee"), (3, 6, 5))
    assert sorted(bundle.evaluation) == [0, 1, 2, 3, 4]
    assert bundle.train is not None
    assert torch.equal(bundle.train[1][0], torch.tensor(picture(11)).permute(2, 0, 1).float() / 255)


def test_a_relative_path_is_looked_up_in_the_data_folder(folder: Path) -> None:
    assert ImageFolder(path="Insects")(folder.parent).fingerprint == load(folder).fingerprint


def test_grey_and_colour_are_converted_into_each_other(folder: Path) -> None:
    grey = save(folder / "test/ant/a.png", picture(0, 6, 5))
    colour = load(folder)
    assert torch.equal(colour.test[0][0], torch.tensor(picture(0, 6, 5)).float().expand(3, 6, 5) / 255)
    assert grey.is_file()
    one = load(folder, channels=1)
    assert one.info.shape == (1, 6, 5)
    assert torch.equal(one.test[0][0][0], torch.tensor(picture(0, 6, 5)).float() / 255)
    weights = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
    luma = (torch.tensor(picture(1)).float() * weights).sum(2) / 255
    assert (one.test[1][0][0] - luma).abs().max() <= 0.51 / 255


def test_size_scales_the_shorter_side_and_takes_the_middle(folder: Path) -> None:
    bands = np.zeros((8, 24, 3), np.uint8)
    bands[:, 8:16] = 200  # the middle third
    save(folder / "test/ant/a.png", bands)
    bundle = load(folder, size=8)
    assert bundle.info.shape == (3, 8, 8)
    assert torch.equal(bundle.test[0][0], torch.full((3, 8, 8), 200 / 255))
    assert {tuple(bundle.test[i][0].shape) for i in range(5)} == {(3, 8, 8)}


def test_names_that_begin_with_a_dot_and_other_files_are_passed_over(folder: Path) -> None:
    before = load(folder)
    (folder / "test" / ".cache").mkdir()
    (folder / "test" / "ant" / "._a.png").write_bytes(b"resource fork")
    (folder / "test" / "ant" / "notes.txt").write_text("ants")
    after = load(folder)
    assert (after.fingerprint, after.info, len(after.test)) == (before.fingerprint, before.info, len(before.test))


def test_the_first_n_are_a_draw_that_does_not_favour_the_first_class(folder: Path) -> None:
    for i in range(40):
        save(folder / "test" / ("ant" if i % 2 else "bee") / f"more{i}.png", picture(i))
    bundle = load(folder)
    chosen = [bundle.test[i][1] for i in list(bundle.evaluation)[:20]]
    assert 4 <= sum(chosen) <= 16
    assert sorted(bundle.evaluation) == list(range(45))


def test_the_fingerprint_changes_with_names_and_contents(folder: Path) -> None:
    found = [load(folder).fingerprint]
    save(folder / "test/bee/b.png", picture(99))
    found.append(load(folder).fingerprint)
    (folder / "test/bee/b.png").rename(folder / "test/bee/d.png")
    found.append(load(folder).fingerprint)
    (folder / "test/bee/d.png").rename(folder / "test/ant/d.png")
    found.append(load(folder).fingerprint)
    save(folder / "train/bee/x.png", picture(98))
    assert len(set(found)) == 4
    assert load(folder).fingerprint == found[-1]


def test_missing_folders_are_missing_data(folder: Path) -> None:
    with pytest.raises(MissingData, match="no folder") as raised:
        ImageFolder(path="nowhere")(folder)
    assert "image-folder[path=FOLDER]" in raised.value.hint
    (folder / "test").rename(folder / "val")
    with pytest.raises(MissingData, match="has no folder 'test'") as raised:
        load(folder)
    assert "<path>/test/<class>/" in raised.value.hint


def test_training_may_be_absent(folder: Path) -> None:
    for file in folder.glob("train/*/*"):
        file.unlink()
    for empty in folder.glob("train/*"):
        empty.rmdir()
    (folder / "train").rmdir()
    assert load(folder).train is None


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_class_without_images_is_named(folder: Path, split: str) -> None:
    for file in (folder / split / "bee").iterdir():
        file.unlink()
    with pytest.raises(UsageError, match=rf"class 'bee' has no image in .*{split}"):
        load(folder)


def test_one_class_is_not_enough(folder: Path) -> None:
    for file in (folder / "test" / "bee").iterdir():
        file.unlink()
    (folder / "test" / "bee").rmdir()
    with pytest.raises(UsageError, match="1 folders of classes"):
        load(folder)


def test_training_and_test_must_have_the_same_classes(folder: Path) -> None:
    (folder / "train" / "bee").rename(folder / "train" / "wasp")
    with pytest.raises(UsageError, match=r"train has classes .*wasp.*, test has .*bee"):
        load(folder)


@pytest.mark.parametrize("fault", ["text", "cut", "empty"])
def test_a_damaged_image_is_named(folder: Path, fault: str) -> None:
    file = folder / "test/bee/a.png"
    file.write_bytes({"text": b"not a picture", "cut": file.read_bytes()[:-40], "empty": b""}[fault])
    bundle = load(folder)
    with pytest.raises(UsageError, match=r"bee/a\.png is no image that can be read"):
        bundle.test[3]
    assert bundle.test[4][1] == 1


def test_images_of_16_bits_are_refused_rather_than_clipped(folder: Path) -> None:
    Image.fromarray(np.arange(30, dtype=np.uint16).reshape(6, 5) * 2000).save(folder / "test/bee/a.png")
    with pytest.raises(UsageError, match=r"bee/a\.png has pixels of mode I"):
        load(folder, channels=1).test[3]


@pytest.mark.parametrize("file", ["test/bee/a.png", "train/ant/x.png"])
def test_images_of_several_sizes_are_refused_with_the_parameter_that_helps(folder: Path, file: str) -> None:
    save(folder / file, picture(0, 7, 5, 3))
    bundle = load(folder)
    split, index = (bundle.test, 3) if file.startswith("test") else (bundle.train, 0)
    assert split is not None
    with pytest.raises(UsageError, match="is 7x5, other images are 6x5") as raised:
        split[index]
    assert "size=" in raised.value.hint
