"""What may stand in a result that was made elsewhere: what was asked, and per-example arrays that can be true together.

Checksums only show that a file is as its maker left it. Here everything is refused that the judge could not have written:
unknown arrays, other types and shapes, numbers that are not finite or out of range, successes outside the threat model, answers
that are not those of the stored logits. What could be true is still only somebody's word: see ``verify.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustbench_lite.bundle.manifest import first_of
from robustbench_lite.errors import InvalidBundle, InvalidThreat
from robustbench_lite.results import REJECTED, SOURCES
from robustbench_lite.threat import Threat

Arrays = Mapping[str, npt.NDArray[Any]]

CLOSE = 1e-4  # relative: how near two ways of writing one length must be
FLOAT_ROOM = 1e-5  # what rounding in float32 may add to a probability or a share

_PARTS = ConfigDict(strict=True, frozen=True)  # newer versions may say more of a part
Count = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = _PARTS
    id: str
    version: Count
    label: str
    parameters: dict[str, Any]


class _Dataset(_Part):
    name: str
    fingerprint: str
    subset: str


class _Defense(_Part):
    weights: str | None
    base: _Defense | None
    bases: list[_Defense] = Field(default_factory=list)
    stochastic: bool
    differentiable: bool
    rejects: bool


class _Attack(_Part):
    access: Literal["gradient", "scores", "decision", "transfer", "none"]
    goal: Literal["fixed-budget", "minimal-norm"]
    members: list[_Attack] = Field(default_factory=list)
    surrogates: list[_Defense] = Field(default_factory=list)


class _Protocol(BaseModel):
    model_config = _PARTS
    name: str
    version: Count
    n: Count
    eot: Count
    eval_draws: Count
    budget: Count | None


class _Asked(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")
    format: Literal[1]
    protocol: _Protocol
    dataset: _Dataset
    defense: _Defense
    attack: _Attack
    threat: str
    seed: Annotated[int, Field(ge=0)]


def check_spec(spec: Mapping[str, Any]) -> None:
    """Raise InvalidBundle where a spec is not one that a run of this version could have asked for."""
    if spec.get("format") != 1:
        raise InvalidBundle(
            f"its spec has format {spec.get('format')!r}, this robustbench-lite reads 1",
            hint="pip install --upgrade robustbench-lite",
        )
    try:
        _Asked.model_validate(dict(spec))
        Threat.parse(spec["threat"])
    except ValidationError as error:
        raise InvalidBundle(f"its spec.json: {first_of(error)}") from error
    except InvalidThreat as error:
        raise InvalidBundle(f"its spec.json: {error.message}") from error


# Arrays: dtype kinds, number of dimensions, and what no value may break, in words.

Rule = Callable[[npt.NDArray[Any]], Any]  # an array of bool, or one


def _between(low: float, high: float) -> tuple[str, Rule]:
    return f"in [{low:g}, {high:g}]", lambda a: (a >= low - FLOAT_ROOM) & (a <= high + FLOAT_ROOM)


_FLAG: tuple[str, Rule] = "true or false", lambda a: True
_FINITE: tuple[str, Rule] = "finite", np.isfinite
_POSITIVE: tuple[str, Rule] = "0 or more", lambda a: a >= 0
_LENGTH: tuple[str, Rule] = "finite and 0 or more", lambda a: np.isfinite(a) & (a >= 0)
_SHARE = _between(0, 1)

COLUMNS: Mapping[str, tuple[str, int, tuple[str, Rule]]] = {
    **dict.fromkeys(("index", "y", "clean_pred", "adv_pred", "values", "pixels"), ("i", 1, _POSITIVE)),
    **dict.fromkeys(("forwards", "backwards", "queries", "member"), ("iu", 1, _POSITIVE)),
    **dict.fromkeys(("surrogate_forwards", "surrogate_backwards"), ("iu", 1, _POSITIVE)),
    **dict.fromkeys(("clean_correct", "success", "unstable"), ("b", 1, _FLAG)),
    **dict.fromkeys(("linf", "l2", "l1", "l0"), ("f", 1, _LENGTH)),
    **dict.fromkeys(("margin_clean", "margin_adv"), ("f", 1, _FINITE)),
    **dict.fromkeys(("logits_clean", "logits_adv"), ("f", 2, _FINITE)),
    **dict.fromkeys(("p_clean", "p_adv", "clean_rate", "adv_rate", "entropy"), ("f", 1, _SHARE)),
    **dict.fromkeys(("confidence_clean", "confidence_adv"), ("f", 1, _SHARE)),
    **dict.fromkeys(("top5_clean", "top5_adv"), ("i", 2, _POSITIVE)),
    "size": ("f", 1, ("0 or more", lambda a: a >= 0)),  # inf where nothing was found; nan is neither
    "rejected": ("u", 1, _between(0, len(REJECTED) - 1)),
    "source": ("u", 1, _between(0, len(SOURCES) - 1)),
}
_ALWAYS = (
    *("index", "y", "clean_pred", "clean_correct", "adv_pred", "success", "size", "linf", "l2", "l1", "l0"),
    *("values", "pixels", "forwards", "backwards", "queries", "rejected", "source", "unstable"),
)


def check_arrays(spec: Mapping[str, Any], arrays: Arrays) -> None:
    """Raise InvalidBundle where the judge could not have written these arrays of a whole result."""
    if unknown := sorted(set(arrays) - set(COLUMNS)):
        raise InvalidBundle(f"array {unknown[0]!r} is not one that this version knows")
    if lacking := [name for name in _ALWAYS if name not in arrays]:
        raise InvalidBundle(f"array {lacking[0]!r} is missing")
    n = spec["protocol"]["n"]
    for name, array in arrays.items():
        kinds, dimensions, (words, holds) = COLUMNS[name]
        if array.dtype.kind not in kinds:
            raise InvalidBundle(f"array {name!r} is of type {array.dtype}")
        if len(array) != n or array.ndim != dimensions or 0 in array.shape:
            raise InvalidBundle(f"array {name!r} has shape {array.shape}, and {n} examples were asked for")
        if wrong := int((~np.broadcast_to(holds(array), array.shape)).sum()):
            raise InvalidBundle(f"array {name!r} has {wrong} values that are not {words}")
    for words, where in _contradictions(spec, arrays).items():
        if count := int(np.count_nonzero(where)):
            raise InvalidBundle(f"{words}: {count} of {n} examples")


def _contradictions(spec: Mapping[str, Any], arrays: Arrays) -> dict[str, npt.NDArray[np.bool_]]:
    """What cannot be true together, in words, and where it is so."""
    threat = Threat.parse(spec["threat"])
    index, y, success, size = arrays["index"], arrays["y"], arrays["success"], arrays["size"]
    clean, answer = arrays["clean_pred"], arrays["adv_pred"]
    found = {
        "an example stands twice": ~np.isin(np.arange(len(index)), np.unique(index, return_index=True)[1]),
        "clean_correct is not whether clean_pred is the label": arrays["clean_correct"] != (clean == y),
        "a success on an example that was wrong before": success & ~arrays["clean_correct"],
        "a success whose answer is the label": success & (answer == y),
        "no success, and another answer than without an attack": ~success & (answer != clean),
        "a size without a success, or a success without one": np.isfinite(size) != success,
        "a success outside the threat model": success & (size > threat.limit),
        "a success without a source, or a source without one": (arrays["source"] > 0) != success,
    }
    if threat.norm in ("linf", "l2", "l1", "l0"):
        far = ~np.isclose(np.where(success, size, 0), arrays[threat.norm], rtol=CLOSE, atol=1e-6)
        found[f"size is not the {threat.norm} distance"] = far
    for when, answers in (("clean", clean), ("adv", np.where(success, answer, clean))):
        if (logits := arrays.get(f"logits_{when}")) is not None:
            within = answers < logits.shape[1]
            given = np.take_along_axis(logits, np.where(within, answers, 0)[:, None], axis=1)[:, 0]
            found[f"{when}_pred is not the best of logits_{when}"] = ~within | (given < logits.max(1))
        elif (best := arrays.get(f"top5_{when}")) is not None:
            found[f"{when}_pred is not the best of top5_{when}"] = answers != best[:, 0]
    if "member" in arrays:
        found["a member that the attack does not have"] = arrays["member"] > len(spec["attack"].get("members", ()))
    return found


def check_examples(spec: Mapping[str, Any], arrays: Arrays, kept: Arrays) -> None:
    """Raise InvalidBundle where kept images are not those of the result: other shapes, out of range, outside the ball."""
    import torch

    if set(kept) != {"index", "x", "x_adv"} or kept["index"].dtype.kind != "i" or kept["index"].ndim != 1:
        raise InvalidBundle(f"its images are {', '.join(sorted(kept))}, not index, x and x_adv")
    x, x_adv = kept["x"], kept["x_adv"]
    if x.dtype != np.float32 or x_adv.dtype != np.float32 or x.shape != x_adv.shape or x.ndim < 2:
        raise InvalidBundle(f"its images are {x.dtype} {x.shape} and {x_adv.dtype} {x_adv.shape}, not float32 of one shape")
    rows = {int(example): row for row, example in enumerate(arrays["index"].tolist())}
    if strangers := [i for i in kept["index"].tolist() if i not in rows]:
        raise InvalidBundle(f"it has an image of example {strangers[0]}, which is none of its own")
    at = np.array([rows[i] for i in kept["index"].tolist()], dtype=np.int64)
    if len(np.unique(at)) < len(at):
        raise InvalidBundle("it has two images of one example")
    if (arrays["values"][at] != int(np.prod(x.shape[1:]))).any():
        raise InvalidBundle(f"its images are of shape {x.shape[1:]}, which its array 'values' is not the product of")
    for name, image in (("x", x), ("x_adv", x_adv)):
        if not np.isfinite(image).all() or (image < 0).any() or (image > 1).any():
            raise InvalidBundle(f"its images {name} hold values that are not in [0, 1]")
    threat, success = Threat.parse(spec["threat"]), arrays["success"][at]
    clean, moved = torch.from_numpy(x.copy()), torch.from_numpy(x_adv.copy())
    outside = ~threat.contains(clean, moved).numpy()
    if outside.any():
        raise InvalidBundle(
            f"{int(outside.sum())} of its adversarial images lie outside the threat model {threat}, "
            f"that of example {int(kept['index'][outside][0])} first"
        )
    if (~success & (x != x_adv).reshape(len(x), -1).any(1)).any():
        raise InvalidBundle("it has changed images of examples that it says were not beaten")
    sizes = threat.size(clean, moved).numpy()
    if not np.allclose(sizes[success], arrays["size"][at][success], rtol=CLOSE, atol=1e-6):
        raise InvalidBundle("its adversarial images do not have the sizes that its arrays say")
