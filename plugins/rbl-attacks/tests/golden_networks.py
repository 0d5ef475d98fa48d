"""Two fixed networks for digits, and how attacks do on them; see golden/README.md for whose figures tests compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robustbench_lite import Randomness, Target, Threat
from robustbench_lite.judge import Judge
from robustbench_lite.testing import make_target

Attack = Callable[[Target, Tensor, Tensor, Threat, Randomness], Tensor]

EXAMPLE = 1 / 400


@cache
def fixture(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network ``std`` or ``at``, and those of the 400 test images that it classifies correctly."""
    model, x, y = network(name)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    return model, x[right], y[right]


@cache
def network(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network ``std`` or ``at``, and all 400 test images."""
    stored = np.load(Path(__file__).parent / "golden" / f"digits_{name}.npz")
    layers: dict[str, nn.Conv2d | nn.Linear] = {
        "c1": nn.Conv2d(1, 16, 3, padding=1),
        "c2": nn.Conv2d(16, 32, 3, stride=2, padding=1),
        "f1": nn.Linear(512, 64),
        "f2": nn.Linear(64, 10),
    }
    for key, layer in layers.items():
        layer.load_state_dict({part: torch.from_numpy(stored[f"{key}.{part}"]) for part in ("weight", "bias")})
    c1, c2, f1, f2 = layers.values()
    model = nn.Sequential(c1, nn.ReLU(), c2, nn.ReLU(), nn.Flatten(), f1, nn.ReLU(), f2).eval()
    digits = load_digits()
    x = torch.from_numpy(digits.images[stored["test_index"]] / 16).float()[:, None]
    return model, x, torch.from_numpy(digits.target[stored["test_index"]]).long()


class Affine(nn.Module):
    """Logits of a model times a factor, plus a constant."""

    def __init__(self, base: nn.Module, factor: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.base, self.factor, self.shift = base, factor, shift

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(x)
        return self.factor * logits + self.shift


def robust_accuracy(
    name: str, threat: str, attack: Attack, *, access: str = "gradient", seed: int = 0, device: str = "cpu"
) -> float:
    """Judged afresh, as a share of the 400 examples."""
    model, x, y = fixture(name)
    model, x, y = copy.deepcopy(model).to(device), x.to(device), y.to(device)
    limits = Threat.parse(threat)
    target, rng = make_target(model, x, y, limits, access=access, seed=seed)
    x_adv = attack(target, x, y, limits, rng)
    assert limits.contains(x, x_adv).all()
    assert limits.in_box(x_adv).all()
    with torch.no_grad():
        return int((model(x_adv).argmax(1) == y).sum()) * EXAMPLE


def judged_sizes(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """(n,) sizes as the core would store them: of the proposed point, or of a smaller one that the target saw; inf for none."""
    target, rng = make_target(model, x, y, threat, goal="minimal-norm")
    x_adv = attack(target, x, y, threat, rng)
    judge = Judge(target._deployed, x, y, torch.arange(len(x)), passes=1, key="judge")
    return torch.from_numpy(judge.judge(target._ledger, x_adv, threat).arrays["size"])


def minimal_sizes(
    name: str, norm: str, attack: Attack, *, access: str = "gradient", seed: int = 0, rows: slice | Tensor = slice(None)
) -> Tensor:
    """Judged afresh: (n,) size of each perturbation found on the correct examples, inf where there is none."""
    model, x, y = fixture(name)
    x, y, limits = x[rows], y[rows], Threat.parse(norm)
    target, rng = make_target(model, x, y, limits, access=access, seed=seed, goal="minimal-norm")
    x_adv = attack(target, x, y, limits, rng)
    assert limits.in_box(x_adv).all()
    with torch.no_grad():
        beaten = model(x_adv).argmax(1) != y
    assert (beaten | (x_adv == x).flatten(1).all(1)).all(), "where nothing was found, the clean image comes back"
    return torch.where(beaten, limits.size(x, x_adv), torch.inf)
