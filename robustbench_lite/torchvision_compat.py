"""Import torchvision beside a torch that it was not built for.

torchvision's compiled operators load only into the torch build that they were made with. With another build (a CPU-only torch
beside the torchvision wheel for CUDA, say) its Python part would do for data sets, transforms and most models, but importing it
fails: it describes two operators, ``nms`` and ``qnms``, that were never declared. Declaring them is enough. Calling one still
fails, with torch's own message that it has no implementation.
"""

from __future__ import annotations

import importlib
import re
import sys
from contextlib import suppress
from types import ModuleType

import torch

from robustbench_lite.errors import RblError

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_UNDECLARED = re.compile(rf"operator torchvision::({'|'.join(_SCHEMAS)}) does not exist")

# Declarations last as long as their library object.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """The torchvision module; with a matching torch this is a plain import. Raises RblError where it cannot be imported."""
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        if _declared or not _UNDECLARED.search(str(error)):
            raise RblError(
                f"torchvision cannot be imported beside torch {torch.__version__}: {error}",
                hint="install the torchvision release that was built for this torch; see https://pytorch.org",
            ) from error
    # What the failed import left behind would be taken for the module by the next one.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    _declared.append(library)
    for name, schema in _SCHEMAS.items():  # all at once: torch 2.11 allows no second description of an operator
        with suppress(AttributeError):  # and keeps the one that it has just refused
            torch._library.simple_registry.singleton.find(f"torchvision::{name}").fake_impl.kernels.clear()
        library.define(schema)  # type: ignore[no-untyped-call]
    return import_torchvision()
