"""Depthwise convolution."""

from __future__ import annotations

from collections import Counter
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.ops.conv import taps_fit
from mirl_kernels.ops.conv.window import PackedWindow, Window
from mirl_kernels.ops.depthwise.reference import depthwise as reference

__all__ = ["PackedDepthwise", "reference"]


class _Args(Structure):
    _fields_ = [("x", cpu.Image), ("y", cpu.Image), ("size", cpu.Size), ("height", c_int64), ("width", c_int64),
                ("weight", c_void_p), ("activation", cpu.Activation), ("multiplier", c_int64), ("stride_y", c_int64), ("stride_x", c_int64),
                ("threads", c_int64)]  # fmt: skip


def prepare(x: Tensor, out: Tensor, packed: Tensor, inputs: int, stride: tuple[int, int],
        activation: cpu.Activation) -> cpu.Call:  # fmt: skip
    """What computes ``out`` = the depthwise convolution of x by the taps of ``packed``."""
    cpu.check(x, inputs, out, tuple(out.shape))
    args = _Args(cpu.image(x), cpu.image(out), cpu.size(x), *out.shape[2:], cpu.address(packed),
                 activation, out.shape[1] // inputs, *stride)  # fmt: skip
    return cpu.Call("depthwise", args, x, out, packed)


@torch.library.custom_op("mirl::depthwise", mutates_args=())
def op(x: Tensor, packed: Tensor, inputs: int, outputs: int, height: int, width: int, stride_y: int,
       stride_x: int, activation: str, slope: float) -> Tensor:  # fmt: skip
    """A depthwise convolution by the taps of ``packed``: x (B, inputs, H, W) to (B, outputs, height, width)."""
    cpu.expect(packed, outputs)
    x = cpu.with_rows(x)
    out = cpu.result(x, outputs, height, width)
    prepare(x, out, packed, inputs, (stride_y, stride_x), cpu.activation(activation, slope))()
    return out


@op.register_fake
def _(x: Tensor, packed: Tensor, inputs: int, outputs: int, height: int, width: int, stride_y: int,
      stride_x: int, activation: str, slope: float) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], outputs, height, width)


class PackedDepthwise(PackedWindow):
    """The surviving taps of a depthwise convolution of ``inputs`` channels; arguments as in `reference`."""

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
        self.window = Window.of(weight, stride, padding, dilation)
        self.outputs = len(weight)
        self.inputs = self.outputs if inputs is None else inputs
        taps = torch.tensor(self.window.taps())
        self.register_buffer("packed", cpu.pack_taps([(weight.detach().flatten(1), taps)], bias, chunk=None))

    def _fits(self) -> bool:
        return taps_fit(self.packed, self.outputs, self.window.phases, self.window.taps())

    def _shape(self, x: Tensor) -> tuple[int, int, int]:
        """Channels, height and width of the result."""
        return self.outputs, *self.window.result(*x.shape[2:])

    def _quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        vectors, groups = self._groups(batch, height, width)
        taps = cpu.kept(self.packed)
        return Counter({"copy": self.inputs * vectors, "store": self.outputs * vectors,
                        "depthwise tap": taps * vectors, "depthwise tap of a group": taps * groups})  # fmt: skip

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """What computes ``out`` = the depthwise convolution of x; they may not share memory."""
        cpu.check(x, self.inputs, out, (x.shape[0], *self._shape(x)))
        activation = cpu.activation(self.activation, self.slope)
        return prepare(x, out, self.packed, self.inputs, self.window.stride, activation)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self(x[None])[0]
        return op(
            x, self.packed, self.inputs, *self._shape(x), *self.window.stride, self.activation, self.slope
        )
