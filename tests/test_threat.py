"""Threat models: their text, their sizes, what they contain, and where they project to."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_lite.errors import InvalidThreat
from robustbench_lite.specs import NORMS, AttackSpec
from robustbench_lite.threat import Threat

SHAPES = ((3, 4, 4), (1, 8, 8), (7,))
THREATS = (
    "linf:8/255",
    "linf:0",
    "l2:0.5",
    "l2:0.01",
    "l2:0",
    "l1:2",
    "l1:0.3",
    "l1:0",
    "l0:3",
    "l0:0",
    "union:linf:0.03+l2:0.5+l1:2",
    "unrestricted",
)


def images(seed: int, n: int, shape: tuple[int, ...], spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean images, some values on the edge of the box, and points around them, in and out of the box."""
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(n, *shape, generator=g) * 1.4 - 0.2).clamp(0, 1)
    return x, x + spread * torch.randn(n, *shape, generator=g)


@pytest.mark.parametrize(
    ("text", "norm", "eps"),
    [
        ("linf:8/255", "linf", 8 / 255),
        ("l2:0.5", "l2", 0.5),
        ("l1:12", "l1", 12.0),
        ("l0:8", "l0", 8.0),
        ("l2:1e-2", "l2", 0.01),
        ("l1:1e+1", "l1", 10.0),
        ("linf:.5/2", "linf", 0.25),
        ("linf:0", "linf", 0.0),
        ("linf", "linf", math.inf),
        ("l0", "l0", math.inf),
    ],
)
def test_balls_are_read_and_keep_their_spelling(text: str, norm: str, eps: float) -> None:
    threat = Threat.parse(text)
    assert (threat.norm, threat.eps, str(threat)) == (norm, eps, text)


def test_a_union_keeps_its_spelling_and_knows_its_parts() -> None:
    threat = Threat.parse("union:l1:1e+1+linf:8/255+l2:0.5")
    assert str(threat) == "union:l1:1e+1+linf:8/255+l2:0.5"
    assert [str(p) for p in threat.parts] == ["linf:8/255", "l2:0.5", "l1:1e+1"]
    assert (threat.norm, threat.eps) == ("union", 1.0)


def test_spaces_do_not_count() -> None:
    assert str(Threat.parse("  linf : 8 / 255 ")) == "linf:8/255"
    assert str(Threat.parse("union: linf:0.1 + l2:1")) == "union:linf:0.1+l2:1"


def test_threats_are_equal_by_value() -> None:
    assert Threat.parse("linf:8/255") == Threat.parse("linf:16/510") == Threat("linf", 8 / 255)
    assert hash(Threat.parse("linf:0.5")) == hash(Threat.parse("linf:1/2"))
    assert Threat.parse("union:linf:0.1+l2:1") == Threat.parse("union:l2:1.0+linf:1/10")
    assert len({Threat.parse(t) for t in ("linf:0.5", "l2:0.5", "linf:0.25", "linf", "union:linf:0.5+l2:0.5")}) == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("linf:8//255", "'8//255' is neither a number nor a fraction"),
        ("linf:1/2/3", "neither a number"),
        ("linf:", "radius is missing"),
        ("linf:-1/255", "0 or more"),
        ("linf:nan", "neither a number"),
        ("linf:inf", "no finite number"),
        ("linf:1e999", "no finite number"),
        ("linf:1/0", "divides by zero"),
        ("linf:1_0", "neither a number"),
        ("linf:\N{ARABIC-INDIC DIGIT THREE}", "neither a number"),
        ("l0:1.5", "whole number"),
        ("l0:-1", "0 or more"),
        ("", "norm is missing"),
        (":0.5", "norm is missing"),
        ("8/255", "unknown norm '8/255'"),
        ("linff:0.1", "unknown norm 'linff'"),
        ("LINF:0.1", "unknown norm 'LINF'"),
        ("union", "at least two balls, not 0"),
        ("union:", "at least two balls, not 0"),
        ("union:linf:0.1", "at least two balls, not 1"),
        ("union:linf:0.1+", "norm is missing"),
        ("union:linf:0.1+2", "neither a number"),
        ("union:linf:0.1+linf:0.2", "linf stands twice"),
        ("union:linf:0.1+l2", "radius above 0"),
        ("union:linf:0.1+l2:0", "radius above 0"),
        ("union:linf:0.1+union:l2:1+l1:2", "not of unions"),
        ("union:linf:0.1+unrestricted", "unrestricted is none"),
        ("unrestricted:1", "unrestricted has no radius"),
        ("unrestricted:", "unrestricted has no radius"),
    ],
)
def test_bad_text_is_an_error_that_names_it_and_gives_an_example(text: str, problem: str) -> None:
    with pytest.raises(InvalidThreat) as caught:
        Threat.parse(text)
    assert repr(text) in caught.value.message
    assert problem in caught.value.message
    assert any(example in caught.value.hint for example in ("linf", "l0:1 or l0:2", "unrestricted"))


