"""The user's own data as a folder of images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from robustbench_lite import DatasetBundle, DatasetInfo, MissingData, UsageError

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Images of 8 bits in ``<path>/test/<class>/`` and, for training, ``<path>/train/<class>/``.

    path: the folder, itself or below the data folder (RBL_DATA). size: scale the shorter side to it and take the middle;
    None where all images have one size already. channels: 3 for colour, 1 for grey; images of the other kind are converted.
    Names that begin with a dot are passed over.
    """

    path: str
    size: Annotated[int, Field(ge=1)] | None = None
    channels: Literal[1, 3] = 3

    def __call__(self, root: Path) -> DatasetBundle:
        """The bundle, named after the folder. Raises MissingData for no folder, UsageError for one that cannot be used."""
        folder = next((p for p in (Path(self.path).expanduser(), root / self.path) if p.is_dir()), None)
        if folder is None:
            raise MissingData(
                f"no folder {self.path}, here or in {root}", hint="image-folder[path=FOLDER] names an existing folder"
            )
        if not (folder / "test").is_dir():
            raise MissingData(f"{folder} has no folder 'test'", hint="put images into <path>/test/<class>/")
        classes = _classes(folder / "test")
        test = Files(folder / "test", classes, self)
        shape = test.shape
        train = None
        if (folder / "train").is_dir():
            if _classes(folder / "train") != classes:
                raise UsageError(f"{folder}: train has classes {_classes(folder / 'train')}, test has {classes}")
            train = Files(folder / "train", classes, self, shape)
        return DatasetBundle(
            info=DatasetInfo(name=folder.name.lower(), classes=classes, shape=shape),
            test=test,
            evaluation=spread(test.files),
            fingerprint=test.fingerprint(),
            train=train,
        )


class Files:
    """Images of one split, read when they are asked for. shape: (C, H, W) of each; that of the first where None."""

    def __init__(
        self, folder: Path, classes: Sequence[str], settings: ImageFolder, shape: tuple[int, int, int] | None = None
    ) -> None:
        self._settings = settings
        self.files: list[tuple[Path, int]] = []
        for label, name in enumerate(classes):
            found = [file for file in sorted((folder / name).iterdir()) if file.suffix.lower() in ENDINGS]
            visible = [(file, label) for file in found if not file.name.startswith(".")]
            if not visible:
                raise UsageError(
                    f"class {name!r} has no image in {folder / name}",
                    hint=f"endings that are read: {', '.join(sorted(ENDINGS))}",
                )
            self.files += visible
        self.shape = shape or self._size_of_first()

    def _size_of_first(self) -> tuple[int, int, int]:
        channels, height, width = self._read(self.files[0][0]).shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self.files[index]
        x = self._read(file)
        if tuple(x.shape) != self.shape:
            raise UsageError(
                f"{file} is {x.shape[1]}x{x.shape[2]}, other images are {self.shape[1]}x{self.shape[2]}",
                hint="image-folder[path=...,size=224] makes them one size",
            )
        return x, label

    def _read(self, file: Path) -> Tensor:
        """(C, H, W) in [0, 1]. Raises UsageError, naming the file."""
        try:
            with Image.open(file) as opened:
                depth = opened.mode
                image = opened.convert("RGB" if self._settings.channels == 3 else "L")
        except Exception as error:  # Pillow's readers raise many kinds for damaged files
            raise UsageError(f"{file} is no image that can be read: {error}", hint="mend or remove the file") from None
        if depth.startswith(("I", "F")):
            raise UsageError(
                f"{file} has pixels of mode {depth}, which Pillow would clip to 8 bits", hint="convert it to 8 bits per channel"
            )
        if self._settings.size is not None:
            image = _crop(image, self._settings.size)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
        return pixels[None] if self._settings.channels == 1 else pixels.permute(2, 0, 1).contiguous()

    def fingerprint(self) -> str:
        """sha256 over the names, the labels and the contents of all files."""
        digest = hashlib.sha256()
        for file, label in self.files:
            digest.update(f"{file.parent.name}/{file.name} {label} ".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


def spread(files: Sequence[tuple[Path, int]]) -> list[int]:
    """All indices in the order of the sha256 of class and file name, so that the first n are a fair draw of the classes."""

    def place(index: int) -> bytes:
        file = files[index][0]
        return hashlib.sha256(f"{file.parent.name}/{file.name}".encode()).digest()

    return sorted(range(len(files)), key=place)


def _classes(folder: Path) -> tuple[str, ...]:
    found = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if len(found) < 2:
        raise UsageError(
            f"{folder} has {len(found)} folders of classes; a defense is judged on at least two",
            hint=f"put images into {folder.name}/<class>/",
        )
    return found


def _crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to ``size`` and take the middle ``size`` x ``size``."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return scaled.crop((left, top, left + size, top + size))
