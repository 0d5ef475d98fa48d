"""An entry module that imports torch, and a hook that breaks after its first object."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robustbench_lite import AttackSpec, hookimpl


@hookimpl
def rbl_attacks():
    yield AttackSpec(name="noise", factory="slow_attack:Noise", norms=("linf",), access="none", summary="Noise")
    raise RuntimeError("and nothing more")


@dataclass(frozen=True, kw_only=True)
class Noise:
    def __call__(self, target, x, y, threat, rng):
        return threat.project(x, x + threat.eps * torch.sign(rng.normal(None, x.shape[1:])))
