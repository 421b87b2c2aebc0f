"""What this machine can do at most: its peak of multiply-adds and its memory bandwidth, measured."""

from __future__ import annotations

from ctypes import Structure, c_double, c_int64
from typing import NamedTuple

from mirl_kernels.core import cpu


class _Args(Structure):
    _fields_ = [("threads", c_int64), ("flops", c_double), ("bytes", c_double)]


class Machine(NamedTuple):
    """``flops`` float32 operations a second, of fused multiply-adds in registers (two each) and ``bandwidth``
    bytes a second, read or written, of copying what fits no cache; on all of PyTorch's threads."""

    flops: float
    bandwidth: float

    def limit(self, macs: int, moved: int) -> float:
        """The seconds below which no program does so many multiply-adds and moves so many bytes (the roofline
        model: Williams, Waterman and Patterson, 2009)."""
        return max(2 * macs / self.flops, moved / self.bandwidth)


def measure() -> Machine:
    """Measure this machine, which takes about half a second; the best of several tries."""
    args = _Args()
    cpu.Call("roofline", args)()
    return Machine(args.flops, args.bytes)
