"""What a defense is trained with besides data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_lite.data import DatasetInfo
from robustbench_lite.errors import UsageError
from robustbench_lite.resolve import (
    Resolved,
    ResolvedDataset,
    ResolvedDefense,
    inner_method,
    resolve_dataset,
    resolve_defense,
    wrapped,
)
from robustbench_lite.specs import DefenseSpec

if TYPE_CHECKING:
    from robustbench_lite.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """The method that it is around, a teacher, the base that it is fitted to, a second data set."""

    method: Resolved | None
    teacher: ResolvedDefense | None
    base: ResolvedDefense | None
    extra: ResolvedDataset | None

    def to_json(self) -> dict[str, Any]:
        """What the model card says of them."""
        found: dict[str, Any] = {} if self.method is None else {"method": self.method.identity()}
        for name, part in (("teacher", self.teacher), ("base", self.base)):
            if part is not None:
                found[name] = part.identity() | {"weights": part.weights_ids}
        if self.extra is not None:
            found["extra"] = self.extra.identity() | {"fingerprint": self.extra.bundle.fingerprint}
        return found


def find_ingredients(registry: Registry, found: Resolved, info: DatasetInfo, root: Path, dataset: str = "") -> Ingredients:
    """Resolve them. root: folder of data sets. ``dataset``, and what is raised: as for ``resolve_defense``; also MissingData,
    and UsageError for a second data set of other images or classes.
    """
    declared, teacher = found.entry.spec, getattr(found.instance, "teacher", None)
    fitted = isinstance(declared, DefenseSpec) and declared.kind == "fitted"
    return Ingredients(
        method=inner_method(registry, found),
        teacher=resolve_defense(registry, teacher, info, dataset=dataset) if isinstance(teacher, str) else None,
        base=wrapped(registry, found, info, {}, (), dataset)[0] if fitted else None,
        extra=_extra(registry, found, info, root),
    )


def _extra(registry: Registry, found: Resolved, info: DatasetInfo, root: Path) -> ResolvedDataset | None:
    """The data set of the field ``extra``."""
    text = getattr(found.instance, "extra", None)
    if not isinstance(text, str) or not text:
        return None
    other = resolve_dataset(registry, text, root)
    if (other.info.shape, other.info.num_classes) != (info.shape, info.num_classes):
        raise UsageError(
            f"{found.label}: {other.label} has images of {_size(other.info)}, {info.name} of {_size(info)}",
            hint="name a data set of the same images and classes",
        )
    if other.bundle.train is None:
        raise UsageError(f"{found.label}: {other.label} has no training split", hint="give it one (x_train and y_train)")
    return other


def _size(info: DatasetInfo) -> str:
    return f"{'x'.join(map(str, info.shape))} in {info.num_classes} classes"
