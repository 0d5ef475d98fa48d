"""A one-file plugin of attacks made of other attacks, sound and broken; on the toy problem of ``toy.py``.

On that problem (class by mean brightness) ``lighten`` beats the dark images and ``darken`` the bright ones, if they are near
enough to the boundary: who gets the credit is known.
"""

from __future__ import annotations

from dataclasses import dataclass

from robustbench_lite import AttackSpec, DefenseSpec, Threat, hookimpl, mean_of_logits


@hookimpl
def rbl_attacks():
    scores = {"norms": ("linf",), "access": "scores"}
    yield AttackSpec(name="team", factory="team:Team", norms=("linf", "l2"), access="scores", summary="Members in turn")
    yield AttackSpec(name="smallest", factory="team:Team", goal="minimal-norm", **scores)
    yield AttackSpec(name="nameless", factory="team:Nameless", **scores)
    yield AttackSpec(name="confused", factory="team:Confused", **scores)
    yield AttackSpec(name="lighten", factory="team:Lighten", summary="Adds eps", **scores)
    yield AttackSpec(name="darken", factory="team:Darken", norms=("linf",), access="none")
    yield AttackSpec(name="wander", factory="team:Wander", **scores)
    yield AttackSpec(name="global", factory="team:Global", global_rng=True, **scores)
    yield AttackSpec(name="gradient", factory="team:Lighten", norms=("linf",), access="gradient")
    yield AttackSpec(name="choosy", factory="team:Lighten", min_classes=3, **scores)
    yield AttackSpec(name="closest", factory="team:Closest", goal="minimal-norm", **scores)
    yield AttackSpec(name="stumbles", factory="team:Stumbles", **scores)
    yield AttackSpec(name="short", factory="team:Short", **scores)
    yield AttackSpec(name="borrows", factory="team:Borrows", norms=("linf",), access="transfer")


@hookimpl
def rbl_defenses():
    yield DefenseSpec(name="trainable", factory="team:Trainable", kind="trained")
    yield DefenseSpec(name="mean-twice", factory="team:MeanTwice")
    yield DefenseSpec(name="stairs", factory="team:MeanTwice", differentiable=False, surrogate=False)


@dataclass(frozen=True, kw_only=True)
class Team:
    attacks: tuple[str, ...] = ("team/lighten", "team/darken")

    def members(self, threat: Threat) -> tuple[str, ...]:
        return self.attacks

    def __call__(self, target, x, y, threat, rng):
        for member in target.members:
            rows = (~target.broken).nonzero()[:, 0]
            member(target.select(rows), x[rows], y[rows], threat, rng.select(rows))
        return target.best(x)


@dataclass(frozen=True, kw_only=True)
class Nameless:
    def members(self, threat):
        return ()


@dataclass(frozen=True, kw_only=True)
class Confused:
    def members(self, threat):
        raise KeyError(threat.norm)


@dataclass(frozen=True, kw_only=True)
class Lighten:
    draws: int = 1

    def __call__(self, target, x, y, threat, rng):
        for _ in range(self.draws):
            target.logits(threat.project(x, x + threat.eps))
        return x


@dataclass(frozen=True, kw_only=True)
class Darken:
    """Asks nothing: what it returns must be looked at by the core."""

    def __call__(self, target, x, y, threat, rng):
        return threat.project(x, x - threat.eps)


@dataclass(frozen=True, kw_only=True)
class Wander:
    def __call__(self, target, x, y, threat, rng):
        return threat.project(x, x + rng.uniform(None, x.shape[1:], low=-threat.eps, high=threat.eps))


@dataclass(frozen=True, kw_only=True)
class Global:
    def __call__(self, target, x, y, threat, rng):
        import torch

        return threat.project(x, x + threat.eps * (2 * torch.rand(x.shape) - 1))


@dataclass(frozen=True, kw_only=True)
class Closest:
    """The exact minimal shift, and a little more, wherever the radius ends."""

    def __call__(self, target, x, y, threat, rng):
        return (x - (x.mean((1, 2, 3), keepdim=True) - 0.5) * 1.001).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Stumbles:
    def __call__(self, target, x, y, threat, rng):
        raise ValueError("half way through")


@dataclass(frozen=True, kw_only=True)
class Short:
    def __call__(self, target, x, y, threat, rng):
        return x[:-1]


@dataclass(frozen=True, kw_only=True)
class Borrows:
    """Crafts on surrogates, and shows the target one point."""

    surrogates: tuple[str, ...] = ("team/mean-twice",)
    attack: str = "toy/shift"

    def members(self, threat):
        return (self.attack,)

    def __call__(self, target, x, y, threat, rng):
        points = target.members[0](mean_of_logits(target.surrogates), x, y, threat, rng)
        target.labels(points)
        return target.best(points)


def _module():
    from torch import nn

    class Module(nn.Module):
        def forward(self, x):
            z = (x.flatten(1).mean(1, keepdim=True) - 0.5) * 200
            return (z * z.new_tensor([-1.0, 1.0])).contiguous()

    return Module()


@dataclass(frozen=True, kw_only=True)
class MeanTwice:
    def __call__(self, info, weights):
        return _module()


@dataclass(frozen=True, kw_only=True)
class Trainable:
    def __call__(self, info, weights):
        return _module()
