"""Work in forked processes: the results of ``map``, errors that come through, processes that die."""

from __future__ import annotations

import os
from concurrent.futures.process import BrokenProcessPool

import pytest

from robustbench_lite.errors import StoreError
from robustbench_lite.processes import can_fork, cores, forked_map

pytestmark = pytest.mark.skipif(not can_fork() or cores() == 1, reason="one core, or no fork: nothing is spread")


def test_results_are_those_of_map_in_order_from_several_processes() -> None:
    seen: list[int] = []

    def work(number: int) -> tuple[int, int]:
        seen.append(number)
        return number**2, os.getpid()

    found = list(forked_map(work, list(range(40)), 2))
    assert [square for square, _ in found] == [number**2 for number in range(40)]
    assert os.getpid() not in {pid for _, pid in found}
    assert seen == []  # what the work changes stays where it was done
    assert list(forked_map(work, [], 2)) == []


def test_an_error_comes_through_with_its_hint() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise StoreError("no room", hint="make some")
        return number

    with pytest.raises(StoreError, match="no room") as caught:
        list(forked_map(work, range(10), 2))
    assert caught.value.hint == "make some"


def test_a_process_that_dies_is_an_error_and_no_result() -> None:
    def work(number: int) -> int:
        if number == 3:
            os._exit(9)
        return number

    with pytest.raises(BrokenProcessPool):
        list(forked_map(work, range(10), 2))
    assert list(forked_map(abs, range(3), 2)) == [0, 1, 2]
