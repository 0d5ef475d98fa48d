"""Metrics of models on networks whose answers are known: linear ones, planted units, planted subspaces, and rescaled layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rbl_metrics.activations import activations
from rbl_metrics.ascent import sign_ascent
from rbl_metrics.certified import (
    CertifiedAccuracy,
    CertifiedRadius,
    certified_curve,
    certified_radius,
    certify,
    lower_bound,
    predict,
)
from rbl_metrics.flatness import AverageFlatness, WorstFlatness, perturbable, random_directions
from rbl_metrics.gaps import GeneralisationGap, OverfitGap
from rbl_metrics.lipschitz import Clever, LocalLipschitz, clever_score, extreme_value
from rbl_metrics.model_cost import Flops, Parameters
from rbl_metrics.ood import OutOfDistribution, detections
from rbl_metrics.randomness import PassSpread, averaging_curve, parameter_trend
from rbl_metrics.representation import (
    AdversarialDimension,
    RepresentationDimension,
    components,
    participation_ratio,
    spectrum,
)
from rbl_metrics.selectivity import ClassSelectivity, selectivity
from robustbench_lite import DatasetBundle, DatasetInfo, MeasuredModel, PluginError, Threat, UsageError, randn_like
from robustbench_lite.deployed import Deployed
from robustbench_lite.testing import Linear

LINF = Threat.parse("linf:0.05")


class Images:
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self.x[index], int(self.y[index])


def subject(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    classes: int,
    stochastic: bool = False,
    train: Images | None = None,
    others: dict[str, Images] | None = None,
    card: dict[str, Any] | None = None,
) -> MeasuredModel:
    info = DatasetInfo(name="toy", classes=tuple(map(str, range(classes))), shape=tuple(x.shape[1:]))

    def bundle(split: Images) -> DatasetBundle:
        return DatasetBundle(info=info, test=split, evaluation=range(len(split)), fingerprint="", train=train)

    return MeasuredModel(
        Deployed(module, num_classes=classes, stochastic=stochastic),
        bundle(Images(x, y)),
        x,
        y,
        torch.arange(len(x)),
        draws=4,
        key="0",
        card=card,
        others={name: bundle(split) for name, split in (others or {}).items()},
    )


def drawn(n: int, shape: tuple[int, ...] = (1, 6, 6), classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((n, *shape), generator=generator), torch.arange(n) % classes


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
        )


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


# ------------------------------------------------------------------------------------------------------------ flatness


def test_no_perturbation_changes_nothing():
    x, y = drawn(10)
    model = subject(network(), x, y, classes=3)
    before = state(model.module)
    for metric in (
        AverageFlatness(xi=0, draws=2, restarts=1, steps=4),
        WorstFlatness(xi=0, restarts=1, steps=4, weight_restarts=1),
    ):
        found = metric.measure(model, LINF)
        assert np.allclose(found["perturbed"] - found["reference"][:, None], 0, atol=1e-6)
        assert metric(found).value == pytest.approx(0, abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_average_flatness_does_not_see_the_scale_of_layers():
    """Doubling a layer and halving the next gives the same function, and the same relative balls."""
    x, y = drawn(16)
    plain = network()
    scaled = copy.deepcopy(plain)
    with torch.no_grad():
        scaled[0].weight.mul_(2)
        scaled[0].bias.mul_(2)
        scaled[2].weight.mul_(0.5)
    assert torch.allclose(plain(x), scaled(x), atol=1e-6)
    metric = AverageFlatness(xi=0.3, draws=3, restarts=2, steps=4, batch=8)
    first, second = (metric.measure(subject(module, x, y, classes=3), LINF) for module in (plain, scaled))
    assert metric(first).value == pytest.approx(metric(second).value, abs=1e-5)
    assert np.abs(first["perturbed"] - first["reference"][:, None]).max() > 0.01
    assert first["perturbed"].shape == (16, 3)


def test_the_worst_direction_is_worse_than_random_ones():
    x, y = drawn(16)
    model = subject(network(), x, y, classes=3)
    common = {"xi": 0.05, "steps": 10, "restarts": 2}
    average, worst = AverageFlatness(draws=4, **common), WorstFlatness(weight_restarts=2, lr=0.02, **common)
    assert worst(worst.measure(model, LINF)).value > max(0.0, average(average.measure(model, LINF)).value)


def test_first_order_rise_of_a_linear_model():
    """xi ||w|| ||grad_w L|| as xi goes to 0, for the clean loss of one layer without a bias."""
    x, y = drawn(12)
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 3, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(torch.randn(3, 36, generator=torch.Generator().manual_seed(1)))
    loss = nn.functional.cross_entropy(module(x), y)
    (grad,) = torch.autograd.grad(loss, module[1].weight)
    xi = 1e-4
    expected = xi * float(module[1].weight.detach().norm() * grad.norm())
    metric = WorstFlatness(clean=True, xi=xi, lr=xi, steps=20, weight_restarts=1)
    found = metric.measure(subject(module.double(), x.double(), y, classes=3), LINF)
    assert float((found["perturbed"][:, 0] - found["reference"]).mean(dtype=np.float64)) == pytest.approx(expected, rel=0.01)


def test_batch_normalisation_is_left_alone():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    assert set(perturbable(module)) == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_random_directions_have_the_norm_of_their_tensor():
    weights = {"a": torch.full((50,), 2.0), "b": torch.zeros(3)}
    sphere = random_directions(weights, 0)
    assert float(sphere["a"].norm()) == pytest.approx(float(weights["a"].norm()), rel=1e-5)
    assert float(sphere["b"].norm()) == 0
    flat = {"a": torch.ones(2)}
    lengths = [float(random_directions(flat, seed, ball=True)["a"].norm()) / math.sqrt(2) for seed in range(2000)]
    assert max(lengths) <= 1 + 1e-6
    assert np.mean(np.array(lengths) <= 0.5) == pytest.approx(0.25, abs=0.03)  # uniform: a quarter of the area


def test_inner_attack_finds_the_worst_corner_of_a_linear_model():
    module = Linear.binary((1, 4, 4))
    x, y = drawn(6, (1, 4, 4), 2)
    x = 0.3 + 0.4 * x
    w = module.weight[1] - module.weight[0]
    start = torch.zeros_like(x)
    points, losses = sign_ascent(module, x, y, start, eps=0.1, steps=12)
    sign = torch.where(y == 1, -1.0, 1.0)[:, None, None, None]
    assert torch.allclose(points, x + 0.1 * sign * w.sign().view(1, 1, 4, 4), atol=1e-6)
    assert torch.allclose(losses, nn.functional.cross_entropy(module(points), y, reduction="none"))


# ------------------------------------------------------------------------------------- selectivity and representations


def test_known_selectivity():
    means = [[3, 1, 2, 0, 5], [1, 1, 2, 0, 0], [2, 1, 2, 0, 0]]
    assert selectivity(means) == pytest.approx([(3 - 1.5) / 4.5, 0, 0, 0, 1], abs=1e-6)
    assert selectivity(np.array(means) * 7) == pytest.approx(selectivity(means), abs=1e-6)


class Planted(nn.Module):
    """Units: brightness of quadrant k of the image, for classes that are bright there; one that never answers."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.functional = functional
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = x[:, 0].unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4)).flatten(1)
        h = torch.cat([h, -1 - h[:, :1]], 1)
        return (nn.functional.relu(h) if self.functional else self.act(h))[:, :4]