def test_a_misspelt_norm_is_guessed() -> None:
    with pytest.raises(InvalidThreat, match="did you mean 'linf'"):
        Threat.parse("Linf:0.1")


def test_a_number_from_yaml_is_an_error_too() -> None:
    with pytest.raises(InvalidThreat, match="expected text, not float"):
        Threat.parse(0.3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("norm", "eps", "parts"),
    [
        ("l3", 1.0, ()),
        ("l2", math.nan, ()),
        ("l2", 1.0, (Threat("l1", 1.0),)),
        ("union", 0.5, (Threat("l1", 1.0), Threat("l2", 1.0))),
        ("union", 1.0, ()),
        ("union", 1.0, (Threat("l1", 1.0), Threat("unrestricted", 1.0))),
        ("unrestricted", math.inf, ()),
        ("unrestricted", 0.5, ()),
        ("unrestricted", 1.0, (Threat("l1", 1.0),)),
    ],
)
def test_threats_made_by_hand_are_checked_as_well(norm: str, eps: float, parts: tuple[Threat, ...]) -> None:
    with pytest.raises(InvalidThreat):
        Threat(norm, eps, parts=parts)


@given(st.sampled_from(["linf", "l2", "l1"]), st.floats(0, 1e6))
def test_text_reads_back_as_the_same_threat(norm: str, eps: float) -> None:
    threat = Threat.parse(norm).at(eps)
    assert Threat.parse(str(threat)) == threat == Threat(norm, eps)


def test_at_changes_the_radius() -> None:
    assert str(Threat.parse("linf:8/255").at(0.25)) == "linf:0.25"
    assert str(Threat.parse("l0").at(4)) == "l0:4"
    assert str(Threat.parse("l2:1").at(math.inf)) == "l2"
    with pytest.raises(InvalidThreat):
        Threat.parse("l0").at(1.5)
    with pytest.raises(InvalidThreat, match="no single radius"):
        Threat.parse("union:linf:0.1+l2:1").at(2)
    with pytest.raises(InvalidThreat, match="no single radius"):
        Threat.parse("unrestricted").at(0.5)


def test_threats_survive_pickle_and_copy() -> None:
    for threat in map(Threat.parse, ("union:l1:12+linf:8/255", "unrestricted")):
        for twin in (pickle.loads(pickle.dumps(threat)), copy.deepcopy(threat)):
            assert twin == threat
            assert str(twin) == str(threat)


def test_importing_and_parsing_load_no_torch() -> None:
    code = "import sys; from robustbench_lite.threat import Threat; Threat.parse('linf:1').limit; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.strip() == b"False"


def test_sizes_in_every_norm() -> None:
    x = torch.zeros(1, 3, 2, 2)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0], x_adv[0, 2, 0, 0], x_adv[0, 1, 1, 1] = 0.5, -0.25, 0.25
    sizes = {norm: Threat.parse(norm).size(x, x_adv) for norm in ("linf", "l2", "l1", "l0")}
    assert all(s.dtype == torch.float64 and s.shape == (1,) for s in sizes.values())
    assert {norm: s.item() for norm, s in sizes.items()} == {"linf": 0.5, "l2": math.sqrt(0.375), "l1": 1.0, "l0": 2.0}
    assert Threat.parse("l0").size(x.flatten(1), x_adv.flatten(1)).item() == 3


