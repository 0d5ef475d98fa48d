"""The networks: their sizes, which are published, and that they fit images of every size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rbl_defenses.architectures import NETWORKS, Network, build, feature_size, small_cnn, with_features
from rbl_defenses.image_defense import AdversariallyTrained
from rbl_defenses.normalise import Normalise
from rbl_defenses.pgd_at import PGDTraining
from rbl_defenses.resnets import PreActBlock
from robustbench_lite import DatasetInfo, InvalidParameter
from robustbench_lite.parameters import build as build_parameters

DIGITS = DatasetInfo(name="digits", classes=tuple("0123456789"), shape=(1, 8, 8), mean=(0.3,), std=(0.4,))


def info(*shape: int, classes: int = 10) -> DatasetInfo:
    return DatasetInfo(name="mine", classes=tuple(map(str, range(classes))), shape=(shape[0], shape[1], shape[2]))


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# For three channels and ten classes. The pre-activation ResNet-18 has 11,171,146 parameters without the batch norm (2 * 512)
# that the paper puts behind the last block.
PUBLISHED = {
    "resnet-18": 11_173_962,
    "preact-resnet-18": 11_171_146 + 2 * 512,
    "wide-resnet-28-10": 36_479_194,
    "wide-resnet-34-10": 46_160_474,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_sizes_that_are_published(name: Network) -> None:
    with torch.device("meta"):
        assert size(build(name, info(3, 32, 32))) == PUBLISHED[name]


def test_the_size_of_the_small_network_is_that_of_its_readme() -> None:
    assert size(small_cnn(DIGITS)) == 47_610


@pytest.mark.parametrize("name", ["small-cnn", "resnet-18", "preact-resnet-18"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 17, 33), (2, 3, 3)])
def test_networks_fit_every_size(name: Network, shape: tuple[int, int, int]) -> None:
    model = build(name, info(*shape, classes=4))
    assert model.training
    assert model(torch.rand(3, *shape)).shape == (3, 4)


@pytest.mark.parametrize("name", NETWORKS)
def test_large_images_are_quartered_before_the_first_stage(name: Network) -> None:
    """Shapes alone, on the meta device: an ImageNet ResNet has stages of 56, 28, 14 and 7 pixels."""
    with torch.device("meta"):
        model = build(name, info(3, 224, 224, classes=1000))
        seen: list[tuple[int, ...]] = []
        if name != "small-cnn":
            for stage in model.stages:  # type: ignore[union-attr]
                stage.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[2:])))
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert seen == [(56 >> i, 56 >> i) for i in range(len(seen))]


@pytest.mark.parametrize("name", ["small-cnn", "resnet-18", "preact-resnet-18"])
def test_normalisation_is_inside_every_network(name: Network) -> None:
    """Stretching an image about the mean and the data set's spread alike changes nothing."""
    torch.manual_seed(0)
    model = build(name, DIGITS).eval()
    stretched = DatasetInfo(name="digits", classes=DIGITS.classes, shape=DIGITS.shape, mean=(0.3,), std=(0.2,))
    other = build(name, stretched).eval()
    state = {key: value for key, value in model.state_dict().items() if not key.endswith((".mean", ".std"))}
    other.load_state_dict(state, strict=False)
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(other(0.3 + 0.5 * (x - 0.3)), model(x))
    assert not torch.allclose(other(x), model(x))


def test_normalisation_is_part_of_the_weights() -> None:
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(Normalise(DIGITS)(x), (x - 0.3) / 0.4)
    assert {"0.0.mean", "0.0.std"} <= set(small_cnn(DIGITS).state_dict())
    assert torch.equal(Normalise(info(3, 8, 8))(x.expand(4, 3, 8, 8)), x.expand(4, 3, 8, 8))


def test_a_pre_activation_block_is_its_shortcut_where_its_convolutions_are_zero() -> None:
    same, wider = PreActBlock(4, 4, 1).eval(), PreActBlock(4, 6, 2).eval()
    x = torch.randn(2, 4, 8, 8)
    for block in (same, wider):
        nn.init.zeros_(block.conv2.weight)
    assert torch.equal(same(x), x)
    assert wider.projection is not None
    expected: Tensor = wider.projection(F.relu(wider.bn1(x)))
    torch.testing.assert_close(wider(x), expected)


@pytest.mark.parametrize("name", ["small-cnn", "resnet-18", "preact-resnet-18"])
def test_features_are_what_the_last_layer_is_given(name: Network) -> None:
    model = build(name, DIGITS).eval()
    x = torch.rand(5, 1, 8, 8)
    logits, features = with_features(model, x)
    assert features.shape == (5, feature_size(model))
    assert torch.equal(logits, model(x))
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    assert torch.equal(logits, head(features))
    assert not head._forward_pre_hooks
    features.sum().backward()
    assert any(p.grad is not None for p in model.parameters())


def test_a_width_that_means_nothing_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="width is of small-cnn: resnet-18 has its own"):
        build_parameters(PGDTraining, {"network": "resnet-18", "width": "8"}, where="pgd-at")
    with pytest.raises(InvalidParameter, match="network must be"):
        build_parameters(PGDTraining, {"network": "resnet18"}, where="pgd-at")
    defense = build_parameters(PGDTraining, {"network": "resnet-18"}, where="pgd-at")
    assert isinstance(defense, AdversariallyTrained)
    assert size(defense.architecture(info(3, 32, 32))) == PUBLISHED["resnet-18"]
