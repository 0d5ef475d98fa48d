from __future__ import annotations

import enum
import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from robustbench_lite.errors import InvalidParameter, PluginError
from robustbench_lite.parameters import REQUIRED, build, describe, label, resolved
from robustbench_lite.selectors import Selector, parse_selector, split_selectors

if TYPE_CHECKING:
    from decimal import Decimal


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = "exact"


@dataclass(frozen=True, kw_only=True)
class Base:
    """What both have.

    seed: where the draws begin.
    """

    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Attack(Base):
    """An attack with a parameter of every type.

    steps: how many
    steps it takes. eps: radius of the ball; in [0, 1].
    """

    family: ClassVar[str] = "test"
    steps: Annotated[int, Field(ge=1)] = 10
    eps: Annotated[float, Field(gt=0, le=1)] = 1
    clip: float = math.inf
    momentum: bool = False
    norm: Literal["linf", "l2"] = "linf"
    bits: Literal[4, 8, None] = 8
    name: str = "x"
    path: Path | None = None
    sizes: tuple[int, ...] = (28, 32)
    kinds: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    mode: Mode = Mode.FAST
    amount: int | Literal["auto"] = "auto"
    restarts: Annotated[int, Field(ge=0, description="fresh starts")] = 0

    def __call__(self) -> None: ...


def make(**parameters: object) -> Attack:
    found = build(Attack, parameters, where="attack")
    assert isinstance(found, Attack)
    return found


# ---------------------------------------------------------------------------------------------------------------- selectors


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("pgd", "pgd", {}),
        (" mylab/pgd ", "mylab/pgd", {}),
        ("pgd[]", "pgd", {}),
        ("pgd[steps=100]", "pgd", {"steps": "100"}),
        ("pgd[ steps = 100 , norm=l2 ]", "pgd", {"steps": "100", "norm": "l2"}),
        (
            "jpeg[base=noise[sigma=0.1,base=pgd-at],quality=50]",
            "jpeg",
            {"base": "noise[sigma=0.1,base=pgd-at]", "quality": "50"},
        ),
        ("arrays[path=data/x.y.npz]", "arrays", {"path": "data/x.y.npz"}),
        ('arrays[path="a,b]=.npz"]', "arrays", {"path": "a,b]=.npz"}),
        ("arrays[path='it\\'s']", "arrays", {"path": "it's"}),
        ("arrays[path=data/o'brien/x.npz,n=3]", "arrays", {"path": "data/o'brien/x.npz", "n": "3"}),
        ('jpeg[base=arrays[path="a,]"],quality=5]', "jpeg", {"base": 'arrays[path="a,]"]', "quality": "5"}),
        ("r[sizes=[28,30]]", "r", {"sizes": "[28,30]"}),
        ('a[name=""]', "a", {"name": ""}),
        ('a[name="C:\\data"]', "a", {"name": "C:\\data"}),
        ("a[url=http://x/y?z=1]", "a", {"url": "http://x/y?z=1"}),
    ],
)
def test_selectors(text: str, name: str, parameters: dict[str, str]) -> None:
    found = parse_selector(text)
    assert found.name == name
    assert dict(found.parameters) == parameters
    assert parse_selector(str(found)) == found


@pytest.mark.parametrize(
    ("text", "character", "why"),
    [
        ("", 1, "a name is missing"),
        ("[steps=1]", 1, "a name is missing"),
        ("pgd steps", 4, "cannot be part of a name"),
        ("pgd]", 4, "cannot be part of a name"),
        ("=pgd", 1, "cannot begin with"),
        ("pgd[steps=10", 4, "never closed"),
        ("pgd[base=a[b=1]", 4, "never closed"),
        ("pgd[steps=10]]", 14, "nothing may follow"),
        ("pgd[steps=10]x", 14, "nothing may follow"),
        ("pgd[steps]", 5, "expected key=value, found 'steps'"),
        ("pgd[steps=1,]", 13, "expected key=value"),
        ("pgd[steps=]", 11, "a value is missing"),
        ("pgd[steps=1, steps=2]", 14, "given twice"),
        ("pgd[step-size=1]", 5, "did you mean 'step_size'?"),
        ('pgd[path="a]', 10, "never closed"),
        ('pgd[path="a"b]', 13, "closing quotation mark"),
    ],
)
def test_unreadable_selectors_name_the_position(text: str, character: int, why: str) -> None:
    with pytest.raises(InvalidParameter, match="cannot read") as caught:
        parse_selector(text)
    assert why in caught.value.message
    assert f"(character {character})" in caught.value.message
    assert caught.value.hint


