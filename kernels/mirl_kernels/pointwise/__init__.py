"""Pointwise (1x1) convolution."""

from __future__ import annotations

from ctypes import Structure, c_int64

import torch
from torch import Tensor

from mirl_kernels import _cpu
from mirl_kernels.pointwise.reference import pointwise as reference

__all__ = ["PackedPointwise", "reference"]


class _Args(Structure):
    _fields_ = [("x", _cpu.Image), ("y", _cpu.Image), ("size", _cpu.Size), ("weight", _cpu.Rows), ("threads", c_int64)]


class PackedPointwise(_cpu.Packed):
    """The surviving weights of a 1x1 convolution; arguments as in `reference`."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._shape = weight.shape[:2]
        self._weight = _cpu.pack_rows(weight.flatten(1), bias)

    def work(self, batch: int, height: int, width: int) -> _cpu.Work:
        pixels, kept = batch * height * width, self._weight.kept
        return _cpu.Work(kept * pixels, 4 * sum(self._shape) * pixels + 8 * kept)

    def __call__(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> None:
        """``out`` (B, O, H, W) = convolution of x (B, C, H, W); they may not share memory."""
        outputs, inputs = self._shape
        _cpu.check(x, inputs, out, (x.shape[0], outputs, *x.shape[2:]))
        threads = torch.get_num_threads()
        _cpu.call("pointwise", _Args(_cpu.image(x), _cpu.image(out), _cpu.size(x), self._weight, threads))
