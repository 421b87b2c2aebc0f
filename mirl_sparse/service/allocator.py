"""Keep the memory of the process as small as its work is."""

from __future__ import annotations

import ctypes
import platform
import sys

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # of <malloc.h>
_LARGE = 1 << 18  # bytes
_ARENAS = 2


def give_back_memory() -> None:
    """Let glibc's malloc give large blocks back to the system as soon as they are freed.

    By itself it begins to keep blocks of up to 32 MB once such ones were freed. Photos of mixed sizes then
    leave gaps of all sizes, and the process grows for a long time. With another C library nothing changes.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_ARENA_MAX, _ARENAS)