def test_the_caret_stands_under_the_character() -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_selector("pgd[steps=]")
    _, shown, caret = caught.value.message.split("\n")
    assert shown[len(caret) - 1] == "]"


def test_lists_split_at_top_level_commas_only() -> None:
    assert split_selectors("pgd[steps=10,norm=l2], fgsm") == ["pgd[steps=10,norm=l2]", "fgsm"]
    assert split_selectors('a[p="x,]"],b[c=d[e=1,f=2]]') == ['a[p="x,]"]', "b[c=d[e=1,f=2]]"]
    assert split_selectors("  ") == []
    for broken in ("a,,b", "a,", ",a", "a]", "a[b,c"):
        with pytest.raises(InvalidParameter):
            split_selectors(broken)


names = st.from_regex(r"[a-z0-9][a-z0-9./-]{0,12}", fullmatch=True)
keys = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
values = st.one_of(st.text(max_size=12), st.text(alphabet="ab[],='\"\\ ", max_size=12))
selectors = st.builds(
    lambda name, parameters: Selector(name, tuple(parameters.items())), names, st.dictionaries(keys, values, max_size=4)
)


@given(selectors)
def test_spelling_reads_back(selector: Selector) -> None:
    assert parse_selector(str(selector)) == selector


@given(selectors, keys, names)
def test_spelling_reads_back_nested(inner: Selector, key: str, name: str) -> None:
    outer = parse_selector(str(Selector(name, ((key, str(inner)),))))
    assert parse_selector(dict(outer.parameters)[key]) == inner


@given(st.lists(selectors, max_size=4))
def test_spelling_splits(several: list[Selector]) -> None:
    assert [parse_selector(text) for text in split_selectors(",".join(map(str, several)))] == several


@given(st.text(alphabet="ab[],='\"\\ ", max_size=20))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        found = parse_selector(text)
    except InvalidParameter:
        return
    assert parse_selector(str(found)) == found


# ----------------------------------------------------------------------------------------------------------------- building