def test_the_size_in_a_union_is_the_least_in_radii() -> None:
    x, x_adv = images(0, 20, (3, 4, 4), 0.1)
    union = Threat.parse("union:linf:0.1+l2:0.5+l1:3")
    delta = (x_adv.double() - x.double()).flatten(1).numpy()
    least = np.min([np.abs(delta).max(1) / 0.1, np.linalg.norm(delta, axis=1) / 0.5, np.abs(delta).sum(1) / 3], axis=0)
    np.testing.assert_allclose(union.size(x, x_adv).numpy(), least, rtol=1e-12)


def test_unrestricted_contains_every_image_and_its_size_is_the_root_mean_square() -> None:
    threat = Threat.parse(" unrestricted ")
    assert (threat.norm, threat.eps, str(threat), threat.parts) == ("unrestricted", 1.0, "unrestricted", ())
    assert threat == Threat("unrestricted", 1.0) != Threat("linf", 1.0)
    black, white = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    assert threat.size(black, white).item() == 1.0
    assert threat.contains(black, white).all()
    one = black.clone()
    one[0, 0, 0, 0] = 0.6
    assert threat.size(black, one).item() == pytest.approx(0.6 / math.sqrt(48))
    assert threat.project(black, one - 0.5).tolist() == (one - 0.5).clamp(0, 1).tolist()


def test_a_minimal_norm_attack_cannot_be_unrestricted() -> None:
    common = {"name": "a", "factory": "m:A", "access": "scores"}
    assert AttackSpec(**common, norms=NORMS).problems() == []
    (problem,) = AttackSpec(**common, norms=("l2", "unrestricted"), goal="minimal-norm").problems()
    assert "declare balls" in problem


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("text", ["linf", "l2:0.5", "l1", "l0", "l0:8", "union:linf:0.03+l0:5", "unrestricted"])
def test_points_that_are_not_finite_are_nowhere_inside(text: str, bad: float) -> None:
    x = torch.full((2, 3, 2, 2), 0.5)
    x_adv = x.clone()
    x_adv[1, 0, 0, 0] = bad
    threat = Threat.parse(text)
    assert threat.size(x, x_adv).tolist() == [0, math.inf]
    assert threat.contains(x, x_adv).tolist() == [True, False]
    assert threat.in_box(x_adv).tolist() == [True, False]


def test_results_without_a_radius_answer_for_every_radius_of_their_norm() -> None:
    anywhere, inside = Threat.parse("linf"), Threat.parse("linf:8/255")
    assert anywhere.answers(inside)
    assert inside.answers(Threat("linf", 8 / 255))
    assert not inside.answers(anywhere)
    assert not inside.answers(Threat.parse("linf:0.1"))
    assert not anywhere.answers(Threat.parse("l2:1"))
    assert not anywhere.answers(Threat.parse("union:linf:0.1+l2:1"))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 5)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_a_radius_that_limits_nothing_is_known(norm: str, shape: tuple[int, ...]) -> None:
    """As far apart as images can be are a black one and a white one."""
    black, white = torch.zeros(1, *shape), torch.ones(1, *shape)
    whole = float(Threat(norm, math.inf).size(black, white))
    for eps in (whole, whole - 1, 1) if norm == "l0" else (whole, whole - 0.01, 0.01):
        threat = Threat(norm, eps)
        assert threat.holds_every(shape) is bool(threat.contains(black, white)) is (eps == whole)
    assert Threat.parse(f"union:{norm}:{whole}+linf:0.1" if norm != "linf" else "union:linf:1+l2:0.1").holds_every(shape)
    assert not Threat.parse("unrestricted").holds_every(shape)


def test_the_box_is_closed() -> None:
    edge = torch.tensor([[0.0, 1.0], [-1e-30, 0.5], [0.5, 1 + 2.0**-23]])
    assert Threat.parse("linf").in_box(edge).tolist() == [True, False, False]


