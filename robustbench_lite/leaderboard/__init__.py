"""Leaderboards: built from stored results alone, without a model or a GPU, and rendered in several formats.

``build_tables`` makes plain data (``model.py``); ``markdown``, ``csv_table``, ``json_table`` and ``terminal`` each render one
table; ``write_all`` writes the files. Everything rendered from one store is the same, byte for byte.
"""

from __future__ import annotations

from robustbench_lite.leaderboard.collect import Metrics
from robustbench_lite.leaderboard.files import write_all
from robustbench_lite.leaderboard.lookup import About, about_from, metric_from
from robustbench_lite.leaderboard.model import Attack, Entry, Leaderboard, Row
from robustbench_lite.leaderboard.tables import build_tables

__all__ = [
    "About",
    "Attack",
    "Entry",
    "Leaderboard",
    "Metrics",
    "Row",
    "about_from",
    "build_tables",
    "metric_from",
    "write_all",
]
