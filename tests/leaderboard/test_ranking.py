from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_lite.leaderboard.ranking import ALPHA, shared_ranks
from robustbench_lite.statistics import holm, mcnemar


def robust(k: int, n: int = 200) -> np.ndarray:
    """The first k of n examples: of two such rows, one is robust wherever the other is."""
    return np.arange(n) < k


@pytest.mark.parametrize(
    ("counts", "ranks"),
    [
        ([], []),
        ([50], [1]),
        ([100, 100, 100], [1, 1, 1]),
        ([100, 98, 60], [1, 1, 3]),
        ([150, 100, 100, 60], [1, 2, 2, 4]),
        ([150, 100, 60, 58], [1, 2, 3, 3]),
    ],
)
def test_groups_share_the_rank_of_their_leader(counts, ranks):
    assert shared_ranks([robust(k) for k in counts]) == ranks


def test_five_lost_examples_do_not_separate_and_six_do():
    """Two-sided exact McNemar with all discordant pairs on one side: 2 / 2**5 > 0.05 >= 2 / 2**6."""
    assert shared_ranks([robust(100), robust(95)]) == [1, 1]
    assert shared_ranks([robust(100), robust(94)]) == [1, 2]


def test_more_rows_need_more_evidence():
    """Holm: the six lost examples that separate two rows (p = 0.031) do not separate three."""
    assert shared_ranks([robust(100), robust(94), robust(94)]) == [1, 1, 1]
    assert shared_ranks([robust(100), robust(94), robust(20)]) == [1, 2, 3]


def test_indistinguishable_is_not_transitive():
    first, second, third = robust(100), robust(95), robust(90)
    assert mcnemar(first, second) > ALPHA
    assert mcnemar(second, third) > ALPHA
    assert shared_ranks([first, second, third]) == [1, 1, 3]


def test_pairs_matter_not_only_the_counts():
    a, b = np.zeros(100, dtype=bool), np.zeros(100, dtype=bool)
    a[:50], b[40:84] = True, True  # 50 and 44 of 100, on different examples
    assert shared_ranks([a, b]) == [1, 1]
    b[:], b[:44] = False, True  # 44 of the same 50
    assert shared_ranks([a, b]) == [1, 2]


@given(st.lists(st.integers(0, 120), max_size=8))
@settings(deadline=None, max_examples=60)
def test_competition_ranks(counts):
    rows = [robust(k, 120) for k in sorted(counts, reverse=True)]
    ranks = shared_ranks(rows)
    assert ranks == sorted(ranks)
    for position, rank in enumerate(ranks):
        assert rank == 1 + sum(other < rank for other in ranks)
        if position + 1 == rank < len(rows) + 1:
            below = holm([mcnemar(rows[position], row) for row in rows[position + 1 :]])
            same = [r == rank for r in ranks[position + 1 :]]
            assert all(p > ALPHA for p, tied in zip(below, same, strict=True) if tied)
            if False in same:
                assert below[same.index(False)] <= ALPHA
