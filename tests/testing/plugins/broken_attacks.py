"""Attacks that are broken in one way each, next to sound ones: what the conformance suite must tell apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from robustbench_lite import AttackSpec, BudgetExceeded, hookimpl

GRADIENT = ("Raises", "WrongShape", "Float64", "NotATensor", "SquareImagesOnly", "SeveralOnly", "ThreeClasses", "ReturnsNaN")
GRADIENT += ("LeavesBox", "LeavesBall", "Irreproducible", "DrawsGlobally", "BatchMean", "InPlace", "Trains", "Tampers")
GRADIENT += ("LeavesGradOff", "Weak", "DividesByZero", "ChokesOnNaN", "WantsDeterminism", "SwallowsBudget", "Unattributed")
GRADIENT += ("Exits", "RelabelsInPlace", "NotFrozen", "BadDefault", "Sound", "CountsOnTheCPU", "AsksNumPy", "DrawsOnTheCPU")
GRADIENT += ("QueriesFromTheCPU",)


@hookimpl
def rbl_attacks():
    for name in GRADIENT:
        yield spec(name, access="gradient")
    yield spec("TooMuchAccess", access="scores")
    yield spec("Persistent", access="scores", norms=("linf",))
    yield spec("Endless", access="scores")
    yield spec("LinfOnly", access="gradient", norms=("linf", "l2"))
    yield spec("GloballyRandom", access="none", global_rng=True)
    yield spec("Minimal", access="gradient", norms=("l2",), goal="minimal-norm")
    yield spec("FarMinimal", access="gradient", norms=("l2",), goal="minimal-norm")
    yield spec("MinClasses", factory="ThreeClasses", access="gradient", min_classes=3)
    yield AttackSpec(name="nosummary", factory="broken_attacks:Sound", norms=("linf",), access="gradient")


def spec(name: str, factory: str = "", norms: tuple[str, ...] = ("linf", "l2"), **options: Any) -> AttackSpec:
    factory = f"broken_attacks:{factory or name}"
    return AttackSpec(name=name.lower(), factory=factory, norms=norms, summary=name, **options)


@dataclass(frozen=True, kw_only=True)
class Sound:
    """One step of steepest ascent from a random point nearby: optimal on linear models."""

    def __call__(self, target, x, y, threat, rng):
        return self.found(target, x, y, threat, rng)

    def found(self, target, x, y, threat, rng):
        from robustbench_lite import losses

        start = threat.project(x, x + rng.uniform(None, x.shape[1:], low=-1e-3, high=1e-3))
        _, _, gradient = target.loss_and_grad(start, losses.margin, y)
        x_adv = threat.project(x, x + threat.eps * self.direction(gradient, threat))
        target.logits(x_adv)
        return x_adv

    def direction(self, gradient, threat):
        if threat.norm == "linf":
            return gradient.sign()
        return gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class TooMuchAccess(Sound):
    pass


@dataclass(frozen=True, kw_only=True)
class Persistent:
    """Random points until all is found, or queries are used up: more of them than the suite allows where nothing is found."""

    queries: int = 510

    def __call__(self, target, x, y, threat, rng):
        for query in range(self.queries):
            left = (~target.broken).nonzero()[:, 0]
            if not len(left):
                break
            far = threat.eps * rng.normal(left, x.shape[1:], draw=query)
            target.logits(threat.project(x[left], x[left] + far), index=left)
        return target.best(x)


@dataclass(frozen=True, kw_only=True)
class Endless(Persistent):
    queries: int = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Raises(Sound):
    def __call__(self, target, x, y, threat, rng):
        raise ValueError("no luck")


@dataclass(frozen=True, kw_only=True)
class Exits(Sound):
    def __call__(self, target, x, y, threat, rng):
        raise SystemExit(3)


@dataclass(frozen=True, kw_only=True)
class LinfOnly(Sound):
    def direction(self, gradient, threat):
        return {"linf": gradient.sign()}[threat.norm]


@dataclass(frozen=True, kw_only=True)
class WrongShape(Sound):
    def __call__(self, target, x, y, threat, rng):
        return self.found(target, x, y, threat, rng).flatten(1)


@dataclass(frozen=True, kw_only=True)
class Float64(Sound):
    def __call__(self, target, x, y, threat, rng):
        return self.found(target, x, y, threat, rng).double()


@dataclass(frozen=True, kw_only=True)
class NotATensor(Sound):
    def __call__(self, target, x, y, threat, rng):
        return self.found(target, x, y, threat, rng).cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class SquareImagesOnly(Sound):
    def __call__(self, target, x, y, threat, rng):
        return self.found(target, x, y, threat, rng).view(len(x), -1, x.shape[2], x.shape[2])


@dataclass(frozen=True, kw_only=True)
class SeveralOnly(Sound):
    def __call__(self, target, x, y, threat, rng):
        return self.found(target, x, y, threat, rng).squeeze(0)


@dataclass(frozen=True, kw_only=True)
class ThreeClasses(Sound):
    def __call__(self, target, x, y, threat, rng):
        from robustbench_lite import losses

        losses.dlr(target.logits(x), y)
        return self.found(target, x, y, threat, rng)


@dataclass(frozen=True, kw_only=True)
class MinClasses(ThreeClasses):
    pass


@dataclass(frozen=True, kw_only=True)
class ReturnsNaN(Sound):
    def __call__(self, target, x, y, threat, rng):
        x_adv = self.found(target, x, y, threat, rng).clone()
        x_adv[:, 0, 0, 0] = float("nan")
        return x_adv


@dataclass(frozen=True, kw_only=True)
class LeavesBox(Sound):
    def __call__(self, target, x, y, threat, rng):
        x_adv = self.found(target, x, y, threat, rng)
        return x_adv + (x_adv == 1) * 1e-3 * threat.eps


@dataclass(frozen=True, kw_only=True)
class LeavesBall(Sound):
    def __call__(self, target, x, y, threat, rng):
        x_adv = self.found(target, x, y, threat, rng)
        return (x + 1.2 * (x_adv - x)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Irreproducible(Sound):
    def __call__(self, target, x, y, threat, rng):
        import torch

        generator = torch.Generator()
        generator.seed()
        x_adv = self.found(target, x, y, threat, rng)
        return x + (x_adv - x) * torch.rand((len(x), 1, 1, 1), generator=generator).to(x.device)


@dataclass(frozen=True, kw_only=True)
class DrawsGlobally(Sound):
    """Its points depend on the order of the batch, through torch's generator."""

    def __call__(self, target, x, y, threat, rng):
        import torch

        x_adv = self.found(target, x, y, threat, rng)
        return x + (x_adv - x) * torch.rand((len(x), 1, 1, 1), device=x.device)


