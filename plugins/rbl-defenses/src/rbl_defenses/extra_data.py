"""More data: another data set's images beside the training split's, around any method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from robustbench_lite import DatasetInfo, UsageError
from robustbench_lite.data import MapDataset
from robustbench_lite.training import Around, Context, Recipe


@dataclass(frozen=True, kw_only=True)
class ExtraShare(Around):
    """Base of methods that add images to each batch of another method.

    method: that one. share: of each batch, for the added images; an epoch is a pass over the others. None for 0.5 on digits and
    0.7 elsewhere, which is what Pang et al., 2022 (arXiv:2202.10103) use.
    """

    method: str = "score"
    share: Annotated[float, Field(gt=0, lt=1)] | None = None

    def recipe(self, info: DatasetInfo) -> Recipe:
        share = self.share or (0.5 if info.name == "digits" else 0.7)
        return replace(super().recipe(info), extra_share=share)


@dataclass(frozen=True, kw_only=True)
class ExtraData(ExtraShare):
    """Train with a share of each batch from the training split of another data set, with its labels.

    extra: that data set, such as ``arrays[path=more.npz]``; its images and classes are those of the data set.
    """

    extra: str = ""

    def extra_data(self, context: Context) -> MapDataset | None:
        if not self.extra:
            raise UsageError("extra-data needs the data set to take images from", hint="--set 'extra=arrays[path=more.npz]'")
        return context.extra
