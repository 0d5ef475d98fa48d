"""What a defense is trained with besides data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustbench_lite.data import DatasetInfo
from robustbench_lite.resolve import Resolved, ResolvedDefense, inner_method, resolve_defense, wrapped
from robustbench_lite.specs import DefenseSpec

if TYPE_CHECKING:
    from robustbench_lite.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """The method that it is around, a teacher, the base that it is fitted to."""

    method: Resolved | None
    teacher: ResolvedDefense | None
    base: ResolvedDefense | None

    def to_json(self) -> dict[str, Any]:
        """What the model card says of them."""
        found: dict[str, Any] = {} if self.method is None else {"method": self.method.identity()}
        for name, part in (("teacher", self.teacher), ("base", self.base)):
            if part is not None:
                found[name] = part.identity() | {"weights": part.weights_ids}
        return found


def find_ingredients(registry: Registry, found: Resolved, info: DatasetInfo, dataset: str = "") -> Ingredients:
    """Resolve them; ``dataset``, and what is raised: as for ``resolve_defense``."""
    declared, teacher = found.entry.spec, getattr(found.instance, "teacher", None)
    fitted = isinstance(declared, DefenseSpec) and declared.kind == "fitted"
    return Ingredients(
        method=inner_method(registry, found),
        teacher=resolve_defense(registry, teacher, info, dataset=dataset) if isinstance(teacher, str) else None,
        base=wrapped(registry, found, info, {}, (), dataset)[0] if fitted else None,
    )
