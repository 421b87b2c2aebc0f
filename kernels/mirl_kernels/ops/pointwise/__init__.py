"""Pointwise (1x1) convolution."""

from __future__ import annotations

from collections import Counter
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.ops.pointwise.reference import pointwise as reference

__all__ = ["PackedPointwise", "reference"]


class _Args(Structure):
    _fields_ = [("x", cpu.Image), ("y", cpu.Image), ("size", cpu.Size), ("weight", c_void_p),
                ("activation", cpu.Activation), ("threads", c_int64)]  # fmt: skip


@torch.library.custom_op("mirl::pointwise", mutates_args=())
def op(x: Tensor, packed: Tensor, inputs: int, outputs: int, activation: str, slope: float) -> Tensor:
    """A 1x1 convolution by a packed matrix: x (B, inputs, H, W) to (B, outputs, H, W)."""
    cpu.expect(packed, outputs, inputs)
    x = cpu.with_rows(x)
    out = x.new_empty(x.shape[0], outputs, *x.shape[2:])
    prepare(x, out, packed, inputs, cpu.activation(activation, slope))()
    return out


@op.register_fake
def _(x: Tensor, packed: Tensor, inputs: int, outputs: int, activation: str, slope: float) -> Tensor:
    return x.new_empty(x.shape[0], outputs, *x.shape[2:])


def prepare(x: Tensor, out: Tensor, packed: Tensor, inputs: int, activation: cpu.Activation) -> cpu.Call:
    """What computes ``out`` = the 1x1 convolution of x by ``packed``."""
    cpu.check(x, inputs, out, (x.shape[0], out.shape[1], *x.shape[2:]))
    args = _Args(cpu.image(x), cpu.image(out), cpu.size(x), cpu.address(packed), activation)
    return cpu.Call("pointwise", args, x, out, packed)


class PackedPointwise(cpu.Packed):
    """The surviving weights of a 1x1 convolution; arguments as in `reference`."""

    packed: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape[:2]
        self.register_buffer("packed", cpu.pack(weight.detach().flatten(1), bias))

    def _fits(self) -> bool:
        return cpu.header(self.packed) == (self.outputs, self.inputs)

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        pixels, kept = batch * height * width, cpu.kept(self.packed)
        return cpu.Work(kept * pixels, 4 * (self.inputs + self.outputs) * pixels + 8 * kept)

    def _quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        vectors, groups = cpu.groups(1, batch * height * width)
        found = cpu.product_quantities(self.packed, vectors, groups)
        return found + Counter({"load": self.inputs * vectors, "store": self.outputs * vectors})

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """What computes ``out`` (B, O, H, W) = convolution of x (B, C, H, W); they may not share memory."""
        cpu.check(x, self.inputs, out, (x.shape[0], self.outputs, *x.shape[2:]))
        return prepare(x, out, self.packed, self.inputs, cpu.activation(self.activation, self.slope))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self(x[None])[0]
        return op(x, self.packed, self.inputs, self.outputs, self.activation, self.slope)
