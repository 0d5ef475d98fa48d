"""torchvision's data sets: its real readers, downloads and checksums, on small files in the real formats."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import socket
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from rbl_datasets import vision
from rbl_datasets.vision import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST, ImageNet, spread
from robustbench_lite import DatasetBundle, MissingData, import_torchvision
from robustbench_lite.data import fetch

if TYPE_CHECKING:
    from conftest import Server

TRAIN, TEST = 20, 10


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def pixels(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def labels(n: int, classes: int = 10) -> np.ndarray:
    return np.arange(n) % classes


def check(bundle: DatasetBundle, train: np.ndarray, test: np.ndarray, classes: int = 10) -> None:
    """The bundle holds these images (n, C, H, W) with the labels of ``labels``, and says so."""
    assert bundle.train is not None
    for split, images in ((bundle.train, train), (bundle.test, test)):
        x, y = fetch(split, range(len(split)))
        assert torch.equal(x, torch.tensor(images).float() / 255)
        assert y.tolist() == labels(len(images), classes).tolist()
    assert (bundle.info.shape, bundle.info.num_classes) == (test.shape[1:], classes)
    assert bundle.info.mean == pytest.approx((train / 255).mean((0, 2, 3)), abs=5e-5)
    assert bundle.info.std == pytest.approx((train / 255).std((0, 2, 3)), abs=5e-5)
    assert list(bundle.evaluation) == list(range(len(test)))


# ------------------------------------------------------------------------------------------------------------------- MNIST


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the format of MNIST's files: two zeros, type, number of axes, lengths, values."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def mnist_files(seed: int = 0) -> dict[str, bytes]:
    return {
        "train-images-idx3-ubyte": idx(pixels(TRAIN, 28, 28, seed=seed)),
        "train-labels-idx1-ubyte": idx(labels(TRAIN)),
        "t10k-images-idx3-ubyte": idx(pixels(TEST, 28, 28, seed=seed + 1)),
        "t10k-labels-idx1-ubyte": idx(labels(TEST)),
    }


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.fixture
def mnist_site(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """MNIST's mirror is the local server; its checksums are those of small files."""
    packed = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in mnist_files().items()}
    write(server.folder, packed)
    for dataset in (import_torchvision().datasets.MNIST, import_torchvision().datasets.FashionMNIST):
        monkeypatch.setattr(dataset, "mirrors", [server.url])
        monkeypatch.setattr(dataset, "resources", [(name, md5(data)) for name, data in packed.items()])
    return server


@pytest.mark.parametrize(("dataset", "folder"), [(MNIST(), "MNIST"), (FashionMNIST(), "FashionMNIST")])
def test_mnist_in_the_data_folder_is_read_and_nothing_is_downloaded(
    dataset: MNIST, folder: str, mnist_site: Server, tmp_path: Path
) -> None:
    write(tmp_path / folder / "raw", mnist_files())
    bundle = dataset(tmp_path)
    check(bundle, pixels(TRAIN, 1, 28, 28), pixels(TEST, 1, 28, 28, seed=1))
    assert bundle.info.name == dataset.name
    assert mnist_site.requests == []


def test_mnist_that_is_missing_is_downloaded_once_and_checked(mnist_site: Server, tmp_path: Path) -> None:
    root = tmp_path / "new" / "data"
    bundle = MNIST()(root)
    check(bundle, pixels(TRAIN, 1, 28, 28), pixels(TEST, 1, 28, 28, seed=1))
    assert set(mnist_site.requests) == {f"{name}.gz" for name in mnist_files()}
    mnist_site.requests.clear()
    assert MNIST()(root).fingerprint == bundle.fingerprint
    assert mnist_site.requests == []


