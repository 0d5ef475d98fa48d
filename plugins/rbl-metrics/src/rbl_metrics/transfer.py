"""How examples that were crafted on one defense do on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rbl_metrics.checks import beaten, require_attacked
from robustbench_lite import CellResult, Threat, UsageError


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Success rates (S, T) of examples crafted on the source of the row, on the target of the column; nan where not run.

    Over the examples that the target classifies correctly. The diagonal is the white-box attack.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    success: npt.NDArray[np.float64]

    @property
    def mean_transfer(self) -> float:
        """Mean over all pairs of different defenses; nan for none."""
        known = self.success[self._different() & ~np.isnan(self.success)]
        return float(known.mean()) if len(known) else float("nan")

    @property
    def hardest_target(self) -> str:
        """The target on which examples of other defenses succeed least, by their mean. Raises UsageError for none."""
        others = np.where(self._different(), self.success, np.nan)
        measured = [j for j in range(len(self.targets)) if not np.isnan(others[:, j]).all()]
        if not measured:
            raise UsageError("no result of an attack that was crafted on another defense", hint="rbl run --attack transfer")
        return self.targets[min(measured, key=lambda j: float(np.nanmean(others[:, j])))]

    @property
    def transferability(self) -> npt.NDArray[np.float64]:
        """(S, T) success on the target over success of the white-box attack on the source; nan where that is 0 or not known."""
        own = np.full(len(self.sources), np.nan)
        for i, source in enumerate(self.sources):
            if source in self.targets:
                own[i] = self.success[i, self.targets.index(source)]
        return np.asarray(self.success / np.where(own > 0, own, np.nan)[:, None])

    def _different(self) -> npt.NDArray[np.bool_]:
        return np.array([[source != target for target in self.targets] for source in self.sources])


def transfer_matrix(cells: Sequence[CellResult], threat: Threat, *, where_source_fell: bool = False) -> Transfer:
    """Success rates by source and target.

    cells: results of one white-box attack on each defense, and of the same attack crafted on one other defense each (a stored
    attack with one surrogate), all over the same examples. where_source_fell: only over examples that the white-box attack
    on the source beats, too.

    Raises UsageError where a pair stands twice, an attack has several surrogates or searched less than ``threat``, examples
    differ, or the white-box result of a source is missing that ``where_source_fell`` needs.
    """
    require_attacked(cells, threat)
    found: dict[tuple[str, str], CellResult] = {}
    for cell in cells:
        crafted = cell.spec["attack"].get("surrogates", ())
        if len(crafted) > 1:
            raise UsageError(f"{cell.label} was crafted on {len(crafted)} defenses at once, and has no one source")
        target = cell.spec["defense"]["label"]
        pair = (crafted[0]["label"] if crafted else target, target)
        if pair in found:
            raise UsageError(f"{cell.label} and {found[pair].label} are both crafted on {pair[0]}", hint="give one of them")
        found[pair] = cell
    sources, targets = (tuple(dict.fromkeys(pair[i] for pair in found)) for i in (0, 1))
    success = np.full((len(sources), len(targets)), np.nan)
    for (source, target), cell in found.items():
        counted = cell.arrays["clean_correct"]
        if where_source_fell:
            if (source, source) not in found:
                raise UsageError(f"the white-box result on {source} is missing", hint=f"rbl run --defense {source}")
            counted = counted & beaten(found[source, source], threat)
        if counted.any():
            success[sources.index(source), targets.index(target)] = beaten(cell, threat)[counted].mean()
    return Transfer(sources=sources, targets=targets, success=success)
