"""The C library's allocator, tuned for large tensors."""

from __future__ import annotations

import ctypes
import platform
import sys


class Allocator:
    """glibc's malloc, as it comes or tuned for large tensors, switched within the process.

    As it comes, it hands large tensors back to the system when they are freed, and touching them anew at every call can take a dense
    network longer than its arithmetic. Elsewhere nothing can be switched.
    """

    _TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of <malloc.h>

    def __init__(self) -> None:
        glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
        self._libc = ctypes.CDLL(None) if glibc else None

    def tune(self) -> bool:
        """Keep all memory in the process; whether that was possible."""
        if self._libc is None:
            return False
        return bool(self._libc.mallopt(self._MMAP_MAX, 0) and self._libc.mallopt(self._TRIM_THRESHOLD, -1))

    def untune(self) -> None:
        """What glibc settles at by itself once large tensors have been freed: its greatest dynamic thresholds."""
        assert self._libc is not None
        self._libc.mallopt(self._MMAP_MAX, 65536)
        self._libc.mallopt(self._MMAP_THRESHOLD, 32 << 20)
        self._libc.mallopt(self._TRIM_THRESHOLD, 64 << 20)
        self._libc.malloc_trim(0)
