"""Tune the C library's allocator for large tensors."""

from __future__ import annotations

import ctypes
import platform
import sys


class Allocator:
    """Switch glibc's malloc of this process between its default settings and settings for large tensors.

    By default, malloc returns a large tensor's memory to the system when the tensor is freed. A dense network
    that touches new memory at every call can spend more time on that than on its arithmetic. With another C
    library nothing can be switched.
    """

    _TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of <malloc.h>

    def __init__(self) -> None:
        glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
        self._libc = ctypes.CDLL(None) if glibc else None

    def tune(self) -> bool:
        """Keep all freed memory in the process; return whether that was possible."""
        if self._libc is None:
            return False
        return bool(self._libc.mallopt(self._MMAP_MAX, 0) and self._libc.mallopt(self._TRIM_THRESHOLD, -1))

    def untune(self) -> None:
        """Undo `tune`, which must have succeeded.

        The thresholds become the greatest that glibc chooses by itself, as it does once large tensors were
        freed.
        """
        assert self._libc is not None
        self._libc.mallopt(self._MMAP_MAX, 65536)
        self._libc.mallopt(self._MMAP_THRESHOLD, 32 << 20)
        self._libc.mallopt(self._TRIM_THRESHOLD, 64 << 20)
        self._libc.malloc_trim(0)
