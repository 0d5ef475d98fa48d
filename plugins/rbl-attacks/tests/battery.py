"""Every attack of this distribution, with parameters that make it quick: the rows of the conformance table."""

from __future__ import annotations

BATTERY = (
    "uniform-noise",
    "gaussian-noise",
    "square[queries=100]",
    "fgsm",
    "pgd[steps=10]",
    "pgd[steps=10,start=zero,loss=margin,restarts=2]",
    "apgd-ce[steps=10]",
)