@dataclass(frozen=True, kw_only=True)
class BatchMean(Sound):
    def __call__(self, target, x, y, threat, rng):
        x_adv = self.found(target, x, y, threat, rng)
        return x + (x_adv - x) * x_adv.mean()


@dataclass(frozen=True, kw_only=True)
class CountsOnTheCPU(Sound):
    """This one and the next three would run on a CPU only."""

    def direction(self, gradient, threat):
        import torch

        found = super().direction(gradient, threat)
        return found.index_select(0, torch.arange(len(found)))


@dataclass(frozen=True, kw_only=True)
class AsksNumPy(Sound):
    def direction(self, gradient, threat):
        import numpy as np
        import torch

        found = super().direction(gradient, threat)
        return torch.from_numpy(np.ascontiguousarray(found.numpy())).to(gradient.device)


@dataclass(frozen=True, kw_only=True)
class DrawsOnTheCPU(Sound):
    def direction(self, gradient, threat):
        import torch

        noise = 1e-4 * torch.rand(1, *gradient.shape[1:], generator=torch.Generator().manual_seed(0))
        return super().direction(gradient, threat) * (1 - noise)


@dataclass(frozen=True, kw_only=True)
class QueriesFromTheCPU(Sound):
    def __call__(self, target, x, y, threat, rng):
        x_adv = self.found(target, x, y, threat, rng)
        target.logits(x_adv.cpu())
        return x_adv


@dataclass(frozen=True, kw_only=True)
class InPlace(Sound):
    def __call__(self, target, x, y, threat, rng):
        x_adv = self.found(target, x, y, threat, rng)
        x.copy_(x_adv)
        return x