@pytest.mark.parametrize(
    ("parameter", "given", "value"),
    [
        ("steps", "100", 100),
        ("steps", 100, 100),
        ("eps", "0.5", 0.5),
        ("eps", "8/255", 8 / 255),
        ("eps", " 0.5 / 2 ", 0.25),
        ("eps", "1e-3", 1e-3),
        ("eps", 1, 1.0),
        ("clip", "inf", math.inf),
        ("momentum", "true", True),
        ("momentum", True, True),
        ("norm", "l2", "l2"),
        ("bits", "4", 4),
        ("bits", "none", None),
        ("seed", "none", None),
        ("seed", "3", 3),
        ("path", "a/b.npz", Path("a/b.npz")),
        ("path", "none", None),
        ("path", "8/255", Path("8/255")),
        ("sizes", "[1,2,3]", (1, 2, 3)),
        ("sizes", [1, 2], (1, 2)),
        ("sizes", "[]", ()),
        ("kinds", '[a, "b,c", none]', ("a", "b,c", "none")),
        ("weights", '{"a": 1}', {"a": 1.0}),
        ("mode", "exact", Mode.EXACT),
        ("amount", "auto", "auto"),
        ("amount", "7", 7),
    ],
)
def test_values(parameter: str, given: object, value: object) -> None:
    found = getattr(make(**{parameter: given}), parameter)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("parameter", "given", "said"),
    [
        ("steps", "lots", ["steps must be int >= 1 (default 10), not 'lots'", "valid integer"]),
        ("steps", 0, ["int >= 1", "not 0", "greater than or equal to 1"]),
        ("steps", True, ["true is no number"]),
        ("steps", "1/2", ["valid integer"]),
        ("eps", "nan", ["float > 0, <= 1", "finite"]),
        ("eps", math.inf, ["float", "finite"]),
        ("eps", "1/0", ["valid number"]),
        ("momentum", "perhaps", ["bool", "default false"]),
        ("norm", "l3", ["'linf' | 'l2'", "'l3'"]),
        ("bits", "5", ["4 | 8 | none"]),
        ("path", 3, ["Path | none", "default none"]),
        ("sizes", "1,2", ["a list is written [a,b]"]),
        ("sizes", "[1,x]", ["tuple[int, ...]", "item 2"]),
        ("sizes", "[1,[2]", ["a list is written [a,b]"]),
        ("sizes", "[1,'2]", ["never closed"]),
        ("weights", "{a: 1}", ["not JSON"]),
        ("mode", "slow", ["'fast' | 'exact'", "default fast"]),
        ("amount", "some", ["int | 'auto'"]),
    ],
)
def test_wrong_values_say_what_was_expected(parameter: str, given: object, said: list[str]) -> None:
    with pytest.raises(InvalidParameter) as caught:
        make(**{parameter: given})
    for words in [f"attack: {parameter} must be", *said]:
        assert words in caught.value.message
    assert "rbl show attack" in caught.value.hint


def test_every_mistake_is_reported_at_once() -> None:
    with pytest.raises(InvalidParameter) as caught:
        make(stepz=3, steps="lots", eps=-1)
    assert "no parameter 'stepz'; did you mean 'steps'" in caught.value.message
    assert "known: seed, steps, eps" in caught.value.message
    assert "steps must be" in caught.value.message
    assert "eps must be" in caught.value.message


def test_a_required_parameter() -> None:
    @dataclass(frozen=True)
    class Needs:
        sigma: float

    with pytest.raises(InvalidParameter, match=r"noise needs sigma \(float\)"):
        build(Needs, {}, where="noise")
    assert label("noise", Needs, build(Needs, {"sigma": "1/4"}, where="noise")) == "noise[sigma=0.25]"


def test_union_with_text_reads_numbers_as_numbers() -> None:
    @dataclass(frozen=True)
    class Either:
        value: int | str = 0
        reduction: None | Literal["none", "mean"] = None  # noqa: RUF036

    assert build(Either, {"value": "100"}, where="e").value == 100
    assert build(Either, {"value": "abc"}, where="e").value == "abc"
    assert build(Either, {"reduction": "none"}, where="e").reduction == "none"


def test_infinity_where_the_constraints_allow_it() -> None:
    @dataclass(frozen=True)
    class Wide:
        eps: Annotated[float, Field(allow_inf_nan=True)] = 1.0

    wide = build(Wide, {"eps": "inf"}, where="w")
    assert wide.eps == math.inf
    assert json.loads(json.dumps(resolved(wide), allow_nan=False)) == {"eps": "inf"}
    assert build(Wide, resolved(wide), where="w") == wide


def test_what_post_init_refuses_is_the_users_mistake() -> None:
    @dataclass(frozen=True)
    class Ordered:
        low: int = 0
        high: int = 1

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low must not exceed high")
            if self.low < 0:
                raise RuntimeError("bug")

    with pytest.raises(InvalidParameter, match="o: low must not exceed high"):
        build(Ordered, {"low": 2}, where="o")
    with pytest.raises(PluginError, match=r"Ordered failed to build.*bug"):
        build(Ordered, {"low": -1}, where="o")


