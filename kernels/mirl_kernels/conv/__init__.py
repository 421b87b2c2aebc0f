"""k x k convolution; pixel (un)shuffle and a residual are part of its store."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels import _cpu
from mirl_kernels.conv.reference import conv as reference

__all__ = ["PackedConv", "reference"]


class _Args(Structure):
    _fields_ = [("x", _cpu.Image), ("y", _cpu.Image), ("residual", _cpu.Image), ("size", _cpu.Size),
                ("weight", c_void_p), ("chunks", c_int64), ("column", c_void_p), ("kernel", c_int64),
                ("shuffle", c_int64), ("threads", c_int64)]  # fmt: skip


class PackedConv(_cpu.Packed):
    """The surviving weights of a k x k convolution, k odd; arguments as in `reference`."""

    def __init__(self, weight: Tensor, shuffle: int = 1) -> None:
        self._outputs, self._inputs, self._kernel, _ = weight.shape
        self._shuffle = shuffle
        self._weight = _cpu.Chunks(weight.flatten(1))

    def work(self, batch: int, height: int, width: int) -> _cpu.Work:
        pixels, kept = batch * height * width, self._weight.kept
        return _cpu.Work(kept * pixels, 4 * (self._inputs + self._outputs) * pixels + 8 * kept)

    def __call__(self, x: Tensor, out: Tensor, scratch: Tensor | None = None, residual: Tensor | None = None) -> None:
        """``out`` = the convolution of x (B, C, H, W), shuffled, plus ``residual``; x and out may not share memory."""
        b, _, h, w = x.shape
        r, u = max(self._shuffle, 1), max(-self._shuffle, 1)  # shuffled by r, unshuffled by u
        if h % u or w % u:
            raise _cpu.BackendError(f"input is {h}x{w}; expected multiples of {u} to unshuffle")
        shape = (b, self._outputs * u * u // (r * r), h * r // u, w * r // u)
        _cpu.check(x, self._inputs, out, shape)
        if residual is not None:
            _cpu.check(x, self._inputs, residual, shape)
        added = _cpu.Image() if residual is None else _cpu.image(residual)
        args = _Args(_cpu.image(x), _cpu.image(out), added, _cpu.size(x), self._weight.address,
                     self._weight.count, self._weight.column.data_ptr(), self._kernel, self._shuffle,
                     torch.get_num_threads())  # fmt: skip
        _cpu.call("conv", args)