@pytest.mark.parametrize("fault", ["changed", "cut", "gone"])
def test_a_download_that_fails_its_checksum_is_refused(mnist_site: Server, tmp_path: Path, fault: str) -> None:
    file = mnist_site.folder / "t10k-images-idx3-ubyte.gz"
    if fault == "gone":
        file.unlink()
    else:
        other = gzip.compress(mnist_files(seed=5)[file.stem], mtime=0)
        file.write_bytes(other if fault == "changed" else file.read_bytes()[:-9])
    with pytest.raises(MissingData) as raised:
        MNIST()(tmp_path / "data")
    reason = "404" if fault == "gone" else "corrupted"
    assert reason in raised.value.message
    assert "t10k-images-idx3-ubyte.gz" in raised.value.message
    assert "put MNIST/raw/" in raised.value.hint
    assert "RBL_DATA" in raised.value.hint
    assert not (tmp_path / "data" / "MNIST" / "raw" / "t10k-images-idx3-ubyte").exists()


def test_offline_nothing_is_asked_of_the_network(mnist_site: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBL_OFFLINE", "1")
    with pytest.raises(MissingData, match=r"mnist cannot be read from .*: Dataset not found\.\n") as raised:
        MNIST()(tmp_path / "data")
    assert "unset RBL_OFFLINE" in raised.value.hint
    assert "RBL_DATA" in raised.value.hint
    assert mnist_site.requests == []
    monkeypatch.setenv("RBL_OFFLINE", "0")
    MNIST()(tmp_path / "data")
    assert mnist_site.requests != []


def test_a_network_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mnist_site: Server
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(import_torchvision().datasets.MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        monkeypatch.setattr(vision, "PATIENCE", 0.2)
        with pytest.raises(MissingData, match="timed out"):
            MNIST()(tmp_path / "data")
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("name", list(mnist_files()))
@pytest.mark.parametrize("fault", ["cut", "empty", "text"])
def test_a_damaged_file_in_the_data_folder_is_an_error_that_says_so(
    name: str, fault: str, tmp_path: Path, mnist_site: Server
) -> None:
    write(tmp_path / "MNIST" / "raw", mnist_files())
    file = tmp_path / "MNIST" / "raw" / name
    file.write_bytes({"cut": file.read_bytes()[:-7], "empty": b"", "text": b"<html>not found</html>"}[fault])
    with pytest.raises(MissingData, match=r"mnist can be neither read from .+ nor downloaded: .+") as raised:
        MNIST()(tmp_path)
    assert "interrupted download" in raised.value.hint


def test_fewer_labels_than_images_are_noticed(tmp_path: Path, mnist_site: Server) -> None:
    files = mnist_files() | {"t10k-labels-idx1-ubyte": idx(labels(TEST - 1))}
    write(tmp_path / "MNIST" / "raw", files)
    with pytest.raises(MissingData, match="10 images and 9 labels"):
        MNIST()(tmp_path)


def test_the_fingerprint_is_of_the_test_split(tmp_path: Path) -> None:
    sound = mnist_files()
    pixel, label = (bytearray(sound[f"t10k-{kind}-ubyte"]) for kind in ("images-idx3", "labels-idx1"))
    pixel[-1] ^= 1
    label[-1] ^= 1
    variants = [
        {},
        {"t10k-images-idx3-ubyte": bytes(pixel)},
        {"t10k-labels-idx1-ubyte": bytes(label)},
        {"train-images-idx3-ubyte": mnist_files(seed=9)["train-images-idx3-ubyte"]},
    ]
    found = []
    for i, changes in enumerate(variants):
        write(tmp_path / str(i) / "MNIST" / "raw", sound | changes)
        found.append(MNIST()(tmp_path / str(i)).fingerprint)
    assert len(set(found[:3])) == 3
    assert found[3] == found[0]


# -------------------------------------------------------------------------------------------------------------- CIFAR, SVHN


def cifar_batch(images: np.ndarray, key: str, classes: int) -> bytes:
    return pickle.dumps({"data": images.reshape(len(images), -1), key: labels(len(images), classes).tolist()})


def tar(folder: str, files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def cifar_site(
    kind: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, dict[str, bytes], np.ndarray, np.ndarray]:
    """The data set, its files, and its training and test images; torchvision is told their checksums and the server."""
    train, test = pixels(TRAIN, 3, 32, 32), pixels(TEST, 3, 32, 32, seed=1)
    if kind == "cifar10":
        dataset, reader = CIFAR10(), import_torchvision().datasets.CIFAR10
        parts = {f"data_batch_{i + 1}": cifar_batch(train[4 * i : 4 * i + 4], "labels", 10) for i in range(5)}
        # The labels run through the batches.
        for i, name in enumerate(parts):
            batch = pickle.loads(parts[name])
            parts[name] = pickle.dumps(batch | {"labels": labels(TRAIN)[4 * i : 4 * i + 4].tolist()})
        tests = {"test_batch": cifar_batch(test, "labels", 10)}
        meta = {"batches.meta": pickle.dumps({"label_names": [f"thing {i}" for i in range(10)]})}
    else:
        dataset, reader = CIFAR100(), import_torchvision().datasets.CIFAR100
        parts = {"train": cifar_batch(train, "fine_labels", 100)}
        tests = {"test": cifar_batch(test, "fine_labels", 100)}
        meta = {"meta": pickle.dumps({"fine_label_names": [f"thing {i}" for i in range(100)]})}
    files = parts | tests | meta
    archive = tar(reader.base_folder, files)
    write(server.folder, {reader.filename: archive})
    monkeypatch.setattr(reader, "url", server.url + reader.filename)
    monkeypatch.setattr(reader, "tgz_md5", md5(archive))
    monkeypatch.setattr(reader, "train_list", [[name, md5(data)] for name, data in parts.items()])
    monkeypatch.setattr(reader, "test_list", [[name, md5(data)] for name, data in tests.items()])
    ((name, data),) = meta.items()
    monkeypatch.setattr(reader, "meta", {**reader.meta, "filename": name, "md5": md5(data)})
    return dataset, files, train, test


@pytest.mark.parametrize(("kind", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_cifar_is_read_from_the_data_folder_or_downloaded(
    kind: str, folder: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, files, train, test = cifar_site(kind, server, monkeypatch)
    write(tmp_path / "there" / folder, files)
    classes = 10 if kind == "cifar10" else 100
    bundle = dataset(tmp_path / "there")
    check(bundle, train, test, classes)
    assert bundle.info.classes == tuple(f"thing {i}" for i in range(classes))
    assert server.requests == []
    assert dataset(tmp_path / "downloaded").fingerprint == bundle.fingerprint
    assert server.requests != []


def test_a_changed_cifar_file_fails_its_checksum(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, files, _, _ = cifar_site("cifar10", server, monkeypatch)
    write(tmp_path / "cifar-10-batches-py", files | {"test_batch": files["test_batch"] + b" "})
    monkeypatch.setenv("RBL_OFFLINE", "1")
    with pytest.raises(MissingData, match="not found or corrupted"):
        dataset(tmp_path)
    monkeypatch.delenv("RBL_OFFLINE")
    assert len(dataset(tmp_path).test) == TEST  # mended by a download


def mat(images: np.ndarray) -> bytes:
    """A file of SVHN: images (H, W, C, n), and the digit 0 labelled 10."""
    packed = io.BytesIO()
    digits = labels(len(images))
    scipy.io.savemat(
        packed, {"X": images.transpose(2, 3, 1, 0), "y": np.where(digits == 0, 10, digits)[:, None].astype(np.uint8)}
    )
    return packed.getvalue()


def test_svhn_is_read_and_downloaded_with_the_label_10_as_0(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = pixels(TRAIN, 3, 32, 32), pixels(TEST, 3, 32, 32, seed=1)
    files = {"train_32x32.mat": mat(train), "test_32x32.mat": mat(test)}
    write(server.folder, files)
    listed = {name.partition("_")[0]: [server.url + name, name, md5(data)] for name, data in files.items()}
    monkeypatch.setattr(import_torchvision().datasets.SVHN, "split_list", listed)
    bundle = SVHN()(tmp_path)
    check(bundle, train, test)
    assert bundle.info.classes == tuple("0123456789")
    assert set(server.requests) == set(files)
    (server.folder / "test_32x32.mat").write_bytes(mat(train))
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(MissingData, match=r"svhn .* corrupted\. \(.*test_32x32\.mat\)"):
        SVHN()(tmp_path)


# ----------------------------------------------------------------------------------------------------------------- ImageNet


def imagenet(root: Path, images: dict[str, list[int]]) -> Path:
    """A validation folder as torchvision prepares it. images: a grey level for each file, by class."""
    root.mkdir(parents=True)
    torch.save(({wnid: (f"{wnid} thing", "thing") for wnid in images}, []), root / "meta.bin")
    for wnid, levels in images.items():
        (root / "val" / wnid).mkdir(parents=True)
        for i, level in enumerate(levels):
            Image.new("RGB", (300, 280), (level, 0, 255)).save(root / "val" / wnid / f"ILSVRC2012_val_{wnid}{i:04}.JPEG")
    return root


def test_imagenet_is_scaled_cropped_and_drawn_by_file_name(tmp_path: Path) -> None:
    levels = {"n01": [10, 20, 30], "n02": [200, 210]}
    bundle = ImageNet(n=4)(imagenet(tmp_path / "a", levels))
    assert (bundle.info.shape, bundle.info.classes) == ((3, 224, 224), ("n01 thing, thing", "n02 thing, thing"))
    assert (len(bundle.test), len(bundle.evaluation), bundle.train) == (5, 4, None)
    names = [f"ILSVRC2012_val_{wnid}{i:04}.JPEG" for wnid, values in levels.items() for i in range(len(values))]
    assert list(bundle.evaluation) == sorted(range(5), key=lambda i: hashlib.sha256(names[i].encode()).digest())[:4]
    x, y = fetch(bundle.test, [2, 4])
    assert y.tolist() == [0, 1]
    assert x[:, 0].mean((1, 2)).tolist() == pytest.approx([30 / 255, 210 / 255], abs=0.01)
    fewer = ImageNet(n=4)(imagenet(tmp_path / "b", {**levels, "n02": [200]}))
    assert fewer.fingerprint != bundle.fingerprint


def test_the_draw_does_not_depend_on_the_order_of_the_folder() -> None:
    names = [f"image {i}" for i in range(50)]
    drawn = {names[i] for i in spread(names, 20)}
    assert drawn == {names[::-1][i] for i in spread(names[::-1], 20)}
    assert len(drawn) == 20


def test_imagenet_that_is_missing_says_what_to_fetch_and_where_from(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"ILSVRC2012_devkit_t12\.tar\.gz is not present") as raised:
        ImageNet()(tmp_path)
    assert "ILSVRC2012_img_val.tar" in raised.value.hint
    assert "RBL_DATA" in raised.value.hint


# --------------------------------------------------------------------------------------------------------------------- real


def test_the_test_images_of_mnist_are_the_originals(real_data: Path) -> None:
    file = real_data / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    if not file.is_file():
        pytest.skip("no MNIST/raw in the data folder")
    bundle = MNIST()(real_data)
    assert bundle.train is not None
    assert (len(bundle.train), len(bundle.test), bundle.info.shape) == (60_000, 10_000, (1, 28, 28))
    assert (bundle.info.mean, bundle.info.std) == ((0.1307,), (0.3081,))  # as the field quotes them
    _, y = fetch(bundle.test, range(10))
    assert y.tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    if md5(file.read_bytes()) == "2646ac647ad5339dbf082846283269ea":
        assert bundle.fingerprint == "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891"
