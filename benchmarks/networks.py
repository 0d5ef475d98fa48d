"""What attacks are measured on: a network, images that it was made for, and radii at which it is neither whole nor broken."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lite.threat import Threat
from robustbench_lite.torchvision_compat import import_torchvision

GOLDEN = Path(__file__).parents[1] / "plugins" / "rbl-attacks" / "tests"
NAMES = ("std", "at", "cnn", "allcnn", "resnet18")


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode, images x (n, C, H, W) in [0, 1] with labels y (n,), and a threat model by norm."""

    name: str
    what: str
    model: nn.Module
    x: Tensor
    y: Tensor
    threats: dict[str, str]


def subject(name: str, n: int | None, device: str) -> Subject:
    """One of ``NAMES`` with its first n images (all of them for None)."""
    made = {"std": _golden, "at": _golden, "cnn": _trained, "allcnn": _trained, "resnet18": _resnet18}[name](name, n, device)
    x, y = made.x[:n].to(device), made.y[:n].to(device)
    return Subject(made.name, made.what, made.model.to(device).eval(), x, y, made.threats)


def _golden(name: str, n: int | None, device: str) -> Subject:
    if str(GOLDEN) not in sys.path:
        sys.path.insert(0, str(GOLDEN))
    from golden_networks import network

    model, x, y = network(name)
    what = {"std": "standard training", "at": "adversarial training at linf 0.12"}[name]
    radii = {
        "std": {"linf": "linf:0.12", "l2": "l2:0.5", "l1": "l1:1.5"},
        "at": {"linf": "linf:0.12", "l2": "l2:0.6", "l1": "l1:1.5"},
    }[name]
    size = sum(p.numel() for p in model.parameters())
    return Subject(name, f"fixed network of {size:,} parameters on digits, {what}", model, x, y, radii)


def _cnn() -> nn.Module:
    """About 100,000 parameters, most of them in a dense layer: little work for so many."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 80),
        nn.ReLU(),
        nn.Linear(80, 10),
    )


def _allcnn() -> nn.Module:
    """About as many, nearly all in convolutions (as in Springenberg et al., 2015, arXiv:1412.6806)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def _trained(name: str, n: int | None, device: str) -> Subject:
    """Trained here for a few seconds: FGSM training with random starts at linf 0.15."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float()[:, None]
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:512], order[512:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = {"cnn": _cnn, "allcnn": _allcnn}[name]()
        _train(model, images[train], labels[train], eps=0.15, epochs=20)
    threats = {"linf": "linf:0.15", "l2": "l2:0.6", "l1": "l1:1.5"}
    size = sum(p.numel() for p in model.parameters())
    return Subject(
        name, f"CNN of {size:,} parameters on digits, FGSM training at linf 0.15", model, images[test], labels[test], threats
    )


def _train(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            noise = (2 * torch.rand_like(x[rows]) - 1) * eps
            leaf = (x[rows] + noise).clamp(0, 1).requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), y[rows]), leaf)
            delta = (leaf.detach() - x[rows] + 1.25 * eps * grad.sign()).clamp(-eps, eps)
            optimizer.zero_grad()
            F.cross_entropy(model((x[rows] + delta).clamp(0, 1)), y[rows]).backward()
            optimizer.step()


def _resnet18(name: str, n: int | None, device: str) -> Subject:
    """ResNet-18 for 3x32x32 with random weights: for time and passes. Labels are its answers; radii are found by bisection."""
    import_torchvision()
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = resnet18(num_classes=10)
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
        x = torch.rand(n or 512, 3, 32, 32)
    model = model.to(device).eval()
    with torch.no_grad():
        y = torch.cat([model(part.to(device)).argmax(1).cpu() for part in x.split(128)])
    some = x[:64].to(device), y[:64].to(device)
    threats = {
        norm: f"{norm}:{_half_broken(model, *some, norm, most):.4g}"
        for norm, most in (("linf", 0.1), ("l2", 5.0), ("l1", 200.0))
    }
    return Subject(name, "ResNet-18 on 3x32x32 noise, random weights, radii that halve its accuracy", model, x, y, threats)


def _half_broken(model: nn.Module, x: Tensor, y: Tensor, norm: str, most: float) -> float:
    """The radius at which ten steps of gradient ascent beat half of the examples, to a few percent."""
    low, high = 0.0, most
    for _ in range(8):
        middle = (low + high) / 2
        threat, current = Threat(norm, middle), x
        for _ in range(10):
            leaf = current.detach().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
            step = grad.sign() if norm == "linf" else grad / grad.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(1e-12)
            scale = middle if norm != "l1" else middle / 8
            current = threat.project(x, leaf.detach() + scale / 4 * step)
        with torch.no_grad():
            broken = float((model(current).argmax(1) != y).float().mean())
        low, high = (low, middle) if broken > 0.5 else (middle, high)
    return (low + high) / 2
