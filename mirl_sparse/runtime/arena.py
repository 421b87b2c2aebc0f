"""Allocate one large block of memory for all buffers of an image size."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor


def allocate_arena(size: int) -> Tensor:
    """Allocate memory from the system, in huge pages where the system has them.

    Huge pages need fewer look-ups of addresses, and fewer first touches.

    Args:
        size: Size in bytes; a multiple of 4, and not 0.

    Returns:
        A float32 tensor (size / 4,) of zeros. The memory is freed with the last tensor that views it.

    Raises:
        OSError: If the system has not that much memory.
    """
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    mapped = mmap.mmap(-1, size, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel that was built without huge pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapped, dtype=torch.float32)