@pytest.mark.parametrize("functional", [True, False])
def test_planted_units_are_selective(functional):
    y = torch.arange(12) % 4
    x = torch.zeros(12, 1, 4, 4)
    for i, k in enumerate(y.tolist()):
        x[i, 0, 2 * (k // 2) : 2 * (k // 2) + 2, 2 * (k % 2) : 2 * (k % 2) + 2] = 1.0
    found = ClassSelectivity().measure(subject(Planted(functional), x, y, classes=4), None)
    assert found["selectivity"] == pytest.approx([1, 1, 1, 1, 0], abs=1e-6)
    assert found["dead"].tolist() == [False] * 4 + [True]
    assert ClassSelectivity()(found).value == pytest.approx(0.8)


def test_layers_are_seen_in_order_and_pooled():
    x, y = drawn(5)
    model = subject(network(), x, y, classes=3)
    pooled, flat = activations(model, x), activations(model, x, "flatten")
    assert [layer.shape for layer in pooled] == [(5, 4), (5, 6)]
    assert [layer.shape for layer in flat] == [(5, 144), (5, 96)]
    assert flat[0].reshape(5, 4, 36).mean(2) == pytest.approx(pooled[0], abs=1e-6)
    assert flat[1] == pytest.approx(model.module[:4](x).flatten(1).detach().numpy(), abs=1e-6)
    with pytest.raises(UsageError, match="no rectified layer"):
        activations(subject(Linear.binary((1, 6, 6)), x, y % 2, classes=2), x)


def test_planted_subspaces():
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.normal(size=(60, 60)))[0]
    for n in (2000, 40):  # more examples than units, and fewer
        values = generator.normal(size=(n, 20)) @ basis[:20]
        assert components(spectrum(values)) == pytest.approx(19.5 if n == 2000 else 16, abs=2)
        rotated = values @ np.linalg.qr(generator.normal(size=(60, 60)))[0]
        assert components(spectrum(rotated)) == components(spectrum(values))
    line = generator.normal(size=(50, 1)) * np.ones((1, 7))
    assert components(spectrum(line)) == 1
    assert participation_ratio(spectrum(line)) == pytest.approx(1)
    assert spectrum(line).sum() == pytest.approx(line.var(0).sum())
    assert [components([1.0] * 20), components([1.0] * 20, 1.0), components([0.0, 0.0])] == [19, 20, 0]
    assert participation_ratio([1.0] * 5 + [0.0] * 3) == pytest.approx(5)


def test_dimension_of_representations():
    x, y = drawn(40)
    model = subject(network(), x, y, classes=3)
    metric = RepresentationDimension(layer=0)
    found = metric.measure(model, None)
    assert found["width"].tolist() == [4, 6]
    assert found["n"].tolist() == [40, 40]
    assert 1 <= metric(found).value <= 4
    assert (found["participation"] <= found["width"] + 1e-9).all()
    noisy = RepresentationDimension(noise=0.3).measure(model, None)
    assert not np.array_equal(noisy["participation"], found["participation"])
    for of in ("difference", "points"):
        other = AdversarialDimension(of=of, steps=3).measure(model, LINF)
        assert other["width"].tolist() == [4, 6]
    still = AdversarialDimension(steps=1).measure(model, Threat.parse("linf:0"))
    assert still["components"].tolist() == [0, 0]


# ----------------------------------------------------------------------------------------------------------- certified


@pytest.mark.parametrize(
    ("hits", "n", "sigma", "p", "radius"),
    [
        (100_000, 100_000, 0.25, 0.99993092, 0.95286),
        (100_000, 100_000, 0.5, 0.99993092, 1.90573),
        (99_000, 100_000, 0.25, None, 0.57250),
        (99_000, 100_000, 0.5, None, 1.14500),
        (600, 1000, 0.5, 0.551075, 0.064189),
    ],
)
def test_known_radii(hits, n, sigma, p, radius):
    assert certified_radius(hits, n, sigma) == pytest.approx(radius, abs=1e-5)
    if p is not None:
        assert lower_bound(hits, n, 0.001) == pytest.approx(p, abs=1e-6)


def test_votes_that_decide_nothing():
    classes, radii = certify([[10, 90], [60, 40]], [[480, 520], [990, 10]], sigma=0.5)
    assert classes.tolist() == [-1, 0]
    assert radii[0] == 0
    assert radii[1] == pytest.approx(certified_radius(990, 1000, 0.5))
    assert predict([[480, 520], [990, 10], [0, 0]]).tolist() == [-1, 0, -1]
    with pytest.raises(ValueError, match="same number of draws"):
        certify([[1, 0], [1, 0]], [[2, 0], [1, 0]], sigma=1.0)
    with pytest.raises(ValueError, match="between 0 and 5"):
        certified_radius(6, 5, 1.0)


class Votes(nn.Module):
    """Smoothing of a binary linear classifier, whose exact radius is the distance to its hyperplane."""

    def __init__(self, base: nn.Module, sigma: float) -> None:
        super().__init__()
        self.base, self.sigma = base, sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x)

    def certify(self, x: Tensor, n0: int, n: int, alpha: float) -> tuple[Tensor, Tensor]:
        votes = [self._votes(x, count) for count in (n0, n)]
        classes, radii = certify(votes[0], votes[1], self.sigma, alpha)
        return torch.tensor(classes), torch.tensor(radii)

    def _votes(self, x: Tensor, count: int) -> np.ndarray:
        copies = x.repeat(count, 1, 1, 1)
        answers = self.base(copies + self.sigma * randn_like(copies)).argmax(1).view(count, len(x))
        return torch.stack([(answers == k).sum(0) for k in range(2)], 1).numpy()