def test_functions() -> None:
    def metric(cell: Unknown, *, level: Annotated[float, Field(gt=0, lt=1)] = 0.95, sides: int = 2) -> float:  # type: ignore[name-defined]  # noqa: F821
        return float(level * sides * cell)

    found = build(metric, {"level": "1/2"}, where="metric")
    assert isinstance(found, functools.partial)
    assert found(3) == 3.0
    assert resolved(found) == {"level": 0.5, "sides": 2}
    assert label("metric", metric, found) == "metric[level=0.5]"
    assert resolved(functools.partial(metric)) == {"level": 0.95, "sides": 2}
    with pytest.raises(InvalidParameter, match="float > 0, < 1"):
        build(metric, {"level": 1}, where="metric")


# ------------------------------------------------------------------------------------- factories that cannot be validated


class Odd:
    pass


@dataclass
class UnknownType:
    thing: Odd = field(default_factory=Odd)


@dataclass
class OnlyForTheTypeChecker:
    amount: Decimal = None  # type: ignore[assignment]


@dataclass
class FieldAsDefault:
    steps: int = Field(default=3, ge=1)


@dataclass
class WrongDefault:
    eps: float = None  # type: ignore[assignment]


@dataclass
class DefaultOutside:
    steps: Annotated[int, Field(ge=1)] = 0


@dataclass
class WrongConstraint:
    steps: Annotated[int, Field(ge="one")] = 1


@dataclass
class FailingDefault:
    steps: int = field(default_factory=lambda: int("x"))


@dataclass
class NoJson:
    call: Callable[[], int] = int


class NoDataclass:
    def __init__(self, steps: int = 3) -> None: ...


def unannotated(*, steps=3):  # type: ignore[no-untyped-def]
    ...


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (UnknownType, ["'thing'", "UnknownType", "Odd"]),
        (OnlyForTheTypeChecker, ["'amount'", "Decimal"]),
        (FieldAsDefault, ["'steps'", "Field as its default"]),
        (WrongDefault, ["'eps'", "default None", "float"]),
        (DefaultOutside, ["'steps'", "default 0"]),
        (WrongConstraint, ["'steps'"]),
        (FailingDefault, ["'steps'", "ValueError"]),
        (NoJson, ["'call'", "no JSON form"]),
        (NoDataclass, ["NoDataclass", "class without @dataclass"]),
        (unannotated, ["'steps'", "has no type"]),
        (3, ["of type int"]),
        ([], ["of type list"]),
    ],
)
def test_factories_that_cannot_be_validated(factory: Any, said: list[str]) -> None:
    for use in (lambda: describe(factory), lambda: build(factory, {}, where="x")):
        with pytest.raises(PluginError) as caught:
            use()
        for words in said:
            assert words in caught.value.message


# ------------------------------------------------------------------------------------------------- describing, keys, labels


def test_describe() -> None:
    found = {p.name: p for p in describe(Attack)}
    assert list(found)[:3] == ["seed", "steps", "eps"]
    assert "family" not in found
    assert found["steps"].expected == "int >= 1"
    assert found["steps"].default == 10
    assert found["steps"].doc == "how many steps it takes"
    assert found["eps"].doc == "radius of the ball; in [0, 1]"
    assert found["eps"].constraints == ("> 0", "<= 1")
    assert found["seed"].doc == "where the draws begin"
    assert found["seed"].type == "int | none"
    assert found["restarts"].doc == "fresh starts"
    assert found["bits"].type == "4 | 8 | none"
    assert found["sizes"].type == "tuple[int, ...]"
    assert found["mode"].default == "fast"
    json.dumps([p.to_json() for p in found.values()], allow_nan=False)


def test_describe_a_required_parameter() -> None:
    @dataclass(frozen=True)
    class Needs:
        sigma: float

    (sigma,) = describe(Needs)
    assert sigma.required
    assert sigma.default is REQUIRED
    assert "default" not in sigma.to_json()


