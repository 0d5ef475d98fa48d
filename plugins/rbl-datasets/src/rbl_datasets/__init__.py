"""Data sets. Importing this module imports neither torch nor torchvision nor scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable

from robustbench_lite import DatasetSpec, hookimpl


@hookimpl
def rbl_datasets() -> Iterable[DatasetSpec]:
    """The embedded digits, torchvision's data sets, and the user's own."""
    yield DatasetSpec(
        name="digits",
        factory="rbl_datasets.digits:Digits",
        summary="1,797 handwritten digits of 8x8 pixels that come with scikit-learn: needs no download",
        reference="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    )
    yield DatasetSpec(
        name="mnist",
        factory="rbl_datasets.vision:MNIST",
        summary="70,000 handwritten digits, 1x28x28",
        reference="doi:10.1109/5.726791",
    )
    yield DatasetSpec(
        name="fashion-mnist",
        factory="rbl_datasets.vision:FashionMNIST",
        summary="70,000 pictures of clothing, 1x28x28",
        reference="arXiv:1708.07747",
    )
    yield DatasetSpec(
        name="cifar10",
        factory="rbl_datasets.vision:CIFAR10",
        summary="60,000 photographs in 10 classes, 3x32x32",
        reference="https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf",
    )
    yield DatasetSpec(
        name="cifar100",
        factory="rbl_datasets.vision:CIFAR100",
        summary="60,000 photographs in 100 classes, 3x32x32",
        reference="https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf",
    )
    yield DatasetSpec(
        name="svhn",
        factory="rbl_datasets.vision:SVHN",
        summary="99,289 house numbers, 3x32x32",
        reference="http://ufldl.stanford.edu/housenumbers/",
    )
    yield DatasetSpec(
        name="imagenet",
        factory="rbl_datasets.vision:ImageNet",
        summary="The 50,000 validation images of ImageNet-1k, 3x224x224, 5,000 of them for evaluation",
        reference="arXiv:1409.0575",
    )
    yield DatasetSpec(
        name="arrays",
        factory="rbl_datasets.arrays:Arrays",
        summary="Your own arrays: an .npz file with x_test, y_test and, for training, x_train, y_train",
    )
    yield DatasetSpec(
        name="image-folder",
        factory="rbl_datasets.folder:ImageFolder",
        summary="Your own images: <path>/test/<class>/*.png and, for training, <path>/train/<class>/*.png",
    )
