"""The table of comparisons: one row per attack, norm and peer. Peers are imported when a row is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import calls
from measure import PeerCall


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison. ours: our selector, given the radius (inf for minimal norms). norm: of the threat model.

    peer: the library (``rbl`` for a comparison within our own battery, with ``call`` a selector). call: its attack, as
    ``(model, x, y, eps) -> x_adv``. n: at most so many examples, for attacks that need thousands of queries. note: what
    a reader should know.
    """

    ours: Callable[[float], str]
    norm: str
    peer: str
    call: PeerCall | str
    minimal: bool = False
    n: int | None = None
    note: str = ""

    def selector(self, eps: float) -> str:
        """Our side, with parameters."""
        return self.ours(eps)

    @property
    def name(self) -> str:
        """``pgd/l2/foolbox``, for --rows and for messages."""
        return f"{self.ours(1.0).partition('[')[0]}/{self.norm}/{self.peer}"


def fixed(text: str) -> Callable[[float], str]:
    """A selector that does not depend on the radius."""
    return lambda eps: text


def rows(*, quick: bool = False) -> Iterator[Row]:
    """All comparisons. quick: so few steps that everything runs within a minute or two."""

    def few(full: int, small: int) -> int:
        return small if quick else full

    yield from _one_step_and_projected(few(10, 2), few(40, 3))
    yield from _auto(few(100, 3), few(1000, 20), quick=quick)
    yield from _penalties(few(500, 10), few(9, 2))
    yield from _minimal(few(200, 10), few(500, 10), few(50, 10))
    yield from _black_box(quick=quick)
    yield from _other(quick=quick)


# ----------------------------------------------------------------------------------------------- fixed budget, gradients


def _one_step_and_projected(short: int, long: int) -> Iterator[Row]:
    def bim(eps: float) -> str:
        return f"bim[steps={short},step={eps / 4:.6g}]"

    def pgd(eps: float) -> str:
        return f"pgd[steps={long},step={eps / 10:.6g},finish=false]"

    def mifgsm(eps: float) -> str:
        return f"mifgsm[steps={short},step={eps / 10:.6g}]"

    yield Row(ours=fixed("fgsm"), norm="linf", peer="torchattacks", call=calls.torchattacks("FGSM"))
    yield Row(ours=fixed("fgsm"), norm="linf", peer="foolbox", call=calls.foolbox("LinfFastGradientAttack"))
    yield Row(ours=fixed("fgsm"), norm="l2", peer="foolbox", call=calls.foolbox("L2FastGradientAttack"))
    yield Row(ours=fixed("fgsm"), norm="l1", peer="foolbox", call=calls.foolbox("L1FastGradientAttack"))
    yield Row(ours=bim, norm="linf", peer="torchattacks", call=calls.torchattacks("BIM", alpha=0.25, steps=short))
    yield Row(
        ours=bim, norm="linf", peer="foolbox", call=calls.foolbox("LinfBasicIterativeAttack", rel_stepsize=0.25, steps=short)
    )
    yield Row(ours=bim, norm="l2", peer="foolbox", call=calls.foolbox("L2BasicIterativeAttack", rel_stepsize=0.25, steps=short))
    yield Row(ours=pgd, norm="linf", peer="torchattacks", call=calls.torchattacks("PGD", alpha=0.1, steps=long))
    yield Row(ours=pgd, norm="l2", peer="torchattacks", call=calls.torchattacks("PGDL2", alpha=0.1, steps=long))
    yield Row(ours=pgd, norm="linf", peer="foolbox", call=calls.foolbox("LinfPGD", rel_stepsize=0.1, steps=long))
    yield Row(ours=pgd, norm="l2", peer="foolbox", call=calls.foolbox("L2PGD", rel_stepsize=0.1, steps=long))
    yield Row(
        ours=pgd,
        norm="l1",
        peer="foolbox",
        call=calls.foolbox("SparseL1DescentAttack", rel_stepsize=0.1, steps=long, quantile=0.99, random_start=True),
        note="the peer's projection treats the batch as one",
    )
    yield Row(ours=mifgsm, norm="linf", peer="torchattacks", call=calls.torchattacks("MIFGSM", alpha=0.1, steps=short))


def _auto(steps: int, queries: int, *, quick: bool) -> Iterator[Row]:
    """The members of AutoAttack and the whole, against the port of auto-attack."""
    for norm in ("linf", "l2", "l1"):
        for name, loss in (("apgd-ce", "ce"), ("apgd-dlr", "dlr")):
            ours = f"{name}[steps={steps},finish=false]"
            if norm == "l1" and name == "apgd-ce":
                ours = f"apgd-ce[steps={steps},finish=false,larger_radii=true]"
            yield Row(ours=fixed(ours), norm=norm, peer="pyautoattack", call=calls.apgd(norm, steps, loss))
        yield Row(
            ours=fixed(f"apgd-t[steps={steps},finish=false]"),
            norm=norm,
            peer="pyautoattack",
            call=calls.apgd_targeted(norm, steps),
        )
        yield Row(ours=fixed(f"fab[steps={steps}]"), norm=norm, peer="pyautoattack", call=calls.fab(norm, steps))
        yield Row(ours=fixed(f"fab-t[steps={steps}]"), norm=norm, peer="pyautoattack", call=calls.fab(norm, steps, targets=9))
        yield Row(ours=fixed(f"square[queries={queries}]"), norm=norm, peer="pyautoattack", call=calls.square(norm, queries))
        if not quick:
            yield Row(ours=fixed("autoattack"), norm=norm, peer="pyautoattack", call=calls.autoattack(norm))
    yield Row(ours=fixed(f"fab[steps={steps}]"), norm="linf", minimal=True, peer="pyautoattack", call=calls.fab("linf", steps))
    yield Row(ours=fixed(f"fab[steps={steps}]"), norm="l2", minimal=True, peer="pyautoattack", call=calls.fab("l2", steps))
    yield Row(ours=fixed(f"fab[steps={steps}]"), norm="l1", minimal=True, peer="pyautoattack", call=calls.fab("l1", steps))