def test_one_setting_has_one_key() -> None:
    written: list[dict[str, object]] = [{"eps": "1"}, {"eps": 1}, {"eps": 1.0}, {"eps": "1.0"}, {}]
    spelled = {json.dumps(resolved(make(**p)), sort_keys=True) for p in written} | {
        json.dumps(resolved(Attack()), sort_keys=True)
    }
    assert len(spelled) == 1
    assert '"eps": 1.0' in spelled.pop()


def test_resolved_has_every_field_as_plain_data() -> None:
    found = resolved(make(path="a/b", sizes="[1]", mode="exact"))
    assert list(found) == [p.name for p in describe(Attack)]
    assert (found["path"], found["sizes"], found["mode"], found["clip"]) == ("a/b", [1], "exact", "inf")


def test_zero_has_one_sign() -> None:
    @dataclass(frozen=True)
    class Shift:
        by: float = 0.0

    assert str(resolved(build(Shift, {"by": "-0.0"}, where="s"))["by"]) == "0.0"


def test_labels() -> None:
    assert label("pgd", Attack, make()) == "pgd"
    assert label("pgd", Attack, Attack()) == "pgd"
    assert label("pgd", Attack, make(steps=10, eps=1.0)) == "pgd"
    assert label("pgd", Attack, make(momentum="yes", steps="100")) == "pgd[steps=100,momentum=true]"
    assert label("pgd", Attack, make(eps="8/255")) == "pgd[eps=8/255]"
    assert label("pgd", Attack, make(sizes=[], bits=None)) == "pgd[bits=none,sizes=[]]"


def test_a_field_that_post_init_fills_in() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Derived:
        eps: float = 0.4
        step: float | None = None

        def __post_init__(self) -> None:
            if self.step is None:
                object.__setattr__(self, "step", self.eps / 4)

    assert label("d", Derived, build(Derived, {}, where="d")) == "d"
    assert label("d", Derived, build(Derived, {"eps": 0.8}, where="d")) == "d[eps=0.8,step=0.2]"
    assert resolved(build(Derived, {}, where="d")) == {"eps": 0.4, "step": 0.1}


instances = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.none() | st.integers(),
        "steps": st.integers(min_value=1),
        "eps": st.floats(min_value=0, max_value=1, exclude_min=True) | st.sampled_from([8 / 255, 1 / 3]),
        "clip": st.floats(allow_nan=False),
        "momentum": st.booleans(),
        "norm": st.sampled_from(["linf", "l2"]),
        "bits": st.sampled_from([4, 8, None]),
        "name": st.text(max_size=8) | st.text(alphabet="ab[],='\"\\ ", max_size=8),
        "path": st.none() | st.from_regex(r"[a-z,\[\]]{1,5}(/[a-z]{5})?", fullmatch=True).map(Path),
        "sizes": st.lists(st.integers(), max_size=3).map(tuple),
        "kinds": st.lists(st.text(alphabet="ab[],='\"\\ ", max_size=6), max_size=3).map(tuple),
        "weights": st.dictionaries(st.text(max_size=3), st.floats(-9, 9), max_size=2),
        "mode": st.sampled_from(Mode),
        "amount": st.just("auto") | st.integers(),
    },
)


@given(instances)
def test_labels_read_back(parameters: dict[str, object]) -> None:
    instance = make(**parameters)
    again = parse_selector(label("mylab/pgd", Attack, instance))
    assert again.name == "mylab/pgd"
    assert resolved(make(**dict(again.parameters))) == resolved(instance)


@given(instances)
def test_workers_rebuild_from_json(parameters: dict[str, object]) -> None:
    instance = make(**parameters)
    sent: dict[str, object] = json.loads(json.dumps(resolved(instance), allow_nan=False))
    assert resolved(make(**sent)) == resolved(instance)


def test_importing_needs_no_torch() -> None:
    code = "import sys, robustbench_lite.parameters, robustbench_lite.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