def test_a_norm_alone_contains_every_finite_point() -> None:
    x = torch.zeros(1, 4)
    assert Threat.parse("l1").contains(x, x + 1e30).all()
    assert Threat.parse("l1").project(x, x + 7).tolist() == [[1, 1, 1, 1]]


def test_rounding_of_a_full_step_is_inside_alone_and_in_a_union() -> None:
    """float32 rounding of x + eps may pass eps; the next larger radius is outside nevertheless."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(500, 30, generator=g)
    for eps in (2 / 255, 8 / 255, 0.3):
        x_adv = x + eps * (torch.randint(0, 2, x.shape, generator=g) * 2 - 1)
        ball = Threat("linf", eps)
        union = Threat("union", 1.0, parts=(ball, Threat("l2", 1e-3)))
        assert (ball.size(x, x_adv) > eps).any()
        for threat in (ball, union):
            assert threat.contains(x, x_adv).all()
            assert not threat.contains(x, x + 1.00001 * eps + 1e-6).any()


@settings(deadline=None)
@given(st.sampled_from(THREATS), st.integers(0, 2**31), st.sampled_from(SHAPES), st.floats(1e-4, 0.5))
def test_inside_means_a_size_of_at_most_the_limit(text: str, seed: int, shape: tuple[int, ...], spread: float) -> None:
    threat = Threat.parse(text)
    x, x_adv = images(seed, 4, shape, spread)
    for points in (x_adv, threat.project(x, x_adv), x):
        assert torch.equal(threat.contains(x, points), threat.size(x, points) <= threat.limit)
        if threat.parts:
            inside = torch.stack([part.contains(x, points) for part in threat.parts]).any(0)
            assert torch.equal(threat.contains(x, points), inside)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(THREATS), st.integers(0, 2**31), st.sampled_from(SHAPES), st.floats(1e-4, 3))
def test_projections_are_inside_stay_where_they_are_and_ignore_the_batch(
    text: str, seed: int, shape: tuple[int, ...], spread: float
) -> None:
    threat = Threat.parse(text)
    x, x_adv = images(seed, 5, shape, spread)
    point = threat.project(x, x_adv)
    assert point.dtype == x.dtype
    assert point.shape == x.shape
    assert threat.contains(x, point).all()
    assert threat.in_box(point).all()
    torch.testing.assert_close(threat.project(x, point), point, rtol=0, atol=1e-7)
    for row in range(len(x)):
        assert torch.equal(threat.project(x[row : row + 1], x_adv[row : row + 1])[0], point[row])


@settings(deadline=None)
@given(st.sampled_from(THREATS), st.integers(0, 2**31), st.sampled_from(SHAPES), st.floats(1e-4, 0.1))
def test_points_inside_are_kept_bit_for_bit(text: str, seed: int, shape: tuple[int, ...], spread: float) -> None:
    threat = Threat.parse(text)
    x, x_adv = images(seed, 8, shape, spread)
    x_adv = x_adv.clamp(0, 1)
    inside = threat.size(x, x_adv) <= threat.eps
    assert torch.equal(threat.project(x, x_adv)[inside], x_adv[inside])
    assert torch.equal(threat.project(x, x), x)


@pytest.mark.parametrize("text", ["linf:0.9", "l2:2", "l1:5", "l0:4", "union:linf:0.9+l1:0.1"])
def test_values_too_small_to_survive_an_addition_are_kept(text: str) -> None:
    x = torch.tensor([[0.9, 0.5, 0.7, 0.3]])
    x_adv = torch.tensor([[1e-30, 2e-12, 0.7, 3e-9]])
    assert torch.equal(Threat.parse(text).project(x, x_adv), x_adv)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("eps", [8 / 255, 0.1, 0.3, 0.7, 0.15])
def test_points_on_the_face_of_a_cube_are_kept(eps: float, sign: int) -> None:
    """The float32 nearest to eps may be below it; the last float32 before the face is inside all the same."""
    x = torch.rand(100_000, 1, generator=torch.Generator().manual_seed(0))
    face = (x.double() + sign * eps).float()
    face = torch.where((face.double() - x.double()).abs() > eps, torch.nextafter(face, x), face)
    inside = (face >= 0) & (face <= 1)
    assert ((face.double() - x.double()).abs() <= eps).all()
    assert torch.equal(Threat("linf", eps).project(x, face)[inside], face[inside])


@pytest.mark.parametrize("text", ["l2:0.5", "l2:0.01", "l1:12", "l1:0.1", "linf:1/255", "union:l2:0.5+l1:12"])
@pytest.mark.parametrize("grey", [0.5, 0.7, 1 / 3])
def test_rounding_errors_that_all_point_outwards_do_not_leave_the_ball(text: str, grey: float) -> None:
    """One grey value, one step: every x + delta is rounded in the same direction, 12288 times."""
    x = torch.full((2, 3, 64, 64), grey)
    x_adv = x + torch.tensor([0.3, -0.3]).view(2, 1, 1, 1)
    assert Threat.parse(text).contains(x, Threat.parse(text).project(x, x_adv)).all()


def test_a_union_projects_to_the_nearest_part() -> None:
    x = torch.full((2, 1, 2, 2), 0.5)
    flat, spike = torch.full((1, 2, 2), 0.1), torch.zeros(1, 2, 2)
    spike[0, 0, 0] = 0.4
    threat = Threat.parse("union:linf:0.08+l1:0.3")
    point = threat.project(x, x + torch.stack([flat, spike])) - x
    torch.testing.assert_close(point[0], torch.full((1, 2, 2), 0.08))
    torch.testing.assert_close(point[1], spike * 0.75)


def test_l0_keeps_the_pixels_that_save_most_within_the_box() -> None:
    x = torch.full((1, 2, 1, 3), 0.9)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0] = 9.0  # far outside the box: only 0.1 of it is allowed
    x_adv[0, :, 0, 1] = 0.5
    x_adv[0, 0, 0, 2] = 0.45
    point = Threat.parse("l0:1").project(x, x_adv)
    # Clipping pixel 0 saves 8.1^2 - 8^2 = 1.61, pixel 1 saves 2 * 0.4^2.
    assert point[0, 0, 0].tolist() == [1.0, pytest.approx(0.9), pytest.approx(0.9)]
    two = Threat.parse("l0:2").project(x, x_adv)
    assert two[0, :, 0, 1].tolist() == [0.5, 0.5]
    assert Threat.parse("l0:2").size(x, two).item() == 2


def test_shapes_must_agree() -> None:
    for method in (Threat.parse("l2:1").size, Threat.parse("l2:1").project):
        with pytest.raises(ValueError, match="must agree"):
            method(torch.zeros(2, 3), torch.zeros(3))


@pytest.mark.parametrize("text", [*THREATS, "linf"])
def test_no_rows_are_no_problem(text: str) -> None:
    x, threat = torch.zeros(0, 3, 4, 4), Threat.parse(text)
    assert threat.size(x, x).shape == threat.contains(x, x).shape == threat.in_box(x).shape == (0,)
    assert threat.project(x, x).shape == x.shape


@pytest.mark.parametrize("text", THREATS)
def test_double_precision_images_stay_so(text: str) -> None:
    x, x_adv = (t.double() for t in images(3, 4, (3, 4, 4), 0.4))
    threat = Threat.parse(text)
    point = threat.project(x, x_adv)
    assert point.dtype == torch.float64
    assert (threat.size(x, point) <= threat.eps * (1 + 1e-9)).all()


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.5", "l1:3", "l0:2", "union:linf:0.1+l2:0.5"])
def test_large_batches_are_measured_and_projected_in_portions(threat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, x_adv = torch.rand(2, 7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    limits = Threat.parse(threat)
    whole = limits.size(x, x_adv), limits.project(x, x_adv)
    monkeypatch.setattr("robustbench_lite.threat.PORTION", 32)
    assert torch.equal(limits.size(x, x_adv), whole[0])
    assert torch.equal(limits.project(x, x_adv), whole[1])