def test_certificates_of_a_linear_classifier_hold():
    base = Linear.binary((1, 4, 4))
    x, _ = drawn(200, (1, 4, 4), 2)
    margin = base(x)[:, 1] - base(x)[:, 0]
    y = (margin > 0).long()
    exact = (margin.abs() / (base.weight[1] - base.weight[0]).norm()).detach().numpy()
    model = subject(Votes(base, 0.25), x, y, classes=2, stochastic=True)
    metric = CertifiedRadius(n=1000, batch=64)
    found = metric.measure(model, None)
    assert (found["radius"] > exact + 1e-6).sum() <= 3
    assert (found["class"][found["class"] >= 0] == y.numpy()[found["class"] >= 0]).mean() > 0.99
    assert metric(found).value == pytest.approx(np.where(found["right"], found["radius"], 0).mean())
    assert np.corrcoef(exact, found["radius"])[0, 1] > 0.8
    curve = certified_curve(found)
    at = CertifiedAccuracy(radius=0.2)(found)
    assert curve.at(0.2) == pytest.approx(at.value)
    assert CertifiedAccuracy(radius=0)(found).value == pytest.approx(found["right"].mean())
    assert np.array_equal(found["radius"], CertifiedRadius(n=1000, batch=50).measure(model, None)["radius"])