@dataclass(frozen=True, kw_only=True)
class RelabelsInPlace(Sound):
    def __call__(self, target, x, y, threat, rng):
        x_adv = self.found(target, x, y, threat, rng)
        y.fill_(0)
        return x_adv


@dataclass(frozen=True, kw_only=True)
class Trains(Sound):
    def __call__(self, target, x, y, threat, rng):
        target._deployed.module.train()
        return self.found(target, x, y, threat, rng)


@dataclass(frozen=True, kw_only=True)
class Tampers(Sound):
    """Turns the model round behind the target's back, so that clean images are misclassified."""

    def __call__(self, target, x, y, threat, rng):
        for parameter in target._deployed.module.parameters():
            parameter.neg_()
        return self.found(target, x, y, threat, rng)


@dataclass(frozen=True, kw_only=True)
class LeavesGradOff(Sound):
    def __call__(self, target, x, y, threat, rng):
        import torch

        x_adv = self.found(target, x, y, threat, rng)
        torch.set_grad_enabled(False)
        return x_adv


@dataclass(frozen=True, kw_only=True)
class Weak(Sound):
    def direction(self, gradient, threat):
        return -Sound.direction(self, gradient, threat)


@dataclass(frozen=True, kw_only=True)
class DividesByZero(Sound):
    def direction(self, gradient, threat):
        if bool((gradient.flatten(1).norm(dim=1) == 0).any()):
            raise ZeroDivisionError("a gradient is zero")
        return Sound.direction(self, gradient, threat)


@dataclass(frozen=True, kw_only=True)
class ChokesOnNaN(Sound):
    def direction(self, gradient, threat):
        if bool(gradient.isnan().any()):
            raise FloatingPointError("a gradient is NaN")
        return Sound.direction(self, gradient, threat)


@dataclass(frozen=True, kw_only=True)
class WantsDeterminism(Sound):
    def __call__(self, target, x, y, threat, rng):
        if not bool((target.logits(x) == target.logits(x)).all()):
            raise RuntimeError("two answers differ")
        return self.found(target, x, y, threat, rng)


@dataclass(frozen=True, kw_only=True)
class SwallowsBudget(Sound):
    def __call__(self, target, x, y, threat, rng):
        try:
            for _ in range(20):
                target.logits(x)
        except BudgetExceeded as error:
            raise KeyError("out of queries") from error
        return self.found(target, x, y, threat, rng)


@dataclass(frozen=True, kw_only=True)
class Unattributed(Sound):
    def __call__(self, target, x, y, threat, rng):
        import torch

        target.logits(torch.cat([x, x]))
        return self.found(target, x, y, threat, rng)


@dataclass(kw_only=True)
class NotFrozen:
    def __call__(self, target, x, y, threat, rng):
        return Sound()(target, x, y, threat, rng)


@dataclass(frozen=True, kw_only=True)
class BadDefault(Sound):
    steps: Annotated[int, Field(ge=1)] = 0


@dataclass(frozen=True, kw_only=True)
class GloballyRandom:
    """A wrapped library, as it were: it draws from torch's generator and says so."""

    def __call__(self, target, x, y, threat, rng):
        import torch

        return threat.project(x, x + threat.eps * torch.randn_like(x))


@dataclass(frozen=True, kw_only=True)
class Minimal:
    """Newton's method on the margin: on a linear model it lands on the boundary, up to the box."""

    overshoot: float = 1.02

    def __call__(self, target, x, y, threat, rng):
        from robustbench_lite import losses

        x_adv = x.clone()
        for _ in range(10):
            _, loss, gradient = target.loss_and_grad(x_adv, losses.margin, y)
            square = gradient.flatten(1).square().sum(1).clamp_min(1e-12)
            step = ((self.overshoot * -loss).clamp_min(0) + 1e-4) / square
            x_adv = (x_adv + step.view(-1, 1, 1, 1) * gradient).clamp(0, 1)
        return x_adv


@dataclass(frozen=True, kw_only=True)
class FarMinimal(Minimal):
    overshoot: float = 30.0
