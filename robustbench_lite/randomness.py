"""Random numbers that belong to an example: who else is in the batch, and on which device, changes nothing.

A draw is a function of a key, the example's id and the draw's number, computed by the counter-based generator Philox4x32-10
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). There is no state that advances: the same call gives
the same numbers. It is written in integer tensor operations, which every device computes alike.

    key       the first 64 bits of the SHA-256 of the stream's name
    counter   (block, draw, id mod 2^32, id div 2^32): 128 bits; a block makes four words of 32 bits

Number i of a draw comes from word i (normal numbers from a pair of words), so a longer draw begins with the shorter one.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from robustbench_lite.errors import PluginError

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# On a CPU, blocks are made in pieces whose intermediates stay in the cache.
_CPU_BLOCKS = 1 << 13


class Randomness:
    """A stream of random numbers for N examples.

    key: any text; streams of different keys are independent. ids: LongTensor (N,), the numbers by which the examples are
    known everywhere; draws are made on its device.

    ``rows`` of every draw are the rows wanted, a LongTensor (n,) or a bool mask (N,), or None for all; ``shape`` is what
    each gets. ``draw`` is the number of the draw, in [0, 2^32): one for all, or a LongTensor (n,) with one per row, taken
    mod 2^32. To make several draws at once, repeat the rows.
    """

    __slots__ = ("_digest", "_keys", "ids")

    def __init__(self, key: str, ids: Tensor) -> None:
        if ids.dtype != torch.int64 or ids.dim() != 1:
            raise ValueError(f"ids must be a LongTensor (N,), not {tuple(ids.shape)} of {ids.dtype}")
        self._start(hashlib.sha256(key.encode()).digest(), ids)

    def _start(self, digest: bytes, ids: Tensor) -> Randomness:
        self._digest = digest
        self._keys: Tensor | None = None
        self.ids = ids
        return self

    def __len__(self) -> int:
        return len(self.ids)

    def child(self, *labels: str | int) -> Randomness:
        """An independent stream for the same examples; ``child(1)`` and ``child("1")`` are different ones."""
        return object.__new__(Randomness)._start(self._derive("child", labels), self.ids)

    def select(self, rows: Tensor) -> Randomness:
        """The same stream for some of its examples: LongTensor (n,) or bool mask (N,), as ``Target.select``."""
        return object.__new__(Randomness)._start(self._digest, self.ids[rows])

    def for_all(self, *labels: str | int) -> np.random.Generator:
        """A generator of numpy for numbers that belong to no example, by what they are called: many at once, the fast way."""
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self._derive("all", labels)[:16], "little")))

    def seed_for(self, *labels: str | int) -> int:
        """A seed in [0, 2^63) for code that needs torch's global generator."""
        return int.from_bytes(self._derive("seed", labels)[:8], "little") >> 1

    def uniform(
        self, rows: Tensor | None, shape: Sequence[int], *, draw: int | Tensor = 0, low: float = 0.0, high: float = 1.0
    ) -> Tensor:
        """float32 (n, *shape), uniform on [low, high) on a grid of 2^24 steps; all ``low`` where high equals low."""
        if not low <= high:
            raise ValueError(f"low must not be above high: [{low}, {high})")
        count = math.prod(shape)
        values = (self._words(rows, count, draw) >> 8).to(torch.float32).mul_(2.0**-24)
        if (low, high) != (0.0, 1.0):
            values.mul_(high - low).add_(low).clamp_(*_float32_inside(low, high))
        return values.reshape(len(values), *shape)

    def normal(self, rows: Tensor | None, shape: Sequence[int], *, draw: int | Tensor = 0) -> Tensor:
        """float32 (n, *shape), standard normal by Box and Muller's transform in float64; at most 6.7 in absolute value.

        Devices' logarithms and cosines may differ in the last bit of float64; one number in some 10^8 then differs in the
        last bit of float32.
        """
        count = math.prod(shape)
        half = -(-count // 2)
        words = self._words(rows, 2 * half, draw)
        pairs = words.to(torch.float64).reshape(len(words), half, 2)
        radius = pairs[..., 0].add(1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = pairs[..., 1] * (2.0**-31 * math.pi)
        values = torch.stack([radius * angle.cos(), radius * angle.sin()], 2).flatten(1)
        return values[:, :count].to(torch.float32).reshape(len(values), *shape)

    def sign(self, rows: Tensor | None, shape: Sequence[int], *, draw: int | Tensor = 0) -> Tensor:
        """float32 (n, *shape) of -1 and 1, one bit each."""
        count = math.prod(shape)
        words = self._words(rows, -(-count // 32), draw)
        bits = (words[..., None] >> torch.arange(32, device=words.device)).bitwise_and_(1).flatten(1)[:, :count]
        return bits.to(torch.float32).mul_(2).sub_(1).reshape(len(words), *shape)

    def integers(self, rows: Tensor | None, shape: Sequence[int], low: int, high: int, *, draw: int | Tensor = 0) -> Tensor:
        """int64 (n, *shape), uniform on low, ..., high - 1.

        Each value's probability is within 2^-32 of 1 / (high - low). Raises ValueError unless 1 <= high - low <= 2^32.
        """
        span = high - low
        if not 1 <= span <= 1 << 32:
            raise ValueError(f"high - low must be in [1, 2^32], not {span}")
        words = self._words(rows, math.prod(shape), draw)
        if span <= _MASK:  # at 2^32 the words are the numbers, and the product might not fit
            words.mul_(span).bitwise_right_shift_(32).bitwise_and_(_MASK)
        return words.add_(low).reshape(len(words), *shape)

    def permutation(self, rows: Tensor | None, n: int, *, draw: int | Tensor = 0) -> Tensor:
        """int64 (n_rows, n): for each row its own order of 0, ..., n - 1, by sorting keys of 63 bits."""
        words = self._words(rows, 2 * n, draw)
        keys = words[:, :n].bitwise_left_shift(31).bitwise_or_(words[:, n:] >> 1)
        return keys.argsort(dim=1, stable=True)

    def _words(self, rows: Tensor | None, count: int, draw: int | Tensor) -> Tensor:
        """(n, count) int64 in [0, 2^32)."""
        ids = self.ids if rows is None else self.ids[rows]
        n, blocks = len(ids), -(-count // 4)
        if isinstance(draw, Tensor):
            if draw.shape != (n,):
                raise ValueError(f"draw has shape {tuple(draw.shape)} for {n} rows")
            draws = draw.to(ids.device, torch.int64) & _MASK
        elif 0 <= draw <= _MASK:
            draws = torch.full_like(ids, draw)
        else:
            raise ValueError(f"draw must be in [0, 2^32), not {draw}")
        if self._keys is None:
            self._keys = _round_keys(self._digest).to(ids.device)
        step = blocks if ids.is_cuda or n * blocks <= _CPU_BLOCKS else max(1, _CPU_BLOCKS // max(n, 1))
        words = torch.empty((n, blocks, 4), dtype=torch.int64, device=ids.device)
        for first in range(0, blocks, max(step, 1)):
            part = words[:, first : first + step]
            _philox(part, first, draws[:, None], (ids & _MASK)[:, None], ((ids >> 32) & _MASK)[:, None], self._keys)
        return words.view(n, 4 * blocks)[:, :count]

    def _derive(self, purpose: str, labels: tuple[str | int, ...]) -> bytes:
        """SHA-256 over this stream, the purpose, and each label with its type and length."""
        state = hashlib.sha256(self._digest + purpose.encode() + b"\0")
        for label in labels:
            if not isinstance(label, (str, int)):
                raise TypeError(f"labels are text or whole numbers, not {type(label).__name__}: {label!r}")
            text = str(label).encode()
            state.update(f"{type(label).__name__}:{len(text)}:".encode() + text)
        return state.digest()


def _philox(out: Tensor, first: int, draw: Tensor, low: Tensor, high: Tensor, keys: Tensor) -> None:
    """Fill ``out`` (n, B, 4) with blocks first, ..., first + B - 1 of the counters (block, draw, low, high); those are (n, 1).

    The two multiplications of a round go side by side in one tensor (2, n, B): words 0 and 2 in ``even``, and as ``odd`` the
    products whose lower halves are words 3 and 1. Products of 32-bit numbers overflow int64 into its sign; the masks take the
    right bits all the same.
    """
    n, blocks, _ = out.shape
    even = torch.empty((2, n, blocks), dtype=torch.int64, device=out.device)
    even[0] = torch.arange(first, first + blocks, device=out.device)
    even[1] = low
    multipliers = _multipliers(out.device)
    products, others = torch.empty_like(even), torch.empty_like(even)  # of this round and of the last, in turns
    word_0, word_2 = even.unbind()
    odd: Sequence[Tensor] = (high, draw)
    for round_keys in keys.unbind():
        torch.mul(even, multipliers, out=products)
        both = products.unbind()
        # Word 0 takes the upper half of the second product, word 2 that of the first.
        torch.bitwise_right_shift(both[1], 32, out=word_0).bitwise_xor_(odd[1])
        torch.bitwise_right_shift(both[0], 32, out=word_2).bitwise_xor_(odd[0])
        even.bitwise_xor_(round_keys).bitwise_and_(_MASK)
        odd = both
        products, others = others, products
    for lane, word in enumerate((word_0, odd[1], word_2, odd[0])):
        out[..., lane] = word
    out.bitwise_and_(_MASK)


def _round_keys(digest: bytes) -> Tensor:
    """(10, 2, 1, 1): the key of each round, for words 0 and 2."""
    start = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"))
    rounds = [[(k + r * w) & _MASK for k, w in zip(start, _WEYL, strict=True)] for r in range(_ROUNDS)]
    return torch.tensor(rounds, dtype=torch.int64).view(_ROUNDS, 2, 1, 1)


@lru_cache(maxsize=16)
def _multipliers(device: torch.device) -> Tensor:
    return torch.tensor(_MULTIPLIERS, dtype=torch.int64, device=device).view(2, 1, 1)


def _float32_inside(low: float, high: float) -> tuple[float, float]:
    """The least and the largest float32 in [low, high); twice ``low`` where there is none."""
    least, largest = np.float32(low), np.float32(high)
    if float(least) < low:
        least = np.nextafter(least, np.float32(np.inf))
    if float(largest) >= high:
        largest = np.nextafter(largest, np.float32(-np.inf))
    return float(least), float(max(least, largest))


# Numbers from torch's global generator.


@contextmanager
def seeded_globally(used: bool, seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator for an attack that draws from it (where ``used``), and restore it afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if used:
            torch.manual_seed(seed)
        yield


def generator_states(device: torch.device) -> list[bytes]:
    """The states of the generators that everybody shares: torch's, Python's and numpy's."""
    states = [torch.random.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    twister = np.random.get_state(legacy=False)["state"]
    others = [repr(random.getstate()).encode(), twister["key"].tobytes(), str(twister["pos"]).encode()]
    return [state.numpy().tobytes() for state in states] + others


# Numbers for stochastic defenses.


class Keyed:
    """One forward pass under ``keyed_draws``: whose rows, which draw of each, and how many calls so far."""

    def __init__(self, rng: Randomness, draw: Tensor) -> None:
        self.rng, self.draw, self.calls = rng, draw, 0

    def next(self) -> Randomness:
        self.calls += 1
        return self.rng.child("call", self.calls - 1)


_current: ContextVar[Keyed | None] = ContextVar("robustbench_lite_keyed_draws", default=None)


@contextmanager
def keyed_draws(rng: Randomness, draw: Tensor) -> Iterator[Keyed]:
    """While this lasts, ``randn_like`` and ``rand_like`` give each example its own numbers, ``randn_per_pass`` each pass.

    The core enters it around each forward pass. rng: a stream over the examples of the batch, in its order. draw: LongTensor
    (n,), the number of the pass for each. The i-th call inside uses the stream ``rng.child("call", i)``. Gives their counter.
    """
    if draw.shape != rng.ids.shape:
        raise ValueError(f"{len(rng)} examples and draw numbers of shape {tuple(draw.shape)}")
    keyed = Keyed(rng, draw)
    token = _current.set(keyed)
    try:
        yield keyed
    finally:
        _current.reset(token)


def randn_like(x: Tensor) -> Tensor:
    """Standard normal numbers of the shape, type and device of ``x`` (n, ...), as ``torch.randn_like``.

    When the core runs the model, the numbers of an example depend on the example and the pass alone. ``x`` then has one row
    per image of the batch, or k copies of the batch one after the other (``x.repeat(k, ...)``), which get independent
    numbers. They have the precision of float32. Raises PluginError for any other number of rows.
    """
    keyed = _current.get()
    if keyed is None:
        return torch.randn_like(x)
    return _by_example(keyed, x, "randn_like")


def rand_like(x: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) of the shape, type and device of ``x``, as ``torch.rand_like``; see ``randn_like``."""
    keyed = _current.get()
    if keyed is None:
        return torch.rand_like(x)
    # Rounding to a shorter type must not make a 1.
    return _by_example(keyed, x, "rand_like").clamp_(max=1 - torch.finfo(x.dtype).eps / 2)


def randn_per_pass(like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Standard normal numbers of the shape, type and device of ``like``, one draw for all images of a pass: for weights.

    Returns numbers (u, *like.shape), and for each image of the batch which of them are its own, (n,), or None where u is 1
    and all share them. Elsewhere than in the core that is so. When the core runs the model, the images of a batch may be in
    different passes, and their numbers depend on the pass alone, not on who else is there.
    """
    keyed = _current.get()
    if keyed is None:
        return torch.randn_like(like)[None], None
    passes, which = torch.unique(keyed.draw, return_inverse=True)
    stream = keyed.next()
    made = [stream.for_all("pass", number) for number in passes.tolist() or [0]]  # without images any draw will do
    numbers = torch.from_numpy(np.stack([each.standard_normal(like.shape, dtype=np.float32) for each in made]))
    return numbers.to(like.device, like.dtype), None if len(made) == 1 else which


def _by_example(keyed: Keyed, x: Tensor, name: str) -> Tensor:
    n, rows = len(keyed.rng), x.shape[0] if x.dim() else -1
    if not x.is_floating_point():
        raise PluginError(f"{name} wants a floating-point tensor, not {x.dtype}")
    if rows < n or (rows % n if n else rows):
        raise PluginError(
            f"{name} was given {tuple(x.shape)} in a batch of {n} images; numbers belong to images",
            hint=f"give it one row per image, or whole copies of the batch one after the other ({n}, {2 * n}, ... rows)",
        )
    if not rows:
        return torch.empty_like(x)
    shape = (rows // n, *x.shape[1:])
    stream = keyed.next()
    values = (stream.normal if name == "randn_like" else stream.uniform)(None, shape, draw=keyed.draw)
    return values.transpose(0, 1).reshape(x.shape).to(x.device, x.dtype)
