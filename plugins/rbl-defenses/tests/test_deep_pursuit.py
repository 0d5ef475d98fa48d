"""Deep pursuit: what its iterations descend, what they end at, and that gradients pass through all of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rbl_defenses
from rbl_defenses.deep_pursuit import DeepPursuit
from rbl_defenses.pursuit import Dictionary, Pursuit
from robustbench_lite import DatasetBundle, DatasetInfo
from robustbench_lite.data import fetch
from robustbench_lite.training import train

SHIPPED = Path(rbl_defenses.__file__).parent / "weights" / "digits" / "deep-pursuit.safetensors"
TINY = DatasetInfo(name="mine", classes=("a", "b"), shape=(1, 5, 4))


def tiny(**given: object) -> Pursuit:
    torch.manual_seed(0)
    options = {"steps": 4, "step": 1.0, "joint": True, "skips": False} | given
    found = Pursuit(TINY, 2, **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for threshold in found.thresholds:
            threshold.fill_(0.05)
    return found


def images(n: int = 3) -> Tensor:
    return torch.rand(n, *TINY.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (17, 20)])
@pytest.mark.parametrize("links", [(0, 1), (1, 2), (0, 2), (1, 3)])
def test_synthesis_is_the_adjoint_of_analysis_by_atoms_of_length_1(size: tuple[int, int], links: tuple[int, int]) -> None:
    torch.manual_seed(0)
    d = Dictionary(*links, (1, 2, 3, 4), (1, 1, 2, 2)).double()
    torch.testing.assert_close(d.weight.flatten(1).norm(dim=1), torch.ones(len(d.weight), dtype=torch.float64))
    maps = torch.randn(2, d.weight.shape[1], *size, dtype=torch.float64)
    codes = torch.randn_like(d.analyse(maps))
    torch.testing.assert_close((d.analyse(maps) * codes).sum(), (maps * d.synthesise(codes, maps)).sum())


@pytest.mark.parametrize("skips", [False, True])
def test_the_steps_are_proximal_gradient_steps_of_the_energy(skips: bool) -> None:
    """Against autograd's gradient of the energy, whose Hessian has the eigenvalue that the power iteration finds."""
    model = tiny(skips=skips, steps=2).eval()
    with torch.no_grad():
        for _ in range(200):
            model.follow_lipschitz()
    start = [code.detach() for code in model.feed_forward(images(1))]
    sizes = [code.shape for code in start[1:]]

    def energy(flat: Tensor) -> Tensor:
        parts = flat.split([size.numel() for size in sizes])
        return model.energy([start[0], *(part.view(size) for part, size in zip(parts, sizes, strict=True))])[0]

    flat = torch.cat([code.flatten() for code in start[1:]])
    hessian = torch.autograd.functional.hessian(energy, flat)
    most = float(torch.linalg.eigvalsh(hessian)[-1])
    assert float(model.lipschitz) == pytest.approx(most, rel=1e-3)
    leaf = flat.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(leaf), leaf)
    expected = F.relu(flat - slope / float(model.lipschitz))
    found = torch.cat([code.flatten() for code in model.deep(start[0])[1:]])
    torch.testing.assert_close(found, expected)


def test_each_iteration_lowers_the_energy_down_to_where_it_is_least(digits: DatasetBundle) -> None:
    x, _ = fetch(digits.test, range(50))
    energies, codes = [], []
    with torch.no_grad():
        for steps in (1, 2, 3, 5, 9, 17):
            model = DeepPursuit(steps=steps)(digits.info, None)
            trained = DeepPursuit()(digits.info, SHIPPED)
            model.load_state_dict(trained.state_dict())
            codes = model.codes(x)
            energies.append(model.energy(codes))
    assert all((later < earlier).all() for earlier, later in pairwise(energies))
    assert energies[3].mean() < 0.5 * energies[0].mean()
    assert all((code >= 0).all() and 0.05 < (code == 0).float().mean() < 0.99 for code in codes[1:])


def test_after_many_steps_another_changes_nothing() -> None:
    model = tiny(steps=1000).eval()
    with torch.no_grad():
        codes = model.codes(images())
        again = [model.proximal(k, codes[k + 1], slope) for k, slope in enumerate(model.gradient(model.residuals(codes)))]
    for code, other in zip(codes[1:], again, strict=True):
        torch.testing.assert_close(code, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("joint", [True, False])
def test_one_step_is_an_ordinary_network(joint: bool) -> None:
    model, code = tiny(steps=1, joint=joint).eval(), images()
    expected = code
    for d, threshold in zip(model.dictionaries, model.thresholds, strict=True):
        expected = F.relu(F.conv2d(expected, d.weight, -threshold.flatten(), d.stride, 1))
    torch.testing.assert_close(model(code), model.classifier(expected))


def test_the_layered_solver_lowers_each_layers_own_energy_and_ends_elsewhere() -> None:
    def own(codes: list[Tensor], model: Pursuit) -> list[float]:
        return [
            float((0.5 * (below - d.synthesise(code, below)).square()).sum() + (b * code).sum())
            for below, code, d, b in zip(codes[:-1], codes[1:], model.dictionaries, model.thresholds, strict=True)
        ]

    one, many = (tiny(steps=steps, joint=False).eval().requires_grad_(False) for steps in (1, 30))
    first = one.codes(images())
    found = many.codes(images())
    assert own(found, many)[0] < own(first, one)[0]
    assert (found[1] - tiny(steps=30).eval().codes(images())[1]).abs().max() > 1e-3  # those above have a say in the other


@pytest.mark.parametrize(("joint", "skips"), [(True, False), (True, True), (False, False)])
def test_gradients_pass_through_every_iteration(joint: bool, skips: bool) -> None:
    model = tiny(joint=joint, skips=skips).eval()
    assert torch.autograd.gradcheck(lambda x: model.codes(x)[-1], (images(1).requires_grad_(),), eps=1e-7, atol=1e-4)
    loss = model.train()(images(8)).square().sum()
    assert all(g.any() for g in torch.autograd.grad(loss, list(model.parameters())))


def test_only_training_follows_the_lipschitz_constant() -> None:
    model = tiny()
    before = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        next(iter(model.dictionaries)).parametrizations.weight.original.normal_()  # type: ignore[union-attr]
    model.eval()(images())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    model.train()(images())
    assert not torch.equal(model.get_buffer("lipschitz"), before["lipschitz"])


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 3, 3), (1, 17, 33)])
@pytest.mark.parametrize("skips", [False, True])
def test_it_fits_every_size(shape: tuple[int, int, int], skips: bool) -> None:
    model = DeepPursuit(width=4, steps=2, skips=skips).architecture(DatasetInfo(name="mine", classes=("a", "b"), shape=shape))
    assert model(torch.rand(3, *shape)).shape == (3, 2)


def test_skips_want_all_layers_at_once() -> None:
    with pytest.raises(ValueError, match="skips want all layers at once"):
        DeepPursuit(skips=True, solver="layered")


def test_a_short_training_learns(digits: DatasetBundle) -> None:
    result = train(DeepPursuit(width=4, epochs=3, steps=3, skips=True), digits, seed=0)
    assert result.metrics["clean"] > 0.5
    assert isinstance(result.module, nn.Module)