@pytest.mark.parametrize(
    "answer",
    [
        lambda x, *_: torch.zeros(len(x)),
        lambda x, *_: (torch.zeros(len(x)), torch.zeros(len(x) + 1)),
        lambda x, *_: (torch.zeros(len(x)), -torch.ones(len(x))),
        None,
    ],
)
def test_what_is_no_certificate(answer: Callable[..., Any] | None):
    module = Linear.binary((1, 4, 4))
    if answer is not None:
        module.certify = answer
    x, y = drawn(5, (1, 4, 4), 2)
    with pytest.raises(PluginError, match="certif"):
        CertifiedRadius().measure(subject(module, x, y, classes=2), None)


# ----------------------------------------------------------------------------------------------------------- lipschitz


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2), ("linf", 1)])
def test_a_linear_model_has_one_slope(norm, dual):
    """CLEVER's fit degenerates and falls back: its score is the distance to the boundary, exactly, or the radius."""
    module = Linear.binary((1, 4, 4))
    x, _ = drawn(8, (1, 4, 4), 2)
    margin = (module(x)[:, 1] - module(x)[:, 0]).detach()
    y = (margin > 0).long()
    y[0] = 1 - y[0]
    w = (module.weight[1] - module.weight[0]).detach().norm(p=dual)
    model = subject(module, x, y, classes=2)
    slope = LocalLipschitz(samples=3).measure(model, Threat.parse(f"{norm}:0.1"))
    assert slope["norm"] == pytest.approx(float(w), rel=1e-5)
    found = Clever(norm=norm, batches=3, samples=4, radius=0.2).measure(model, None)
    expected = np.minimum((margin.abs() / w).numpy(), 0.2)
    assert found["score"][1:] == pytest.approx(expected[1:], rel=1e-4)
    assert (found["score"][0], found["right"][0]) == (0.0, False)
    assert Clever()(found).n == 7
    with pytest.raises(UsageError, match="not in 'l1'"):
        Clever(norm="l1").measure(model, None)


