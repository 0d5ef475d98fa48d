"""A one-file plugin of defenses, and an attack, that something is wrong with: for tests of ``rbl run`` and ``rbl diagnose``.

``$FLAGGED_LOG`` names a file that gets a line for every forward pass in double precision: the finite differences of D11.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from robustbench_lite import AttackSpec, DefenseSpec, hookimpl


@hookimpl
def rbl_defenses():
    yield DefenseSpec(name="sound", factory="flagged:Grey", summary="Class by mean brightness")
    yield DefenseSpec(name="coarse", factory="flagged:Coarse", summary="The same of an image with fifty grey levels")
    yield DefenseSpec(name="deadly", factory="flagged:Deadly", summary="Ends the process in double precision")
    yield DefenseSpec(name="brittle", factory="flagged:Brittle", summary="Raises in double precision")
    yield DefenseSpec(name="lazy", factory="flagged:Lazy", summary="Cannot be built")


@hookimpl
def rbl_attacks():
    yield AttackSpec(name="far", factory="flagged:Far", norms=("linf",), access="none", summary="Ten times as far as it may")


@dataclass(frozen=True, kw_only=True)
class Far:
    def __call__(self, target, x, y, threat, rng):
        return (x + 10 * threat.eps).clamp(0, 1)


def _module(levels: int = 0, double: str = ""):
    import torch
    from torch import nn

    class Module(nn.Module):
        def forward(self, x):
            if x.dtype == torch.float64:
                if log := os.environ.get("FLAGGED_LOG"):
                    with open(log, "a") as file:
                        file.write(f"{os.getpid()}\n")
                if double == "exit":
                    os._exit(7)
                if double == "raise":
                    raise ValueError("only in single precision")
            seen = (levels * x).round() / levels if levels else x
            z = (seen.flatten(1).mean(1, keepdim=True) - 0.5) * 50
            return (z * z.new_tensor([-1.0, 1.0])).contiguous()

    return Module()


@dataclass(frozen=True, kw_only=True)
class Grey:
    def __call__(self, info, weights):
        return _module()


@dataclass(frozen=True, kw_only=True)
class Coarse:
    def __call__(self, info, weights):
        return _module(levels=50)


@dataclass(frozen=True, kw_only=True)
class Deadly:
    def __call__(self, info, weights):
        return _module(double="exit")


@dataclass(frozen=True, kw_only=True)
class Brittle:
    def __call__(self, info, weights):
        return _module(double="raise")


@dataclass(frozen=True, kw_only=True)
class Lazy:
    def __call__(self, info, weights):
        raise ValueError("later")
