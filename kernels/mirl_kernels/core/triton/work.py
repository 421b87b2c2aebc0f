"""Count how much a launch does: bytes, multiply-adds and trips of loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mirl_kernels.core.triton.launches import Launch


@dataclass(frozen=True)
class Work:
    """State how much one launch does.

    Attributes:
        read: Bytes of the distinct addresses that are read.
        written: Bytes of the distinct addresses that are written.
        fetched: Bytes that are read, summed over the programs. A program finds what it has touched before in
            the first-level cache, except for factors of products, which are copied past that cache.
        macs: Multiply-adds on tensor cores, padding included.
        trips: How often the body of each loop of the kernel runs, over all programs, in the order of the
            source.
        hidden: Those of the bytes read or written that belong to hidden channels or to sums of Gram matrices,
            which one launch leaves to the next.
        buffer: Bytes that the hidden channels or the sums take, whichever is more.
    """

    read: int
    written: int
    fetched: int
    macs: int
    trips: tuple[int, ...]
    hidden: int = 0
    buffer: int = 0


_Counter = Callable[[Launch], Work]
_counters: dict[Any, _Counter] = {}


def counts_work_of(kernel: Any) -> Callable[[_Counter], _Counter]:
    """Declare that the decorated function counts the work of a launch of the kernel."""

    def declare(function: _Counter) -> _Counter:
        _counters[kernel] = function
        return function

    return declare


def count_work(launch: Launch) -> Work:
    """Return how much a launch does."""
    return _counters[launch.kernel](launch)


def nbytes(*tensors: Tensor | None) -> int:
    """Return the bytes of all tensors together; None has none."""
    return sum(t.numel() * t.itemsize for t in tensors if t is not None)


def touched_elements(
    patterns: Iterable[Iterable[tuple[int, int]]],
    size: tuple[int, int],
    output: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
) -> int:
    """Return how many elements of all channels are read for a plane of output pixels.

    >>> touched_elements([[(0, 0), (0, 1)]], size=(4, 4), output=(4, 4))
    16

    Args:
        patterns: For each channel, the distances (down, right) of the elements read from an output pixel's
            place.
        size: Height and width of a channel.
        output: Height and width of the output.
        stride: Distance (down, right) of the places of two neighbouring output pixels.
    """
    return sum(_touched(tuple(sorted(set(pattern))), size, output, stride) for pattern in patterns)


@lru_cache(maxsize=4096)
def _touched(
    pattern: tuple[tuple[int, int], ...],
    size: tuple[int, int],
    output: tuple[int, int],
    stride: tuple[int, int],
) -> int:
    touched = torch.zeros(size, dtype=torch.bool)
    for distance in pattern:
        rows, columns = (torch.arange(n) * s + d for n, s, d in zip(output, stride, distance, strict=True))
        rows, columns = rows[(rows >= 0) & (rows < size[0])], columns[(columns >= 0) & (columns < size[1])]
        touched[rows[:, None], columns] = True
    return int(touched.sum())