def test_extreme_values():
    """Maxima of 1024 draws from a density that ends at 2."""
    generator = np.random.default_rng(0)
    maxima = (2 - generator.exponential(size=(400, 256)).min(1)).clip(max=2)
    assert extreme_value(maxima) == pytest.approx(2.0, abs=0.01)
    assert extreme_value([3.0, 3.0, 3.0]) == 3.0
    assert extreme_value([0.0, 0.0]) == 0.0
    assert (clever_score(1.0, [0.0], 5.0), clever_score(-1.0, [1.0], 5.0), clever_score(1.0, [4.0] * 3, 5.0)) == (
        5.0,
        0.0,
        0.25,
    )


def test_the_slope_of_a_kinked_function_is_found_in_the_ball():
    """|x - 0.5|-like in one dimension: slope 1 left of the kink and 3 right of it."""

    class Kink(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)
            rising = z + 2 * (z - 0.5).clamp(min=0)
            return torch.cat([torch.zeros_like(rising), rising], 1)

    x, y = torch.tensor([0.2, 0.45, 0.9]).view(3, 1, 1, 1), torch.ones(3, dtype=torch.int64)
    found = LocalLipschitz(samples=64).measure(subject(Kink(), x, y, classes=2), Threat.parse("linf:0.1"))
    assert found["norm"] == pytest.approx([1.0, 3.0, 3.0])


# ----------------------------------------------------------------------------------------------------- the other ones


class Noisy(nn.Module):
    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1).mean(1, keepdim=True) - 0.5
        z = z + self.sigma * randn_like(z)
        return torch.cat([-z, z], 1) * 20


def test_spread_over_passes():
    x, _ = drawn(64, (1, 4, 4), 2)
    y = (x.flatten(1).mean(1) > 0.5).long()
    metric = PassSpread(passes=6)
    still = metric.measure(subject(Noisy(0.0), x, y, classes=2), None)
    assert metric(still).value == 0.0
    assert still["right"].all()
    loud = metric.measure(subject(Noisy(0.2), x, y, classes=2, stochastic=True), None)
    assert metric(loud).value > 0
    assert np.array_equal(loud["averaged"][:, 0], loud["right"][:, 0])
    curve = averaging_curve(loud)
    assert curve.x.tolist() == [1, 2, 3, 4, 5, 6]
    assert curve.y[-1] > curve.y[0]


def variant(make_cell: Any, sigma: object, beaten: int, correct: int) -> Any:
    sizes = [0.1] * beaten + [math.inf] * (10 - beaten)
    cell = make_cell(sizes, correct=[i < correct for i in range(10)], defense=f"noise[{sigma}]")
    cell.spec["defense"]["parameters"] = {"sigma": sigma}
    return cell


