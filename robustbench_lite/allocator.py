"""The C library's allocator: without a word to it, passes through small networks lose most of their time there."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Keep up to 1 GiB that this process has freed for its next use, where the C library is glibc.

    By its own rule glibc returns to the system what one pass has freed, and the next pass pays for every page again. Does
    nothing where the environment says what glibc should do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name in os.environ for name in _SET_BY_USER):
        return
    mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that every glibc takes; a larger block is mapped on its own
    mallopt(_TRIM_THRESHOLD, 1 << 30)
