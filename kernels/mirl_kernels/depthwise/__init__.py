"""Depthwise convolution."""

from __future__ import annotations

from collections import Counter
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels import _cpu
from mirl_kernels.conv import axis_taps, taps_fit
from mirl_kernels.depthwise.reference import depthwise as reference

__all__ = ["PackedDepthwise", "reference"]


class _Args(Structure):
    _fields_ = [("x", _cpu.Image), ("y", _cpu.Image), ("size", _cpu.Size), ("height", c_int64), ("width", c_int64),
                ("weight", c_void_p), ("activation", _cpu.Activation), ("multiplier", c_int64), ("stride_y", c_int64), ("stride_x", c_int64),
                ("threads", c_int64)]  # fmt: skip


def prepare(x: Tensor, out: Tensor, packed: Tensor, inputs: int, stride: tuple[int, int],
        activation: _cpu.Activation) -> _cpu.Call:  # fmt: skip
    """What computes ``out`` = the depthwise convolution of x by the taps of ``packed``."""
    _cpu.check(x, inputs, out, tuple(out.shape))
    args = _Args(_cpu.image(x), _cpu.image(out), _cpu.size(x), *out.shape[2:], _cpu.address(packed),
                 activation, out.shape[1] // inputs, *stride)  # fmt: skip
    return _cpu.Call("depthwise", args, x, out, packed)


@torch.library.custom_op("mirl::depthwise", mutates_args=())
def op(x: Tensor, packed: Tensor, inputs: int, outputs: int, height: int, width: int, stride_y: int,
       stride_x: int, activation: str, slope: float) -> Tensor:  # fmt: skip
    """A depthwise convolution by the taps of ``packed``: x (B, inputs, H, W) to (B, outputs, height, width)."""
    x = _cpu.with_rows(x)
    out = x.new_empty(x.shape[0], outputs, height, width)
    prepare(x, out, packed, inputs, (stride_y, stride_x), _cpu.activation(activation, slope))()
    return out


@op.register_fake
def _(x: Tensor, packed: Tensor, inputs: int, outputs: int, height: int, width: int, stride_y: int,
      stride_x: int, activation: str, slope: float) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], outputs, height, width)


class PackedDepthwise(_cpu.Packed):
    """The surviving taps of a depthwise convolution of ``inputs`` channels; arguments as in `reference`."""

    packed: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] | None = None,
        dilation: tuple[int, int] = (1, 1),
        inputs: int | None = None,
    ) -> None:
        super().__init__()
        kernel = weight.shape[2:]
        self.padding = (
            padding if padding is not None else (kernel[0] // 2, kernel[0] // 2, kernel[1] // 2, kernel[1] // 2)
        )
        self.outputs, self.stride = len(weight), stride
        self.inputs = self.outputs if inputs is None else inputs
        self.span = dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1)
        rows = axis_taps(kernel[0], stride[0], dilation[0], self.padding[0])
        columns = axis_taps(kernel[1], stride[1], dilation[1], self.padding[2])
        taps = torch.tensor([(i * stride[1] + j, dy, dx) for i, dy in rows for j, dx in columns])
        self.register_buffer("packed", _cpu.pack_taps([(weight.detach().flatten(1), taps)], bias, chunk=None))

    def _fits(self) -> bool:
        return taps_fit(self.packed, self.outputs, self.stride[0] * self.stride[1])

    def _shape(self, x: Tensor) -> tuple[int, int, int]:
        top, bottom, left, right = self.padding
        height = (x.shape[2] + top + bottom - self.span[0] - 1) // self.stride[0] + 1
        return self.outputs, height, (x.shape[3] + left + right - self.span[1] - 1) // self.stride[1] + 1

    def work(self, batch: int, height: int, width: int) -> _cpu.Work:
        out_height, out_width = -(-height // self.stride[0]), -(-width // self.stride[1])
        kept, pixels = _cpu.kept(self.packed), batch * out_height * out_width
        moved = 4 * batch * (self.inputs * height * width + self.outputs * out_height * out_width)
        return _cpu.Work(kept * pixels, moved + 8 * kept)

    def _quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        vectors, groups = _cpu.groups(batch * -(-height // self.stride[0]), -(-width // self.stride[1]))
        taps = _cpu.kept(self.packed)
        return Counter({"copy": self.inputs * vectors, "store": self.outputs * vectors,
                        "depthwise tap": taps * vectors, "depthwise tap of a group": taps * groups})  # fmt: skip

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> _cpu.Call:
        _cpu.check(x, self.inputs, out, (x.shape[0], *self._shape(x)))
        return prepare(x, out, self.packed, self.inputs, self.stride, _cpu.activation(self.activation, self.slope))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self(x[None])[0]
        return op(x, self.packed, self.inputs, *self._shape(x), *self.stride, self.activation, self.slope)
