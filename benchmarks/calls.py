"""How attacks of other libraries are called: each function here returns ``(model, x, y, eps) -> x_adv``.

eps is the radius, inf for minimal norms. Libraries are imported when they are called.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from measure import PeerCall
from torch import Tensor, nn

from robustbench_lite.torchvision_compat import import_torchvision


def torchattacks(name: str, *, alpha: float | None = None, **options: Any) -> PeerCall:
    """``alpha``: step in units of the radius."""

    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        import torchattacks

        step = {} if alpha is None else {"alpha": alpha * eps}
        attacked: Tensor = getattr(torchattacks, name)(model, eps=eps, **step, **options)(x, y)
        return attacked

    return call


def foolbox(name: str, **options: Any) -> PeerCall:
    """``run`` is called: what wraps it only adds passes."""

    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        import foolbox

        inner = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        more = {"epsilon": eps} if math.isfinite(eps) and name != "SpatialAttack" else {}
        attacked: Tensor = getattr(foolbox.attacks, name)(**options).run(
            inner, x, foolbox.criteria.Misclassification(y), **more
        )
        return attacked

    return call


def adv_lib(module: str, name: str, **options: Any) -> PeerCall:
    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        import importlib

        import_torchvision()  # adv-lib imports it, and this torch may not be the one that it was built for
        attack = getattr(importlib.import_module(f"adv_lib.attacks.{module}"), name)
        attacked: Tensor = attack(model, x, y, **options)
        return attacked

    return call


class _Single(nn.Module):
    """ART computes in double precision; networks here do not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.float())
        return logits


def art(name: str, **options: Any) -> PeerCall:
    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        loss = nn.CrossEntropyLoss()
        shape = tuple(x.shape[1:])
        device = "gpu" if x.is_cuda else "cpu"
        classifier = PyTorchClassifier(_Single(model), loss, shape, classes, clip_values=(0.0, 1.0), device_type=device)
        attack = getattr(evasion, name)(classifier, verbose=False, **options)
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy()))

    return call


def _seed() -> int:
    """What torch's generator was seeded with for this run: pyautoattack seeds it again."""
    return torch.initial_seed() % 2**31


_NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def apgd(norm: str, steps: int, loss: str) -> PeerCall:
    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        from pyautoattack.autopgd_base import APGDAttack

        attack = APGDAttack(
            model, n_iter=steps, norm=_NORM[norm], eps=eps, loss=loss, device=x.device, use_largereps=norm == "l1", seed=_seed()
        )
        attacked: Tensor = attack.perturb(x, y)
        return attacked

    return call


def apgd_targeted(norm: str, steps: int) -> PeerCall:
    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        from pyautoattack.autopgd_base import APGDAttack_targeted

        attack = APGDAttack_targeted(
            model, n_iter=steps, norm=_NORM[norm], eps=eps, device=x.device, use_largereps=norm == "l1", seed=_seed()
        )
        attacked: Tensor = attack.perturb(x, y)
        return attacked

    return call


def fab(norm: str, steps: int, targets: int | None = None) -> PeerCall:
    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        from pyautoattack.fab_pt import FABAttack_PT

        attack = FABAttack_PT(
            model,
            norm=_NORM[norm],
            n_iter=steps,
            eps=min(eps, 1e6),  # none for minimal norms
            targeted=targets is not None,
            n_target_classes=targets or 9,
            device=x.device,
            seed=_seed(),
        )
        attacked: Tensor = attack.perturb(x, y)
        return attacked

    return call


def square(norm: str, queries: int) -> PeerCall:
    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        from pyautoattack.square import SquareAttack

        attack = SquareAttack(
            model, norm=_NORM[norm], n_queries=queries, eps=eps, resc_schedule=False, device=x.device, seed=_seed()
        )
        attacked: Tensor = attack.perturb(x, y)
        return attacked

    return call


def autoattack(norm: str) -> PeerCall:
    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        from pyautoattack import AutoAttack

        attack = AutoAttack(model, norm=_NORM[norm], eps=eps, device=x.device, seed=_seed(), version="standard")
        attack.verbose = False
        attacked: Tensor = attack.run_standard_evaluation(x, y, batch_size=len(x))[0]
        return attacked

    return call
