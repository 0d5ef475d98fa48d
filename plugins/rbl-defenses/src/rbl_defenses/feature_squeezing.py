"""Feature squeezing (Xu, Evans and Qi, 2018, arXiv:1704.01155): leave the attacker less input to choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor, nn

from rbl_defenses import filters
from rbl_defenses.behind import Behind, Step
from robustbench_lite import DatasetInfo, bpda


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"{value} is even: windows around a pixel have odd sizes")
    return value


Odd = Annotated[int, Field(ge=1, le=63), AfterValidator(_odd)]
Bits = Annotated[int, Field(ge=1, le=8)]
Size = Annotated[int, Field(ge=1, le=15)]
NonLocalMeans = tuple[Odd, Odd, Annotated[float, Field(gt=0)]]


@dataclass(frozen=True, kw_only=True)
class FeatureSqueezing:
    """Reduce the bit depth, then take medians, then non-local means, before the base defense sees the image.

    base: the defense that classifies. bits: per value; None for 1 with grey images and 5 with others. median: side of its
    window in pixels, 1 for none. non_local_means: size of the search window, size of the patches that are compared, strength in
    units of 1/255, as in [13,3,2]; None for none.
    """

    base: str = "standard"
    bits: Bits | None = None
    median: Size = 2
    non_local_means: NonLocalMeans | None = None

    def __call__(self, info: DatasetInfo, base: nn.Module) -> nn.Module:
        """The module. Its ``surrogate`` passes gradients straight through the rounding, and truly through the rest."""
        exact, smooth = (
            squeezers(bits_for(info, self.bits), self.median, self.non_local_means, straight=straight)
            for straight in (False, True)
        )
        return Behind(base, lambda x: chain(x, exact), lambda x: chain(x, smooth))


def bits_for(info: DatasetInfo, bits: int | None) -> int:
    """The bit depth asked for, or that of the paper for grey images and for photographs."""
    return bits or (1 if info.shape[0] == 1 else 5)


def squeezers(bits: int, median: int, non_local_means: tuple[int, int, float] | None, *, straight: bool) -> list[Step]:
    """The squeezers that are asked for. straight: whether gradients pass through the rounding (BPDA)."""

    def rounded(x: Tensor) -> Tensor:
        return filters.quantise(x, 1 << bits)

    found: list[Step] = [bpda(rounded, "identity") if straight else rounded]
    if median > 1:
        found.append(lambda x: filters.median(x, median))
    if non_local_means is not None:
        found.append(lambda x: filters.non_local_means(x, *non_local_means))
    return found


def chain(x: Tensor, steps: list[Step]) -> Tensor:
    """One step after the other."""
    for step in steps:
        x = step(x)
    return x
