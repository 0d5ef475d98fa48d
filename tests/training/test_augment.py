"""Translation and mirroring."""

from __future__ import annotations

import math
from collections import Counter

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_lite.training import augment


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(0, 4), st.booleans(), st.sampled_from([(1, 5, 7), (3, 8, 8)]))
def test_each_image_becomes_one_of_its_shifts_and_mirror_images(
    seed: int, shift: int, flip: bool, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(seed)
    x = 0.1 + 0.9 * torch.rand(6, *shape)
    out = augment(x, shift=shift, flip=flip)
    assert out.shape == x.shape
    for image, made in zip(x, out, strict=True):
        padded = F.pad(image, (shift,) * 4)
        _, height, width = shape
        variants = [padded[:, i : i + height, j : j + width] for i in range(2 * shift + 1) for j in range(2 * shift + 1)]
        variants += [v.flip(2) for v in variants] if flip else []
        assert any(torch.equal(made, v) for v in variants)


def test_shifts_and_mirror_images_are_drawn_evenly() -> None:
    torch.manual_seed(0)
    x = torch.zeros(9000, 1, 5, 5)
    x[:, 0, 2, 1] = 1.0
    out = augment(x, shift=1, flip=True)
    counts = Counter(divmod(int(i), 5) for i in out.flatten(1).argmax(1))
    rows, columns = Counter[int](), Counter[int]()
    for (row, column), count in counts.items():
        rows[row] += count
        columns[column] += count
    assert all(abs(rows[r] - 3000) < 5 * math.sqrt(2000) for r in (1, 2, 3))
    # Columns 0, 1, 2 as they are and 4, 3, 2 mirrored: 2 twice as often.
    expected = {0: 1500, 1: 1500, 2: 3000, 3: 1500, 4: 1500}
    assert all(abs(columns[c] - n) < 5 * math.sqrt(n) for c, n in expected.items())


def test_no_augmentation_is_none() -> None:
    x, before = torch.rand(3, 1, 4, 4), torch.get_rng_state()
    assert torch.equal(augment(x, shift=0, flip=False), x)
    assert torch.equal(torch.get_rng_state(), before)
