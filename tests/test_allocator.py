"""What passes free stays with the process, unless the user has said otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Twenty passes that hold 16 blocks of 1 MiB each, and free them: 4,096 pages of 4 KiB a pass. Before, and after.
PASSES = """
import resource
import torch
from robustbench_lite.runner import prepare_torch
def one_pass():
    return len([torch.zeros(1 << 18) for _ in range(16)])
def faults():
    one_pass()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        one_pass()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20
before = faults()
prepare_torch("cpu", 1)
print(before, faults())
"""
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def faults(**environment: str) -> tuple[float, float]:
    """Page faults per pass before and after ``prepare_torch``, in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    done = subprocess.run([sys.executable, "-c", PASSES], env=kept | environment, capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    return before, after


def test_a_prepared_process_does_not_pay_for_pages_again() -> None:
    before, after = faults()
    assert after < before / 10


def test_the_environment_has_the_last_word() -> None:
    _, after = faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert after > 1000
