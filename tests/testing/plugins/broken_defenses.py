"""Defenses that are broken in one way each, next to sound ones, and a data set of four grey levels for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_lite import DatasetBundle, DatasetInfo, DatasetSpec, DefenseSpec, hookimpl, randn_like

NAMES = ("sound", "wrong-shape", "half", "nan-on-plain", "softmax", "reversed", "counts", "in-place", "draws-unused")
NAMES += ("undeclared-noise", "batch-mean", "rounds", "autograd", "other-every-time", "not-a-module", "raises", "dropout-on")
NAMES += ("left-behind", "makes-on-the-cpu", "asks-numpy", "draws-from-numpy")


@hookimpl
def rbl_datasets():
    yield DatasetSpec(name="greys", factory="broken_defenses:Greys", summary="Four grey levels")


@hookimpl
def rbl_defenses():
    for name in NAMES:
        yield spec(name)
    yield spec("noisy", stochastic=True)
    yield spec("declared-noise", stochastic=True)
    yield spec("own-generator", stochastic=True)
    yield spec("batch-noise", stochastic=True)
    yield spec("no-surrogate", differentiable=False)
    yield spec("squeezed", differentiable=False)
    yield spec("no-gradient-at-all", differentiable=False, surrogate=False)
    yield spec("untrained", kind="trained")
    yield spec("refuses", rejects=True)
    yield spec("cannot-refuse", rejects=True)
    yield DefenseSpec(name="wrapper", factory="broken_defenses:Wrapper", kind="wrapper", summary="Passes on what it is given")


def spec(name: str, **options: object) -> DefenseSpec:
    factory = "".join(word.capitalize() for word in name.split("-"))
    return DefenseSpec(name=name, factory=f"broken_defenses:{factory}", summary=name, **options)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Greys:
    def __call__(self, root: Path) -> DatasetBundle:
        y = torch.arange(200) % 4
        noise = torch.rand((200, 1, 6, 6), generator=torch.Generator().manual_seed(0))
        x = 0.1 + 0.2 * y.view(-1, 1, 1, 1) + 0.1 * noise

        class Split:
            def __len__(self) -> int:
                return len(x)

            def __getitem__(self, i: int) -> tuple[Tensor, int]:
                return x[i], int(y[i])

        info = DatasetInfo(name="greys", classes=("black", "dark", "light", "white"), shape=(1, 6, 6))
        return DatasetBundle(info=info, test=Split(), evaluation=range(200), fingerprint="greys")


class Grey(nn.Module):
    """The nearest of four grey levels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor([0.15, 0.35, 0.55, 0.75]))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(-100 * (self.before(x).flatten(1).mean(1, keepdim=True) - self.get_buffer("levels")).square(), x)

    def before(self, x: Tensor) -> Tensor:
        return x

    def after(self, logits: Tensor, x: Tensor) -> Tensor:
        return logits


def defense(module: type[nn.Module]):
    @dataclass(frozen=True, kw_only=True)
    class Factory:
        def __call__(self, info, weights):
            return module()

    return Factory


Sound = Untrained = DeclaredNoise = NoSurrogate = NoGradientAtAll = CannotRefuse = defense(Grey)


@defense
class WrongShape(Grey):
    def after(self, logits, x):
        return logits[:, :3]


@defense
class Half(Grey):
    def after(self, logits, x):
        return logits.half()


@defense
class NanOnPlain(Grey):
    def after(self, logits, x):
        centred = x.flatten(1) - x.flatten(1).mean(1, keepdim=True)
        contrast = centred / centred.abs().amax(1, keepdim=True)
        return logits + 1e-3 * contrast[:, :1]


@defense
class Softmax(Grey):
    def after(self, logits, x):
        return logits.softmax(1)


@defense
class Reversed(Grey):
    def after(self, logits, x):
        return logits.flip(1)


@defense
class Counts(Grey):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def before(self, x):
        self.get_buffer("passes").add_(1)
        return x


@defense
class DropoutOn(Grey):
    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Identity()

    def eval(self):
        super().eval()
        self.noise.train()
        return self


@defense
class InPlace(Grey):
    def before(self, x):
        x.data.clamp_(0.2, 0.8)
        return x


@defense
class DrawsUnused(Grey):
    def before(self, x):
        torch.rand(1)
        return x


@defense
class DrawsFromNumpy(Grey):
    def before(self, x):
        return x + 1e-9 * float(np.random.rand())


@defense
class UndeclaredNoise(Grey):
    def after(self, logits, x):
        return logits + 0.01 * torch.randn_like(logits)


@defense
class BatchMean(Grey):
    def after(self, logits, x):
        return logits + 0.1 * x.mean()


@defense
class Rounds(Grey):
    def before(self, x):
        return (x * 16).round() / 16


@defense
class Autograd(Grey):
    def before(self, x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            torch.autograd.grad(leaf.square().sum(), leaf)
        return x


@defense
class OtherEveryTime(Grey):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", 1e-3 * torch.randn(4))

    def after(self, logits, x):
        return logits + self.get_buffer("bias")


@defense
class NotAModule:  # type: ignore[arg-type]
    pass


@defense
class Raises(Grey):
    def __init__(self) -> None:
        raise OSError("no such file")


@defense
class Noisy(Grey):
    def after(self, logits, x):
        return logits + 0.1 * randn_like(logits)


@defense
class BatchNoise(Grey):
    def after(self, logits, x):
        return logits + 0.1 * torch.randn_like(logits)


@defense
class OwnGenerator(Grey):
    def __init__(self) -> None:
        super().__init__()
        self.draws = 0

    def after(self, logits, x):
        GENERATOR.manual_seed(len(SEEN))
        SEEN.append(1)
        return logits + 0.1 * torch.randn(logits.shape, generator=GENERATOR).to(logits.device)


GENERATOR, SEEN = torch.Generator(), []


@defense
class LeftBehind(Grey):
    """A tensor that is neither a parameter nor a buffer stays where it is when the module is moved."""

    def __init__(self):
        super().__init__()
        self.mean = torch.tensor([0.0])

    def before(self, x):
        return x - self.mean


@defense
class MakesOnTheCpu(Grey):
    def before(self, x):
        return x * torch.ones(x.shape[2:])


@defense
class AsksNumpy(Grey):
    def after(self, logits, x):
        return logits + torch.from_numpy(0 * logits.detach().numpy()).to(logits.device)


@defense
class Squeezed(Grey):
    def before(self, x):
        return (x * 16).round() / 16

    def surrogate(self, x):
        return Grey().to(x.device)(x)


@defense
class Refuses(Grey):
    def after(self, logits, x):
        return torch.cat([logits, torch.full_like(logits[:, :1], -50.0)], 1)


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    base: str = "broken-defenses/untrained"

    def __call__(self, info, base):
        return nn.Sequential(base)
