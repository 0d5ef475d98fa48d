"""Noise on weights: its distribution, which images share it, what learns; PNI and CNI."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rbl_defenses.architectures import small_cnn
from rbl_defenses.cni import CNI, ColouredNoise
from rbl_defenses.image_defense import AdversariallyTrained
from rbl_defenses.pgd_at import PGDTraining
from rbl_defenses.pni import PNI, WhiteNoise
from rbl_defenses.resnets import ResNet
from rbl_defenses.surgery import wrap
from rbl_defenses.weight_noise import LAYERS, NoisyLayer
from robustbench_lite import DatasetInfo, Randomness
from robustbench_lite.deployed import Deployed
from robustbench_lite.randomness import keyed_draws
from robustbench_lite.training import Context, train

Batch = tuple[Tensor, Tensor]
Contexts = Callable[..., Context]
INFO = DatasetInfo(name="mine", classes=tuple("abc"), shape=(1, 8, 8))


def coloured(layer: nn.Module, rank: int = 2) -> ColouredNoise:
    """In float64, with parameters that differ."""
    noisy = ColouredNoise(layer.double(), rank, 0.1, 0.1).double()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
        noisy.covariance.mul_(0.5)
    return noisy


def white(layer: nn.Module) -> WhiteNoise:
    noisy = WhiteNoise(layer.double(), "channel", 0.3).double()
    with torch.no_grad():
        noisy.alpha.mul_(torch.linspace(-1, 2, noisy.alpha.numel(), dtype=torch.float64).view_as(noisy.alpha))
    return noisy


def covariance(noisy: NoisyLayer) -> Tensor:
    """The covariance of the weights as the papers have it, from the parameters."""
    weight = noisy.weight.detach()
    if isinstance(noisy, ColouredNoise):
        factors = noisy.covariance.detach().flatten(1)
        return torch.diag(weight.std() * noisy.variance.detach().abs().flatten()) + factors.T @ factors
    assert isinstance(noisy, WhiteNoise)
    return torch.diag((noisy.alpha.detach() * weight.std()).square().expand_as(weight).flatten())


def assert_covariance(samples: Tensor, expected: Tensor) -> None:
    """samples: (N, d). Five standard errors for each entry: Var of c_ij is (c_ii c_jj + c_ij^2) / N."""
    found = samples.T.cov()
    own = expected.diagonal()
    error = ((torch.outer(own, own) + expected.square()) / len(samples)).sqrt()
    assert ((found - expected).abs() < 5 * error + 1e-12).all()
    assert (samples.mean(0).abs() < 5 * (own / len(samples)).sqrt() + 1e-12).all()


LAYER = {"conv": lambda: nn.Conv2d(2, 2, 2, stride=2, padding=1), "linear": lambda: nn.Linear(5, 3)}
INPUT = {"conv": (2, 3, 3), "linear": (5,)}


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("noise", [coloured, white])
def test_one_draw_of_the_weights_has_the_covariance_that_is_learned(kind: str, noise: Callable[..., NoisyLayer]) -> None:
    torch.manual_seed(0)
    noisy = noise(LAYER[kind]())
    n = 8_000
    with torch.no_grad():
        in_training = torch.cat([noisy.draw()[0].flatten(1) for _ in range(n)])
        with keyed_draws(Randomness("cell", torch.zeros(n, dtype=torch.long)), torch.arange(n)):
            judged, which = noisy.draw()
    assert which is not None
    for samples in (in_training, judged.flatten(1)):
        assert_covariance(samples - noisy.weight.detach().flatten(), covariance(noisy))


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("noise", [coloured, white])
def test_images_of_one_pass_meet_the_same_weights_and_those_of_several_their_own(
    kind: str, noise: Callable[..., NoisyLayer]
) -> None:
    noisy = noise(LAYER[kind]())
    x = torch.randn(7, *INPUT[kind], dtype=torch.float64)
    draw = torch.tensor([4, 2, 4, 4, 9, 2, 9])
    with torch.no_grad():
        with keyed_draws(Randomness("cell", torch.arange(7)), draw):
            mixed = noisy(x)
        for number in (2, 4, 9):
            rows = draw == number
            with keyed_draws(Randomness("cell", torch.arange(7)[rows] + 40), draw[rows]):
                torch.testing.assert_close(mixed[rows], noisy(x[rows]))
        same = torch.full((7,), 4)
        with keyed_draws(Randomness("cell", torch.arange(7)), same):
            weights, which = noisy.draw()
    assert which is None
    assert len(weights) == 1
    assert not torch.equal(weights[0], noisy.weight)


def networks() -> dict[str, nn.Module]:
    return {
        "small": small_cnn(INFO, width=3),
        "residual": ResNet(INFO, (4, 4, 6), 1, preact=False),
        "pre-activation": ResNet(INFO, (4, 4, 6), 1, preact=True),
    }


@pytest.mark.parametrize("kind", ["small", "residual", "pre-activation"])
@pytest.mark.parametrize(
    "make", [lambda layer: WhiteNoise(layer, "element", 0.2), lambda layer: ColouredNoise(layer, 2, 0.05, 0.02)]
)
def test_in_every_network_draws_belong_to_passes(kind: str, make: Callable[[nn.Module], nn.Module]) -> None:
    model = networks()[kind].eval()
    plain = [module for module in model.modules() if isinstance(module, LAYERS)]
    wrap(model, LAYERS, make)
    assert [m.wrapped for m in model.modules() if isinstance(m, NoisyLayer)] == plain
    x, ids = torch.rand(6, 1, 8, 8), torch.arange(10, 16)

    def passes(rows: Tensor, draw: int) -> Tensor:
        with keyed_draws(Randomness("cell", ids[rows]), torch.full_like(rows, draw)), torch.no_grad():
            logits: Tensor = model(x[rows])
        return logits

    whole = passes(torch.arange(6), 3)
    chosen = torch.tensor([4, 0, 5])
    torch.testing.assert_close(passes(chosen, 3), whole[chosen], rtol=0, atol=1e-5)
    assert (passes(torch.arange(6), 4) - whole).abs().amax(1).min() > 1e-3


# ---------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(("granularity", "count"), [("layer", 1), ("channel", 6), ("element", 6 * 2 * 9)])
def test_pni_learns_its_magnitudes_and_nothing_through_the_deviation_of_the_weights(granularity: str, count: int) -> None:
    noisy = WhiteNoise(nn.Conv2d(2, 6, 3), granularity, 0.25)  # type: ignore[arg-type]
    assert noisy.alpha.numel() == count
    assert torch.equal(noisy.alpha, torch.full_like(noisy.alpha, 0.25))
    torch.testing.assert_close(noisy.deviation().expand_as(noisy.weight), 0.25 * noisy.weight.std().expand_as(noisy.weight))
    slopes = torch.autograd.grad(noisy.deviation().sum(), [noisy.alpha, noisy.weight], allow_unused=True)
    assert slopes[0] is not None
    assert slopes[1] is None


@pytest.mark.parametrize("defense", [PNI(), CNI()])
def test_noise_is_spared_weight_decay(defense: AdversariallyTrained) -> None:
    model = defense.architecture(INFO)
    network, noise = defense.parameter_groups(model, None)
    named = {id(p): name for name, p in model.named_parameters()}
    assert {named[id(p)].rsplit(".", 1)[1] for p in noise["params"]} <= {"alpha", "variance", "covariance"}
    assert {named[id(p)].rsplit(".", 1)[1] for p in network["params"]} == {"weight", "bias"}
    assert noise["weight_decay"] == 0
    assert noise.get("lr_scale", 1.0) == (0.1 if isinstance(defense, CNI) else 1.0)
    assert len(network["params"]) + len(noise["params"]) == len(named)


def test_published_values_and_those_of_digits() -> None:
    digits = DatasetInfo(name="digits", classes=tuple("ab"), shape=(1, 8, 8))

    def first(defense: AdversariallyTrained, info: DatasetInfo) -> NoisyLayer:
        return next(m for m in defense.architecture(info).modules() if isinstance(m, NoisyLayer))

    assert first(PNI(), INFO).alpha.numel() == 1  # type: ignore[operator]
    assert first(PNI(), digits).alpha.numel() == 16  # type: ignore[operator]
    for info, variance in ((INFO, 0.0625), (digits, 0.00625)):
        layer = first(CNI(), info)
        assert isinstance(layer, ColouredNoise)
        assert layer.covariance.shape == (5, 16, 1, 3, 3)
        assert layer.variance.unique().item() == pytest.approx(variance)
        assert layer.covariance.unique().item() == pytest.approx(0.01)


def test_pni_trains_on_clean_images_first_and_then_leads_away_from_its_own_predictions(
    batch: Batch, context_of: Contexts
) -> None:
    x, y = batch
    defense = PNI(width=4)
    torch.manual_seed(0)
    model = defense.architecture(INFO)
    late = context_of(defense, model, info=INFO, epoch=5.0)
    early = context_of(defense, model, info=INFO, epoch=4.99)
    torch.manual_seed(1)
    clean = defense.loss(model, x, y % 3, early)
    torch.manual_seed(1)
    torch.testing.assert_close(clean, F.cross_entropy(model(x), y % 3))
    found = []
    for labels in (y % 3, (y + 1) % 3):
        torch.manual_seed(1)
        context = context_of(defense, model, info=INFO, epoch=5.0)
        defense.loss(copy.deepcopy(model), x, labels, context)  # the statistics of batch norm move on
        found.append(context.once("x_adv", lambda: x))
    assert torch.equal(*found)  # the labels have no say
    assert 0 < (found[0] - x).abs().max() <= late.eps + 1e-6


def test_without_noise_both_are_adversarial_training_with_half_the_weight_on_clean_images(
    batch: Batch, context_of: Contexts
) -> None:
    x, y = batch
    plain = PGDTraining(width=4, mix=0.5)
    quiet = (PNI(width=4, alpha=0.0), CNI(width=4, alpha=0.0, rank=0, variance=0.0))
    for defense in quiet:
        torch.manual_seed(0)
        model = plain.architecture(INFO)
        torch.manual_seed(0)
        noisy = defense.architecture(INFO)
        values = []
        for each, network in ((plain, model), (defense, noisy)):
            context = context_of(each, network, info=INFO)
            context.once("x_adv", lambda: x + 0.01)
            values.append(each.loss(network, x, y % 3, context))
        torch.testing.assert_close(*values)


@pytest.mark.parametrize("defense", [PNI(width=3, epochs=2, delay=0), CNI(width=3, epochs=2)])
def test_the_noise_is_learned(defense: AdversariallyTrained, digits) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    before = {n: p.clone() for n, p in defense.architecture(digits.info).named_parameters() if n.endswith(("alpha", "ance"))}
    model = train(defense, digits, seed=0).module
    after = dict(model.named_parameters())
    assert all(not torch.equal(value, after[name]) for name, value in before.items())
    columns = [p.detach().flatten(1) for n, p in after.items() if n.endswith("covariance")]
    assert all((c[0] - c[1]).abs().max() > 0 for c in columns)  # equal at the start; what is drawn for each tells them apart
    logits = Deployed(model, num_classes=10, stochastic=True).stack(
        torch.rand(4, 1, 8, 8), passes=3, key="k", ids=torch.arange(4), draw=torch.zeros(4, dtype=torch.long)
    )
    assert logits.var(1).min() > 0
