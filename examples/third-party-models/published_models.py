"""Six robust classifiers that other people trained and published, with figures to compare an attack with: a one-file plugin.

::

    export RBL_MODELS=/where/the/files/are
    rbl --plugin published_models.py run --dataset mnist --defense lpd-mlp --attack fgsm --threat linf:0.1

README.md beside this file says where the files come from and what is known of them. Nothing is downloaded.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_lite import DatasetInfo, DefenseSpec, MissingWeights, PluginError, hookimpl

if TYPE_CHECKING:
    from torch import nn

FOLDER = "RBL_MODELS"

VERIFY = "https://github.com/Hadisalman/robust-verify-benchmark"
CONVEX = "https://github.com/locuslab/convex_adversarial"
ADVERTORCH = "https://github.com/BorealisAI/advertorch"
CROWN = "https://github.com/Verified-Intelligence/alpha-beta-CROWN"


@hookimpl
def rbl_defenses() -> Iterable[DefenseSpec]:
    """Four for MNIST, two for CIFAR-10."""

    def spec(name: str, factory: str, dataset: str, summary: str, reference: str) -> DefenseSpec:
        return DefenseSpec(
            name=name,
            factory=f"published_models:{factory}",
            datasets=(dataset,),
            summary=summary,
            reference=reference,
            fidelity="official-match",
        )

    yield spec("lpd-mlp", "LPDMLP", "mnist", "784-100-100-10, dual-certified training for linf 0.1", "arXiv:1902.08722")
    yield spec("adv-mlp", "AdvMLP", "mnist", "784-100-100-10, adversarial training for linf 0.1", "arXiv:1902.08722")
    yield spec("kw-conv", "KWConv", "mnist", "Small CNN, provable defense for linf 0.1", "arXiv:1711.00851")
    yield spec("advertorch-lenet", "AdvertorchLeNet", "mnist", "LeNet, adversarial training for linf 0.3", "arXiv:1902.07623")
    yield spec("kw-conv-l2", "KWConvL2", "cifar10", "Small CNN, scaled provable defense for l2 36/255", "arXiv:1805.12514")
    yield spec("eran-conv", "EranConv", "cifar10", "Small CNN, PGD training for linf 2/255", "arXiv:2103.06624")


@dataclass(frozen=True, kw_only=True)
class Published(ABC):
    """What the six share: a state dict in a file, whose tensors come in the order of the architecture's.

    file: its name in the folder $RBL_MODELS, or a path; any file of the same architecture will do.
    """

    file: str

    origin = ""  # where the file is published; no annotation, hence no parameter

    @abstractmethod
    def architecture(self) -> nn.Module:
        """The module, untrained: [0, 1] NCHW in, logits out."""

    def __call__(self, info: DatasetInfo, weights: Path | None) -> nn.Module:
        from robustbench_lite.weights import load_state

        module = self.architecture()
        path = weights or self._find()
        names = {name: value.shape for name, value in module.state_dict().items()}
        state = load_state(path)
        wrapped = state.get("state_dict")
        state = wrapped[0] if isinstance(wrapped, list) else state  # a list of one, as cascades of networks are saved
        found = [tuple(value.shape) for value in state.values()]
        if found != [tuple(shape) for shape in names.values()]:
            raise PluginError(
                f"{path} holds tensors of shapes {found}; this model has {[tuple(shape) for shape in names.values()]}",
                hint=f"fetch the right file from {self.origin}",
            )
        module.load_state_dict(dict(zip(names, state.values(), strict=True)))
        return module

    def _find(self) -> Path:
        folder = os.environ.get(FOLDER)
        path = Path(folder or ".") / self.file
        if path.is_file():
            return path
        looked = f"in {folder}, the folder that {FOLDER} names" if folder else f"here, and {FOLDER} names no folder"
        raise MissingWeights(
            f"there is no {self.file} {looked}; it is published at {self.origin}",
            hint=f"fetch it and put it into the folder that {FOLDER} names, or name it: --weights DEFENSE=FILE",
        )


def _mlp() -> nn.Module:
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))


def _conv(channels: int, features: int, padding: int) -> list[nn.Module]:
    from torch import nn

    return [
        nn.Conv2d(channels, 16, 4, stride=2, padding=padding),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    ]


def _normalise(mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    """(x - mean) / std per channel."""
    import torch
    from torch import Tensor, nn

    class Normalise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
            self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return (x - self.get_buffer("mean")) / self.get_buffer("std")

    return Normalise()


@dataclass(frozen=True, kw_only=True)
class LPDMLP(Published):
    """Exactly 85.55 % robust at linf 0.1 on all 10,000 test images, by mixed-integer programming (Salman et al., 2019)."""

    file: str = "LPD_MLP_B_0.1.pth"
    origin = VERIFY

    def architecture(self) -> nn.Module:
        return _mlp()


@dataclass(frozen=True, kw_only=True)
class AdvMLP(LPDMLP):
    """Between 65.63 and 83.75 % robust at linf 0.1 (Salman et al., 2019)."""

    file: str = "ADV_MLP_B_0.1.pth"


@dataclass(frozen=True, kw_only=True)
class KWConv(Published):
    """At least 94.2 % robust at linf 0.1, and at most 95.9 % (Wong & Kolter, 2018)."""

    file: str = "kw2018_mnist.pth"
    origin = CONVEX

    def architecture(self) -> nn.Module:
        from torch import nn

        return nn.Sequential(*_conv(1, 1568, padding=1))


@dataclass(frozen=True, kw_only=True)
class AdvertorchLeNet(Published):
    """At most 93.2 % robust at linf 0.3, by the authors' 40 steps of PGD (Ding et al., 2019)."""

    file: str = "advertorch_mnist_lenet5_advtrained.pt"
    origin = ADVERTORCH

    def architecture(self) -> nn.Module:
        from torch import nn

        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3136, 200),
            nn.ReLU(),
            nn.Linear(200, 10),
        )


@dataclass(frozen=True, kw_only=True)
class KWConvL2(Published):
    """Trained to be certified at l2 36/255 (Wong et al., 2018)."""

    file: str = "kw2018scaled_l2_cifar_small_36px.pth"
    origin = CONVEX

    def architecture(self) -> nn.Module:
        from torch import nn

        return nn.Sequential(_normalise((0.485, 0.456, 0.406), (0.225, 0.225, 0.225)), *_conv(3, 2048, padding=1))


@dataclass(frozen=True, kw_only=True)
class EranConv(Published):
    """The verification benchmark's conv_small, trained with PGD for linf 2/255."""

    file: str = "abcrown_eran_cifar_conv_small_pgd.pth"
    origin = CROWN

    def architecture(self) -> nn.Module:
        from torch import nn

        return nn.Sequential(_normalise((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)), *_conv(3, 1152, padding=0))
