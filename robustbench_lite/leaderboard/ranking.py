"""Ranks that a paired test can tell apart.

Rows come best first. The first leads a group; every row below it is compared with it by McNemar's paired test on the same
examples, Holm-corrected over those comparisons. The rows that follow it and cannot be told apart from it share its rank; the
first that can be leads the next group, and is ranked by how many rows stand above it: 1, 1, 3.

"Cannot be told apart" is not transitive: the last of one group and the leader of the next may be as close to each other as
two rows of one group are. A shared rank says that the evaluation does not show which is better, not that they are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from robustbench_lite.statistics import holm, mcnemar

ALPHA = 0.05


def shared_ranks(robust: Sequence[npt.NDArray[np.bool_]]) -> list[int]:
    """The rank of each row from its (n,) vector of robust examples; rows best first, over the same examples in one order."""
    ranks: list[int] = []
    while len(ranks) < len(robust):
        leader = len(ranks)
        below = robust[leader + 1 :]
        adjusted = holm([mcnemar(robust[leader], row) for row in below])
        tied = next((i for i, p in enumerate(adjusted) if p <= ALPHA), len(below))
        ranks += [leader + 1] * (1 + tied)
    return ranks
