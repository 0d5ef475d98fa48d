"""Detectors: thresholds and refusals, each score against its definition, and attacks that know of the detector."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from rbl_defenses import filters
from rbl_defenses.architectures import small_cnn
from rbl_defenses.behind import Step
from rbl_defenses.detector import Detector
from rbl_defenses.feature_squeezing_detector import FeatureSqueezingDetector
from rbl_defenses.features import Features, pooled
from rbl_defenses.jpeg import JPEG
from rbl_defenses.lid import LID, PENALTY, Dimensions, dimension, logistic
from rbl_defenses.mahalanobis import RIDGE, Distances, Mahalanobis
from rbl_defenses.max_softmax import MaxSoftmax
from rbl_defenses.randomized_smoothing import Smoothed
from robustbench_lite import DatasetBundle, DatasetInfo, MissingWeights, UsageError, losses
from robustbench_lite.cli import cli
from robustbench_lite.data import fetch
from robustbench_lite.registry import load
from robustbench_lite.resolve import resolve_defense
from robustbench_lite.testing import Linear, make_target
from robustbench_lite.training import craft
from robustbench_lite.weights import read_card

INFO = DatasetInfo(name="mine", classes=("a", "b", "c"), shape=(1, 8, 8))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return small_cnn(INFO, width=4).eval().requires_grad_(False)


def images(n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=g), torch.randint(0, 3, (n,), generator=g)


class Brightness(Detector):
    """Scores images by their sum."""

    def answer(self, x: Tensor, base: Step, *, straight: bool) -> tuple[Tensor, Tensor]:
        return base(x), x.flatten(1).sum(1)


# ------------------------------------------------------------------------------------------------------ thresholds, refusals


@pytest.mark.parametrize(("n", "rate", "above"), [(100, 0.05, 5), (99, 0.05, 4), (10, 0.05, 0), (7, 0.5, 3)])
def test_at_most_the_given_share_of_clean_scores_is_above_the_threshold(n: int, rate: float, above: int) -> None:
    module = Brightness(network())
    scores = torch.randn(n, generator=torch.Generator().manual_seed(0))
    module.calibrate(scores, rate)
    assert int((scores > module.get_buffer("threshold")).sum()) == above
    module.calibrate(torch.ones(50), rate)
    assert module.get_buffer("threshold") == 1
    assert module.get_buffer("spread") > 0, "even where all are alike"


def test_it_refuses_exactly_above_the_threshold_and_answers_as_the_base_elsewhere() -> None:
    base, (x, _) = network(), images()
    module = Brightness(base)
    module.calibrate(module.scores(x), 0.3)
    logits = module(x)
    refused = module.scores(x) > module.get_buffer("threshold")
    assert torch.equal(logits[:, :3], base(x))
    assert torch.equal(logits.argmax(1) == 3, refused)
    assert int(refused.sum()) == 12
    assert (module.scores(x) == module.get_buffer("threshold")).any(), "one is exactly there, and is answered"


def test_the_refusal_has_the_gradient_of_the_score() -> None:
    module, x = Brightness(network()), images()[0].requires_grad_()
    module.calibrate(module.scores(x.detach()), 0.05)
    logits = module(x)
    (got,) = torch.autograd.grad((logits[:, 3] - logits[:, :3].amax(1)).sum(), x)
    torch.testing.assert_close(got, torch.ones_like(x) / module.get_buffer("spread"), rtol=1e-4, atol=1e-5)


def test_a_base_that_refuses_itself_is_refused() -> None:
    with pytest.raises(UsageError, match="MaxSoftmax in front of mahalanobis, which refuses already"):
        MaxSoftmax(base="mahalanobis").architecture(INFO, Brightness(network()))


# ----------------------------------------------------------------------------------------------------------------- features


def test_features_are_the_maps_that_convolutions_and_linear_layers_take_in() -> None:
    base, (x, _) = network(), images()
    every = Features(base, INFO, 99)
    assert every.shapes == [(4, 8, 8), (8, 4, 4), (8, 4, 4), (64,)], "the map that is flattened, not the vector"
    logits, found = every(x, base)
    assert torch.equal(logits, base(x))
    by_hand, expected = x, []
    for layer in (module for module in base.modules() if not list(module.children())):
        if isinstance(layer, (nn.Conv2d, nn.Flatten, nn.Linear)):
            expected.append(by_hand)
        by_hand = layer(by_hand)
    for got, wanted in zip(found, [*expected[1:4], expected[5]], strict=True):
        assert torch.equal(got, wanted)
    assert Features(base, INFO, 1).shapes == [(64,)]
    assert Features(base, INFO, 2).shapes == [(8, 4, 4), (64,)]


def test_features_pass_gradients_leave_no_hooks_and_average_over_copies() -> None:
    base, (x, _) = network(), images(4)
    features = Features(base, INFO, 2)
    leaf = x.requires_grad_()
    _, found = features(leaf, base)
    (grad,) = torch.autograd.grad(found[0].sum(), leaf)
    assert grad.abs().max() > 0
    assert not any(module._forward_pre_hooks for module in base.modules())
    smoothed = Smoothed(base, 1e-6, 5)
    _, averaged = Features(smoothed, INFO, 2)(x, smoothed)
    torch.testing.assert_close(averaged[1], found[1], atol=1e-4, rtol=0)


def test_a_base_without_layers_to_look_at_is_refused() -> None:
    with pytest.raises(UsageError, match="Linear has no convolutions or linear layers"):
        Features(Linear.binary((1, 8, 8)), INFO, 3)


# -------------------------------------------------------------------------------------------------------------- mahalanobis


def test_distances_are_scipys() -> None:
    base, (x, y) = network(), images(200)
    module = Distances(base, INFO, 2)
    module.learn(x, y)
    probe = images(5, seed=1)[0]
    total = np.zeros(5)
    for k, (train, test) in enumerate(zip(*(module._features(z, base)[1] for z in (x, probe)), strict=True)):
        h, t = pooled(train).double().numpy(), pooled(test).double().numpy()
        means = np.stack([h[y == c].mean(0) for c in range(3)])
        covariance = np.cov((h - means[y]).T, bias=True)
        covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        inverse = np.linalg.inv(covariance)

        def nearest(points: np.ndarray, means: np.ndarray = means, inverse: np.ndarray = inverse) -> np.ndarray:
            return np.array([min(mahalanobis(p, m, inverse) ** 2 / 2 for m in means) for p in points])

        np.testing.assert_allclose(module.distance(k, pooled(test)), nearest(t), rtol=2e-3)
        total += nearest(t) / nearest(h).mean()
    np.testing.assert_allclose(module.scores(probe), total, rtol=2e-3)


def test_a_class_without_examples_is_never_near() -> None:
    base, (x, y) = network(), images(60)
    module = Distances(base, INFO, 1)
    module.learn(x, y.clamp(max=1))
    assert module(x).isfinite().all()
    own = torch.stack([((x_ - module.get_buffer("means_0")) ** 2).sum(1).argmin() for x_ in module._features(x, base)[1][0]])
    assert (own < 2).all()


# ---------------------------------------------------------------------------------------------------------------------- lid


def test_dimensionality_is_its_definition_and_recovers_the_dimension_of_a_cloud() -> None:
    g = torch.Generator().manual_seed(0)
    for d in (1, 2, 5):
        cloud = torch.zeros(4000, 8)
        cloud[:, :d] = torch.rand(4000, d, generator=g)
        middle = torch.zeros(50, 8)
        middle[:, :d] = 0.4 + 0.2 * torch.rand(50, d, generator=g)
        k = 60
        found = dimension(middle, cloud, k)
        for point, estimate in zip(middle[:3].double(), found, strict=False):
            r = np.sort(np.linalg.norm(cloud.double().numpy() - point.numpy(), axis=1))[:k]
            assert estimate.item() == pytest.approx(-k / np.log(r / r[-1]).sum(), rel=1e-3)
        # Each estimate has a relative deviation of about 1 / sqrt(k); those of near points are not independent.
        assert found.mean().item() == pytest.approx(d, rel=3 / math.sqrt(k))


def test_a_point_that_is_one_of_the_reference_has_a_finite_score_and_gradient() -> None:
    reference = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    x = reference[:3].clone().requires_grad_()
    found = dimension(x, reference, 5)
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert found.isfinite().all()
    assert grad.isfinite().all()
    same = dimension(torch.zeros(2, 5), torch.zeros(20, 5), 5)
    assert same.isfinite().all()


def test_the_regression_is_scikit_learns() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=g).double()
    y = (torch.rand(300, generator=g).double() < torch.sigmoid(2 * x[:, 0] - x[:, 1] - 1)).double()
    expected = LogisticRegression(C=1 / (300 * PENALTY), class_weight="balanced", tol=1e-10, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(logistic(x, y), expected.coef_[0], rtol=1e-4, atol=1e-5)


def test_lid_keeps_the_reference_apart_and_says_where_none_is_left() -> None:
    base, (x, y) = network(), images(60)
    module = Dimensions(base, Features(base, INFO, 2), neighbours=5, reference=20, eps=0.2)
    torch.manual_seed(0)
    module.learn(x, y)
    kept = module._features(x[:20], base)[1][1].flatten(1)
    assert torch.equal(module.get_buffer("features_1"), kept)
    assert module(x).isfinite().all()
    again = Dimensions(base, Features(base, INFO, 2), neighbours=5, reference=20, eps=0.2)
    assert not torch.equal(again(x), module(x))
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(x), module(x)), "what is loaded are images: their features are made again"
    assert sum(b.numel() for n, b in module.state_dict().items() if not n.startswith("base.")) < 1.1 * x[:20].numel()
    with pytest.raises(UsageError, match="keeps 20 training examples, of 20"):
        module.learn(x[:20], y[:20])
    with pytest.raises(ValueError, match="neighbours=30"):
        LID(neighbours=30, reference=20)


# -------------------------------------------------------------------------------------------------- squeezing, max-softmax


def test_the_squeezing_score_is_the_largest_change_of_the_prediction() -> None:
    base, (x, _) = network(), images()
    module = FeatureSqueezingDetector(bits=2, median=3, non_local_means=(5, 3, 20.0)).architecture(INFO, base)
    assert isinstance(module, Detector)
    p = base(x).softmax(1)
    squeezed = [filters.quantise(x, 4), filters.median(x, 3), filters.non_local_means(x, 5, 3, 20.0)]
    expected = torch.stack([(base(s).softmax(1) - p).abs().sum(1) for s in squeezed]).amax(0)
    torch.testing.assert_close(module.scores(x), expected)
    assert torch.equal(module.surrogate(x), module(x))  # type: ignore[operator]
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(module.surrogate(leaf)[:, 3].sum(), leaf)  # type: ignore[operator]
    assert (grad.flatten(1).abs().sum(1) > 0).all()


def test_max_softmax_orders_images_by_their_confidence_however_confident() -> None:
    class Logits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    x = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 50.0], [0.0, 0.0, 60.0]]).view(4, 3, 1, 1)
    module = MaxSoftmax().detector(INFO, Logits())
    odds = module.scores(x)
    confidence = x.double().flatten(1).softmax(1).amax(1)
    torch.testing.assert_close(odds[:2].double(), ((1 - confidence) / confidence).log()[:2])
    assert odds.argsort().tolist() == [3, 2, 0, 1], "beyond what a float32 probability tells apart, too"


@pytest.mark.parametrize(
    "defense", [MaxSoftmax(), FeatureSqueezingDetector(), Mahalanobis(layers=2), LID(layers=2, reference=30)]
)
def test_in_front_of_a_base_without_a_gradient_there_is_one(defense: object) -> None:
    base, (x, _) = JPEG(quality=40)(INFO, network()), images()
    module = defense.architecture(INFO, base)  # type: ignore[attr-defined]
    torch.testing.assert_close(module.surrogate(x), module(x))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(module.surrogate(leaf)[:, 3].sum(), leaf)
    assert (grad.flatten(1).abs().sum(1) > 0).float().mean() > 0.9


# ------------------------------------------------------------------------------------------------------------ all, on digits


def test_cards_say_which_base_they_belong_to_and_other_bases_are_refused(
    trained_once: Callable[[str], Path], digits: DatasetBundle
) -> None:
    card = read_card(trained_once("mahalanobis"))
    assert card["base"]["id"] == "rbl/standard"
    assert {"threshold", "clean"} <= card["held_out"].keys()
    found = resolve_defense(load(), "mahalanobis", digits.info)
    assert found.rejects
    assert card["base"]["weights"] == found.bases[0].weights_ids
    with pytest.raises(MissingWeights, match="has no weights"):
        resolve_defense(load(), "mahalanobis[base=pgd-at]", digits.info)


def auroc(clean: Tensor, other: Tensor) -> float:
    ranks = rankdata(torch.cat([clean, other]).numpy())[len(clean) :]
    return float((ranks.sum() - len(other) * (len(other) + 1) / 2) / (len(clean) * len(other)))


@pytest.mark.parametrize(
    ("selector", "least"),
    [("feature-squeezing-detector", 0.8), ("mahalanobis", 0.9), ("lid[layers=2]", 0.7)],
)
def test_attacks_on_the_base_alone_are_detected_and_few_clean_images_refused(
    selector: str, least: float, trained_once: Callable[[str], Path], digits: DatasetBundle
) -> None:
    trained_once(selector)
    module = resolve_defense(load(), selector, digits.info).build()
    assert isinstance(module, Detector)
    x, y = fetch(digits.test, range(300))
    torch.manual_seed(0)
    x_adv = craft(module.base, x, lambda z: losses.cross_entropy(z, y), eps=0.15, step=0.02, steps=20)
    with torch.no_grad():
        fooled = module.base(x_adv).argmax(1) != y
        refused = (module(x).argmax(1) == 10).float().mean().item()
    assert refused < 0.05 + 5 * math.sqrt(0.05 * 0.95 * (1 / 300 + 1 / 128))  # two samples: images, and the threshold's
    assert auroc(module.scores(x), module.scores(x_adv[fooled])) > least


@pytest.mark.parametrize("selector", ["feature-squeezing-detector", "mahalanobis", "lid[layers=2]"])
def test_attacks_that_count_a_refusal_as_no_success_go_against_the_detector_too(
    selector: str,
    trained_once: Callable[[str], Path],
    digits: DatasetBundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same PGD as known to the base alone, and through the detector: the second beats both, and never by a refusal."""
    trained_once(selector)
    capsys.readouterr()
    attacks = ("transfer[attack=pgd[steps=20]]", "pgd[steps=40,loss=margin]", "apgd-ce[steps=30]")
    options = ["--dataset", "digits", "--n", "60", "--threat", "linf:0.15", "--executor", "inline", "--json"]
    command = ["run", "--defense", selector, "--attack", ",".join(attacks), "--store", str(tmp_path), *options]
    cli(command, standalone_mode=False)
    (row,) = json.loads(capsys.readouterr().out)["tables"][0]["rows"]
    found = {label.partition("[")[0]: cell["robust_accuracy"]["value"] for label, cell in row["attacks"].items()}
    assert found["pgd"] < found["transfer"] - 0.15
    assert found["apgd-ce"] < found["transfer"] - 0.15

    module = resolve_defense(load(), selector, digits.info).build()
    x, y = fetch(digits.test, range(40))
    right = module(x).argmax(1) == y
    x, y = x[right], y[right]
    differentiable = selector != "feature-squeezing-detector"
    target, _ = make_target(module, x, y, "linf:0.15", rejects=True, differentiable=differentiable)
    x_adv = x.clone()
    for _ in range(30):
        _, _, grad = target.loss_and_grad(x_adv, _aware, y)
        x_adv = (x_adv + 0.015 * grad.sign()).clamp(x - 0.15, x + 0.15).clamp(0, 1)
    assert target.broken.float().mean() > 0.3
    beaten = target.best(x)[target.broken]
    answers = module(beaten).argmax(1)
    assert (answers != y[target.broken]).all()
    assert (answers != 10).all()
    assert (module.scores(beaten) <= module.get_buffer("threshold")).all()  # type: ignore[operator]


def _aware(logits: Tensor, y: Tensor) -> Tensor:
    """By how much the best wrong class leads the label and the refusal."""
    held = torch.maximum(logits.gather(1, y[:, None])[:, 0], logits[:, -1])
    return logits[:, :-1].scatter(1, y[:, None], -math.inf).amax(1) - held
