"""Random numbers that belong to examples. All keys are fixed, so that the statistical tests are deterministic."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from robustbench_lite.errors import PluginError
from robustbench_lite.randomness import Randomness, keyed_draws, rand_like, randn_like, randn_per_pass

Draw = Callable[..., Tensor]
DRAWS: dict[str, Draw] = {
    "uniform": lambda rng, rows, draw=0: rng.uniform(rows, (3, 5), draw=draw),
    "between": lambda rng, rows, draw=0: rng.uniform(rows, (7,), draw=draw, low=-0.3, high=0.3),
    "normal": lambda rng, rows, draw=0: rng.normal(rows, (3, 3), draw=draw),
    "sign": lambda rng, rows, draw=0: rng.sign(rows, (70,), draw=draw),
    "integers": lambda rng, rows, draw=0: rng.integers(rows, (5,), -3, 10**6, draw=draw),
    "permutation": lambda rng, rows, draw=0: rng.permutation(rows, 9, draw=draw),
}
LIKE = {"randn_like": randn_like, "rand_like": rand_like}


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 in whole numbers, straight from the paper's definition."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second & 0xFFFFFFFF, (first >> 32) ^ c[3] ^ k[1], first & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return tuple(c)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_reference_gives_the_known_answers_of_random123(counter: str, key: str, words: str) -> None:
    first, second = (int(k, 16) for k in key.split())
    got = philox(tuple(int(c, 16) for c in counter.split()), (first, second))
    assert got == tuple(int(w, 16) for w in words.split())


@settings(deadline=None)
@given(st.text(max_size=20), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1))
def test_words_are_those_of_philox(key: str, example: int, draw: int) -> None:
    """The stream is defined, so that results can be repeated in ten years: key, counter, order of the words."""
    digest = hashlib.sha256(key.encode()).digest()
    keys = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"))
    where = (draw, example & 0xFFFFFFFF, (example >> 32) & 0xFFFFFFFF)
    want = [word for block in range(3) for word in philox((block, *where), keys)]
    rng = Randomness(key, torch.tensor([example]))
    assert rng.integers(None, (12,), 0, 2**32, draw=draw).tolist() == [want]
    assert rng.integers(None, (12,), -5, 100, draw=draw).tolist() == [[(w * 105 >> 32) - 5 for w in want]]
    assert rng.uniform(None, (12,), draw=draw).tolist() == [[(w >> 8) / 2**24 for w in want]]
    radius = np.sqrt(-2 * np.log((np.array(want[0::2]) + 1) / 2**32))
    angle = 2 * np.pi * np.array(want[1::2]) / 2**32
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()
    np.testing.assert_allclose(rng.normal(None, (12,), draw=draw)[0].numpy(), pairs, rtol=2e-7, atol=1e-9)


def test_the_largest_normal_number_is_finite() -> None:
    """Example 87 of this stream has a word that is 0, as one in 2^32 has: its logarithm must not be taken."""
    rng = Randomness("zero", torch.tensor([87]))
    assert rng.integers(None, (253,), 0, 2**32, draw=3361)[0, 252] == 0
    pair = rng.normal(None, (254,), draw=3361)[0, 252:].double().numpy()
    assert np.linalg.norm(pair) == pytest.approx((2 * 32 * np.log(2)) ** 0.5, rel=1e-6)


def test_large_draws_are_made_in_pieces_without_a_seam() -> None:
    rng = Randomness("pieces", torch.arange(3))
    whole = rng.integers(None, (50_000,), 0, 2**32)
    digest = hashlib.sha256(b"pieces").digest()
    keys = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"))
    for block in (0, 2729, 2730, 2731, 8191, 8192, 12_499):
        assert tuple(whole[2, 4 * block : 4 * block + 4].tolist()) == philox((block, 0, 2, 0), keys)
    many = Randomness("pieces", torch.arange(20_000))
    assert torch.equal(many.integers(None, (5,), 0, 2**32)[2], whole[2, :5])


@settings(deadline=None)
@given(
    st.sampled_from(sorted(DRAWS)),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20, unique=True),
    st.data(),
)
def test_numbers_depend_on_the_example_and_the_draw_alone(name: str, ids: list[int], data: st.DataObject) -> None:
    rng, function = Randomness("key", torch.tensor(ids)), DRAWS[name]
    draws = torch.tensor(data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=len(ids), max_size=len(ids))))
    all_rows = function(rng, None, draws)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=30)), dtype=torch.int64)
    assert torch.equal(function(rng, rows, draws[rows]), all_rows[rows])
    assert torch.equal(function(rng.select(rows), None, draws[rows]), all_rows[rows])
    mask = torch.zeros(len(ids), dtype=torch.bool)
    mask[rows] = True
    assert torch.equal(function(rng, mask, draws[mask]), all_rows[mask])
    assert torch.equal(function(rng.select(mask), None, draws[mask]), all_rows[mask])
    one = Randomness("key", torch.tensor(ids[:1]))
    assert torch.equal(function(one, None, int(draws[0])), all_rows[:1])


@pytest.mark.parametrize("name", sorted(DRAWS))
def test_keys_examples_and_draws_change_the_numbers(name: str) -> None:
    ids = torch.tensor([0, 1, 2**32, 2**32 + 1, -1])
    rng, function = Randomness("a", ids), DRAWS[name]
    draws = [
        function(rng, None, 0),
        function(rng, None, 1),
        function(rng, None, 2**32 - 1),
        function(Randomness("b", ids), None, 0),
        function(rng.child("a"), None, 0),
    ]
    seen = {tuple(row.flatten().tolist()) for values in draws for row in values}
    assert len(seen) == len(draws) * len(ids)


@pytest.mark.parametrize("name", ["uniform", "normal", "sign", "integers"])
def test_a_longer_draw_begins_with_the_shorter_one(name: str) -> None:
    rng = Randomness("key", torch.arange(4))
    extra = {"integers": (0, 1000)}.get(name, ())
    whole = getattr(rng, name)(None, (101,), *extra)
    for count in (0, 1, 2, 3, 4, 5, 33, 100):
        assert torch.equal(getattr(rng, name)(None, (count,), *extra), whole[:, :count])


@pytest.mark.parametrize("ids", [[], [5, 9]])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (3, 2, 5)])
def test_shapes_and_types(shape: tuple[int, ...], ids: list[int]) -> None:
    rng = Randomness("key", torch.tensor(ids, dtype=torch.int64))
    for values in (rng.uniform(None, shape), rng.normal(None, shape), rng.sign(None, shape)):
        assert values.shape == (len(ids), *shape)
        assert values.dtype == torch.float32
    whole = rng.integers(None, shape, 0, 7)
    assert whole.shape == (len(ids), *shape)
    assert whole.dtype == torch.int64
    for n in (0, 1, 5):
        assert rng.permutation(None, n).shape == (len(ids), n)
    none = torch.zeros(0, dtype=torch.int64)
    assert rng.uniform(none, shape, draw=none).shape == (0, *shape)


@pytest.mark.parametrize(("low", "high"), [(1000.0, 1001.0), (-0.1, 0.1), (0.7, 0.8), (-1e8, 0.3), (0.1, 0.1 + 1e-7)])
def test_uniform_stays_below_its_upper_end_after_rounding(low: float, high: float) -> None:
    values = Randomness("edge", torch.arange(100)).uniform(None, (10_000,), low=low, high=high).double()
    assert low <= float(values.min())
    assert float(values.max()) < high
    assert float(values.max()) > high - (high - low) * 0.6


def test_an_interval_without_length_is_its_lower_end() -> None:
    assert Randomness("edge", torch.arange(2)).uniform(None, (3,), low=0.25, high=0.25).tolist() == [[0.25] * 3] * 2


def test_uniform_is_uniform_on_a_grid_of_24_bits() -> None:
    values = Randomness("uniform", torch.arange(500)).uniform(None, (400,)).double().numpy().ravel()
    assert stats.kstest(values, "uniform").pvalue > 0.01
    assert (values * 2**24 == np.floor(values * 2**24)).all()
    low_bits = (values * 2**24).astype(np.int64) & 255
    assert stats.chisquare(np.bincount(low_bits, minlength=256)).pvalue > 0.01


def test_normal_is_normal() -> None:
    values = Randomness("normal", torch.arange(500)).normal(None, (400,)).double().numpy()
    assert stats.kstest(values.ravel(), "norm").pvalue > 0.01
    n = values.size
    assert abs(values.mean()) < 4 / n**0.5
    assert abs(values.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(stats.kurtosis(values.ravel())) < 4 * (24 / n) ** 0.5
    both = np.corrcoef(values[:, 0::2].ravel(), values[:, 1::2].ravel())[0, 1]
    assert abs(both) < 4 / (n / 2) ** 0.5


def test_signs_are_fair_and_independent() -> None:
    values = Randomness("sign", torch.arange(1000)).sign(None, (64,))
    assert set(values.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(values.mean())) < 4 / values.numel() ** 0.5
    correlations = (values.T @ values / 1000).fill_diagonal_(0)
    assert float(correlations.abs().max()) < 5.5 / 1000**0.5


@pytest.mark.parametrize(("low", "high"), [(0, 7), (-3, 2), (5, 6), (0, 2**31 + 7), (-(2**31), 2**31)])
def test_integers_cover_their_range_evenly(low: int, high: int) -> None:
    values = Randomness("integers", torch.arange(300)).integers(None, (200,), low, high)
    assert low <= int(values.min())
    assert int(values.max()) < high
    bins = min(high - low, 50)
    counts = torch.bincount(((values - low).double() * bins / (high - low)).long().flatten(), minlength=bins)
    assert stats.chisquare(counts.numpy()).pvalue > 0.01 or bins == 1


def test_permutations_are_permutations_and_all_as_likely() -> None:
    rng = Randomness("permutation", torch.arange(6000))
    assert torch.equal(rng.permutation(None, 50).sort(1).values, torch.arange(50).expand(6000, 50))
    threes = rng.permutation(None, 3) @ torch.tensor([9, 3, 1])
    counts = torch.unique(threes, return_counts=True)[1]
    assert len(counts) == 6
    assert stats.chisquare(counts.numpy()).pvalue > 0.01


def test_neighbouring_streams_are_uncorrelated() -> None:
    rng = Randomness("streams", torch.arange(2))
    streams = [rng.normal(None, (20_000,), draw=d) for d in range(3)] + [rng.child(i).normal(None, (20_000,)) for i in range(3)]
    correlations = torch.corrcoef(torch.cat(streams)).fill_diagonal_(0)
    assert float(correlations.abs().max()) < 4.5 / 20_000**0.5


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    rng = Randomness("key", torch.arange(4))
    for function in DRAWS.values():
        function(rng, None)
    with keyed_draws(rng, torch.zeros(4, dtype=torch.int64)):
        randn_like(torch.zeros(4, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_children_and_seeds_tell_their_labels_apart() -> None:
    rng = Randomness("key", torch.arange(1))
    labels: list[tuple[str | int, ...]] = [
        (),
        ("1",),
        (1,),
        (-1,),
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("c", "ab"),
        ("a", 1),
        (True,),
    ]
    labels += [("1", "2"), ("1str:2",), ("1str:1:2",)]  # joined without their lengths, two of these would be one
    children = [rng.child(*label) for label in labels] + [rng.child("a").child("bc")]
    assert len({tuple(c.integers(None, (4,), 0, 2**32)[0].tolist()) for c in [rng, *children]}) == len(labels) + 2
    seeds = {rng.seed_for(*label) for label in labels} | {Randomness("other", rng.ids).seed_for()}
    assert len(seeds) == len(labels) + 1
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert rng.seed_for("x", 3) == Randomness("key", torch.arange(9)).seed_for("x", 3)
    assert torch.equal(rng.child("a", 1).uniform(None, (3,)), rng.child("a", 1).uniform(None, (3,)))
    with pytest.raises(TypeError, match="labels"):
        rng.child(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda rng: rng.uniform(None, (2,), draw=-1), "draw must be in"),
        (lambda rng: rng.uniform(None, (2,), draw=2**32), "draw must be in"),
        (lambda rng: rng.uniform(None, (2,), draw=torch.zeros(2, dtype=torch.int64)), "for 3 rows"),
        (lambda rng: rng.uniform(None, (2,), low=1.0, high=0.0), "low must not be above high"),
        (lambda rng: rng.uniform(None, (2,), low=float("nan")), "low must not be above high"),
        (lambda rng: rng.integers(None, (2,), 3, 3), "not 0"),
        (lambda rng: rng.integers(None, (2,), 0, 2**32 + 1), "2\\^32"),
        (lambda rng: Randomness("key", rng.ids.float()), "LongTensor"),
        (lambda rng: Randomness("key", rng.ids[None]), "LongTensor"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(call: Callable[[Randomness], Tensor], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        call(Randomness("key", torch.arange(3)))


# Numbers for stochastic defenses.


def draws_of(ids: list[int], number: int = 0) -> tuple[Randomness, Tensor]:
    return Randomness("cell", torch.tensor(ids, dtype=torch.int64)), torch.full((len(ids),), number, dtype=torch.int64)


@pytest.mark.parametrize("name", sorted(LIKE))
def test_an_example_gets_its_numbers_in_any_batch(name: str) -> None:
    like = LIKE[name]
    with keyed_draws(*draws_of([7, 3, 5])):
        first, second = like(torch.zeros(3, 2, 3)), like(torch.zeros(3, 4))
    with keyed_draws(*draws_of([5, 9, 7, 1])):
        again, later = like(torch.zeros(4, 2, 3)), like(torch.zeros(4, 4))
    assert torch.equal(first[[0, 2]], again[[2, 0]])
    assert torch.equal(second[[0, 2]], later[[2, 0]])
    assert not (first[:, 0] == second[:, :3]).any()
    with keyed_draws(*draws_of([7, 3, 5], 1)):
        assert not (like(torch.zeros(3, 2, 3)) == first).any()


def test_each_row_has_its_own_draw_number() -> None:
    rng, _ = draws_of([7, 7, 3])
    with keyed_draws(rng, torch.tensor([4, 5, 4])):
        mixed = randn_like(torch.zeros(3, 6))
    for row, number in enumerate([4, 5, 4]):
        with keyed_draws(*draws_of([[7, 7, 3][row]], number)):
            assert torch.equal(randn_like(torch.zeros(1, 6))[0], mixed[row])


def test_numbers_of_a_pass_belong_to_its_number_alone() -> None:
    like = torch.zeros(2, 5, dtype=torch.float64)
    with keyed_draws(draws_of([7, 3, 9, 1])[0], torch.tensor([4, 5, 4, 8])):
        numbers, which = randn_per_pass(like)
        later, _ = randn_per_pass(like)
    assert which is not None
    assert which.tolist() == [0, 1, 0, 2]
    assert (numbers.shape, numbers.dtype) == ((3, 2, 5), torch.float64)
    assert len({*numbers.flatten().tolist(), *later.flatten().tolist()}) == 60
    for row, number in enumerate([4, 5, 8]):
        with keyed_draws(*draws_of([2, 6], number)):
            alone, shared = randn_per_pass(like)
            assert shared is None
            assert torch.equal(alone[0], numbers[row])
    with keyed_draws(Randomness("another key", torch.arange(2)), torch.full((2,), 4)):
        assert not (randn_per_pass(like)[0][0] == numbers[0]).any()
    with keyed_draws(*draws_of([])):
        assert randn_per_pass(like)[0].shape == (1, 2, 5)


def test_copies_of_the_batch_get_independent_numbers() -> None:
    with keyed_draws(*draws_of([7, 3])):
        copies = randn_like(torch.zeros(6, 5)).view(3, 2, 5)
    with keyed_draws(*draws_of([3])):
        alone = randn_like(torch.zeros(3, 5))
    assert torch.equal(copies[:, 1], alone)
    assert len(set(copies.flatten().tolist())) == 30


@pytest.mark.parametrize("shape", [(5, 2), (1, 4), (2,), (), (0, 3)])
def test_rows_that_belong_to_no_image_are_an_error(shape: tuple[int, ...]) -> None:
    with keyed_draws(*draws_of([7, 3, 1])), pytest.raises(PluginError, match="in a batch of 3 images"):
        randn_like(torch.zeros(shape))


def test_an_empty_batch() -> None:
    with keyed_draws(*draws_of([])):
        assert randn_like(torch.zeros(0, 3)).shape == (0, 3)
        with pytest.raises(PluginError):
            rand_like(torch.zeros(1, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_types_are_kept_and_uniform_numbers_stay_below_one(dtype: torch.dtype) -> None:
    with keyed_draws(*draws_of(list(range(50)))):
        x = torch.zeros(50, 400, dtype=dtype, requires_grad=True)
        for values in (randn_like(x), rand_like(x)):
            assert values.dtype == dtype
            assert not values.requires_grad
        assert float(values.min()) >= 0
        assert float(values.max()) < 1
        with pytest.raises(PluginError, match="floating-point"):
            randn_like(torch.zeros(50, dtype=torch.int64))


def test_outside_the_core_they_are_those_of_torch() -> None:
    x = torch.zeros(3, 4, dtype=torch.float64)
    torch.manual_seed(0)
    got = randn_like(x), rand_like(x)
    torch.manual_seed(0)
    assert torch.equal(got[0], torch.randn_like(x))
    assert torch.equal(got[1], torch.rand_like(x))
    torch.manual_seed(0)
    numbers, which = randn_per_pass(x)
    assert torch.equal(numbers[0], got[0])
    assert which is None


def test_contexts_nest_and_end_with_an_exception() -> None:
    x = torch.zeros(2, 3)
    with keyed_draws(*draws_of([1, 2])):
        first, second = randn_like(x), randn_like(x)
    with keyed_draws(*draws_of([1, 2])):
        assert torch.equal(randn_like(x), first)
        with keyed_draws(*draws_of([5, 6])):
            assert not torch.equal(randn_like(x), second)
        with pytest.raises(PluginError), keyed_draws(*draws_of([5, 6])):
            randn_like(x[:1])
        assert torch.equal(randn_like(x), second)
    torch.manual_seed(0)
    unkeyed = randn_like(x)
    torch.manual_seed(0)
    assert torch.equal(unkeyed, torch.randn_like(x))


def test_threads_do_not_share_their_numbers() -> None:
    x, got = torch.zeros(2, 3), {}
    meet = threading.Barrier(2, timeout=20)

    def work(number: int) -> None:
        with keyed_draws(*draws_of([1, 2], number)):
            meet.wait()
            first = randn_like(x)
            meet.wait()
            got[number] = torch.stack([first, randn_like(x)])

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (0, 1):
        with keyed_draws(*draws_of([1, 2], number)):
            assert torch.equal(got[number], torch.stack([randn_like(x), randn_like(x)]))


def test_draw_numbers_must_fit_the_examples() -> None:
    with pytest.raises(ValueError, match="2 examples"), keyed_draws(draws_of([1, 2])[0], torch.zeros(3, dtype=torch.int64)):
        pass