# ---------------------------------------------------------------------------------------------- minimal norm, gradients


def _penalties(steps: int, searches: int) -> Iterator[Row]:
    yield Row(
        ours=fixed(f"cw-l2[steps={steps},search_steps={searches}]"),
        norm="l2",
        minimal=True,
        peer="foolbox",
        call=calls.foolbox("L2CarliniWagnerAttack", steps=steps, binary_search_steps=searches),
    )
    yield Row(
        ours=fixed(f"ead[steps={steps},search_steps={searches},beta=0.01,rule=l1]"),
        norm="l1",
        minimal=True,
        peer="foolbox",
        call=calls.foolbox("EADAttack", steps=steps, binary_search_steps=searches, regularization=1e-2, decision_rule="L1"),
    )


def _minimal(middle: int, long: int, deepfool: int) -> Iterator[Row]:
    def row(ours: str, norm: str, peer: str, call: PeerCall, note: str = "") -> Row:
        return Row(ours=fixed(ours), norm=norm, peer=peer, call=call, minimal=True, note=note)

    yield row(f"deepfool[steps={deepfool}]", "l2", "foolbox", calls.foolbox("L2DeepFoolAttack", steps=deepfool))
    yield row(f"deepfool[steps={deepfool}]", "linf", "foolbox", calls.foolbox("LinfDeepFoolAttack", steps=deepfool))
    yield row(f"deepfool[steps={deepfool}]", "l2", "adv-lib", calls.adv_lib("deepfool", "df", steps=deepfool, norm=2.0))
    yield row(f"ddn[steps={middle}]", "l2", "foolbox", calls.foolbox("DDNAttack", steps=middle))
    yield row(
        f"ddn[steps={middle}]", "l2", "adv-lib", calls.adv_lib("decoupled_direction_norm", "ddn", steps=middle, levels=None)
    )
    for norm, order, name in (("linf", math.inf, "LInf"), ("l2", 2, "L2"), ("l1", 1, "L1"), ("l0", 0, "L0")):
        ours, known = f"fmn[steps={middle}]", "the peer's projection onto the l2 ball does nothing" if norm == "l2" else ""
        yield row(ours, norm, "adv-lib", calls.adv_lib("fast_minimum_norm", "fmn", steps=middle, norm=order))
        yield row(ours, norm, "foolbox", calls.foolbox(f"{name}FMNAttack", steps=middle), known)
    for norm in ("l2", "l1"):
        call = calls.adv_lib("augmented_lagrangian", "alma", num_steps=long, distance=norm)
        yield row(f"alma[steps={long}]", norm, "adv-lib", call)
    yield row(f"sigma-zero[steps={long}]", "l0", "adv-lib", calls.adv_lib("sigma_zero", "sigma_zero", num_steps=long))


# ------------------------------------------------------------------------------------------------ without the gradient


def _black_box(*, quick: bool) -> Iterator[Row]:
    steps, samples = (2, 16) if quick else (20, 128)
    yield Row(
        ours=fixed(f"spsa[steps={steps},samples={2 * samples}]"),
        norm="linf",
        peer="torchattacks",
        n=100,
        call=calls.torchattacks("SPSA", nb_iter=steps, nb_sample=samples, max_batch_size=samples),
        note="of the peer's pixels, all channels share a sign",
    )
    walk, jumps = (20, 1) if quick else (1000, 10)
    yield Row(
        ours=fixed(f"boundary[steps={walk}]"),
        norm="l2",
        minimal=True,
        peer="foolbox",
        n=40,
        call=calls.foolbox("BoundaryAttack", steps=walk),
    )
    for norm in ("l2", "linf"):
        yield Row(
            ours=fixed(f"hop-skip-jump[steps={jumps}]"),
            norm=norm,
            minimal=True,
            peer="foolbox",
            n=40,
            call=calls.foolbox("HopSkipJumpAttack", steps=jumps, constraint=norm),
        )
        yield Row(
            ours=fixed(f"hop-skip-jump[steps={jumps}]"),
            norm=norm,
            minimal=True,
            peer="adversarial-robustness-toolbox",
            n=40,
            call=calls.art("HopSkipJump", max_iter=jumps, norm=2 if norm == "l2" else "inf"),
        )


def _other(*, quick: bool) -> Iterator[Row]:
    """Noise; rotations; and a3, alone and with a short square after it, which has no peer, against our own autoattack."""
    draws = 10 if quick else 100
    yield Row(
        ours=fixed(f"repeated-noise[draws={draws}]"),
        norm="linf",
        peer="foolbox",
        call=calls.foolbox("LinfRepeatedAdditiveUniformNoiseAttack", repeats=draws),
    )
    turns = 3 if quick else 31
    yield Row(
        ours=fixed("rotation-translation[degrees=30,pixels=1,samples=grid]"),
        norm="unrestricted",
        peer="foolbox",
        call=calls.foolbox("SpatialAttack", max_rotation=30, num_rotations=turns, max_translation=1, num_translations=5),
        note="grids of 31 x 5 x 5" + (" and 3 x 5 x 5" if quick else ""),
    )
    if not quick:
        for norm in ("linf", "l2"):
            for ours in ("a3", "autoattack[version=custom,attacks=[a3,square[queries=1500,rescale=true]]]"):
                yield Row(ours=fixed(ours), norm=norm, peer="rbl", call="autoattack", note="peer: our own autoattack")
