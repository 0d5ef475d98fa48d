"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.forked import Forge, forge


@pytest.fixture(scope="session")
def forged() -> Iterator[Forge]:
    """Starts runs of ``rbl`` without the seconds of imports."""
    with forge() as found:
        yield found