def test_trend_over_a_parameter(make_cell):
    cells = [variant(make_cell, 0.2, 1, 5), variant(make_cell, 0.0, 8, 10), variant(make_cell, 0.1, 4, 8)]
    clean, success = parameter_trend(cells, "sigma", Threat.parse("linf:0.1"))
    assert clean.x.tolist() == [0.0, 0.1, 0.2]
    assert clean.y.tolist() == [1.0, 0.8, 0.5]
    assert success.y.tolist() == [0.8, 0.5, 0.2]
    assert (success.low <= success.y).all()
    for wrong in (cells[:1] * 2, [variant(make_cell, "x", 0, 1)], [variant(make_cell, 1.0, 0, 0)]):
        with pytest.raises(UsageError):
            parameter_trend(wrong, "sigma", Threat.parse("linf:0.1"))


def test_size_and_operations_of_a_known_network():
    """Convolutions 1->4 on 6x6 and 4->6 on 4x4, and a 96x3 product; two operations per multiplication and addition."""
    x, y = drawn(3)
    model = subject(network(), x, y, classes=3)
    assert Parameters()(Parameters().measure(model, None)).value == 4 * 9 + 4 + 6 * 4 * 9 + 6 + 96 * 3 + 3
    expected = 2 * (36 * 4 * 9 + 16 * 6 * 4 * 9 + 96 * 3)
    assert Flops()(Flops().measure(model, None)).value == expected


def test_overfitting_is_read_off_the_course_of_training():
    history = [{"epoch": e, "clean": c, "robust": r} for e, c, r in ((1, 0.5, 0.3), (2, 0.6, 0.45), (3, 0.7, 0.4))]
    x, y = drawn(3)
    model = subject(network(), x, y, classes=3, card={"history": history})
    assert OverfitGap()(OverfitGap().measure(model, None)).value == pytest.approx(0.05)
    assert OverfitGap(of="clean")(OverfitGap().measure(model, None)).value == 0.0
    bare = subject(network(), x, y, classes=3, card={"history": [{"epoch": 1, "clean": 0.5}]})
    assert math.isnan(OverfitGap()(OverfitGap().measure(bare, None)).value)


def test_what_was_learnt_by_heart_shows_as_a_gap():
    """Labels that mean nothing, fitted by a linear layer of many inputs: right on what it saw, and by chance elsewhere."""
    seen, labels = drawn(60, (1, 12, 12), 2, seed=1)
    new, truth = drawn(60, (1, 12, 12), 2, seed=2)
    flat = seen.flatten(1).double() - 0.5
    w = torch.linalg.lstsq(flat, 2.0 * labels.double() - 1).solution.float()
    module = Linear(torch.stack([-w, w]), torch.stack([w.sum() / 2, -w.sum() / 2]))
    model = subject(module, new, truth, classes=2, train=Images(seen, labels))
    metric = GeneralisationGap()
    found = metric(metric.measure(model, Threat.parse("linf:0.0001")))
    assert found.value > 0.3
    assert found.low <= found.value <= found.high
    crushed = metric.measure(model, Threat.parse("linf:0.5"))
    assert not crushed["robust"].any()


def test_out_of_distribution():
    """Logits grow with brightness: dark images are told from bright ones by every score; from themselves by none."""
    generator = torch.Generator().manual_seed(0)
    bright = 0.6 + 0.4 * torch.rand((40, 1, 4, 4), generator=generator)
    dark = 0.4 * torch.rand((40, 1, 4, 4), generator=generator)
    y = torch.zeros(40, dtype=torch.int64)

    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = 10 * x.flatten(1).mean(1, keepdim=True)
            return torch.cat([z, -z, torch.zeros_like(z)], 1)

    others = {"dark": Images(dark, y), "same": Images(bright.clone(), y)}
    model = subject(Brightness(), bright, y, classes=3, others=others)
    for score in ("msp", "entropy", "energy", "max-logit", "margin", "odin"):
        found = OutOfDistribution(datasets=("dark", "same"), score=score).measure(model, None)
        assert [each.auroc for each in detections(found)] == pytest.approx([1.0, 0.5])
        assert OutOfDistribution()(found).value == pytest.approx(0.75)
    noise = OutOfDistribution().measure(subject(Brightness(), bright, y, classes=3), None)
    assert OutOfDistribution()(noise).value > 0.9
