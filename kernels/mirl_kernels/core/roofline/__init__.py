"""Measure what this machine can do at most: its peak of multiply-adds and its memory bandwidth."""

from __future__ import annotations

from ctypes import Structure, c_double, c_int64
from typing import NamedTuple

from mirl_kernels.core import cpu

__all__ = ["Machine", "measure"]


class RooflineArgs(Structure):
    """Hold the argument of the kernel, and its results (``MirlRoofline`` of abi.h)."""

    _fields_ = [("threads", c_int64), ("flops", c_double), ("bytes", c_double)]


class Machine(NamedTuple):
    """Hold the peaks of a machine, on all of PyTorch's threads.

    Attributes:
        flops: float32 operations a second, of fused multiply-adds in registers (two each).
        bandwidth: Bytes a second, read or written, of copying what fits no cache.
    """

    flops: float
    bandwidth: float

    def limit(self, macs: int, moved: int) -> float:
        """Return the least time that work can take, by the roofline model.

        The model is that of Williams, Waterman and Patterson (2009).

        Args:
            macs: Multiply-adds.
            moved: Bytes read or written.

        Returns:
            Seconds.
        """
        return max(2 * macs / self.flops, moved / self.bandwidth)


def measure() -> Machine:
    """Measure this machine, which takes about half a second; return the best of several tries.

    Raises:
        BackendError: If the C++ kernels cannot run here.
    """
    args = RooflineArgs()
    cpu.Call("roofline", args)()
    return Machine(args.flops, args.bytes)
