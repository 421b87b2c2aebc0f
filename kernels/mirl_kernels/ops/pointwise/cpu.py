"""Pack a pointwise convolution for the C++ kernel, and call that."""

from __future__ import annotations

from collections import Counter
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import PackedMatrix, Quantity


class PointwiseArgs(Structure):
    """Hold the argument of the kernel (``MirlPointwise`` of abi.h)."""

    _fields_ = [
        ("x", cpu.Image),
        ("y", cpu.Image),
        ("size", cpu.Size),
        ("weight", c_void_p),
        ("activation", cpu.Activation),
        ("threads", c_int64),
    ]


def prepare(x: Tensor, out: Tensor, packed: Tensor, inputs: int, activation: cpu.Activation) -> cpu.Call:
    """Return the call that computes ``out`` = the 1x1 convolution of x.

    Args:
        x: (B, inputs, H, W).
        out: The result, (B, O, H, W).
        packed: The packed (O, inputs) matrix.
        inputs: Channels of x.
        activation: What happens to the result.
    """
    cpu.check(x, inputs, out, (x.shape[0], out.shape[1], *x.shape[2:]))
    args = PointwiseArgs(cpu.image(x), cpu.image(out), cpu.size(x), cpu.address(packed), activation)
    return cpu.Call("pointwise", args, x, out, packed)


@torch.library.custom_op("mirl::pointwise", mutates_args=())
def op(x: Tensor, packed: Tensor, inputs: int, outputs: int, activation: str, slope: float) -> Tensor:
    """Return the 1x1 convolution of x by a packed matrix.

    Args:
        x: (B, inputs, H, W).
        packed: The packed (outputs, inputs) matrix.
        inputs: Channels of x.
        outputs: Channels of the result.
        activation: Name of what happens to the result (`cpu.Activation.of`).
        slope: Slope of the activation.

    Returns:
        (B, outputs, H, W).
    """
    PackedMatrix(packed).expect(outputs, inputs)
    x = cpu.with_rows(x)
    out = x.new_empty(x.shape[0], outputs, *x.shape[2:])
    prepare(x, out, packed, inputs, cpu.Activation.of(activation, slope))()
    return out


@op.register_fake
def _(x: Tensor, packed: Tensor, inputs: int, outputs: int, activation: str, slope: float) -> Tensor:
    return x.new_empty(x.shape[0], outputs, *x.shape[2:])


class PackedPointwise(cpu.Packed):
    """Keep the surviving weights of a 1x1 convolution.

    Args:
        weight: (O, C, 1, 1).
        bias: (O,) or None.
    """

    multiplied = ("packed",)
    packed: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape[:2]
        self.register_buffer("packed", cpu.pack(weight.detach().flatten(1), bias))

    def matrices(self) -> tuple[Tensor]:
        """Return the packed matrices among the buffers."""
        return (self.packed,)

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        """Return what a call on (batch, C, height, width) must do."""
        pixels, nnz = batch * height * width, PackedMatrix(self.packed).nnz
        return cpu.Work(nnz * pixels, 4 * (self.inputs + self.outputs) * pixels + 8 * nnz)

    def kernel_quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """Return the quantities of the kernel itself."""
        vectors, groups = cpu.pixel_groups(1, batch * height * width)
        counts = cpu.product_quantities(self.packed, vectors, groups)
        return counts + Counter(
            {Quantity.LOAD: self.inputs * vectors, Quantity.STORE: self.outputs * vectors}
        )

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """Return the call that computes ``out`` (B, O, H, W) = convolution of x (B, C, H, W).

        They may not share memory. ``scratch`` is not used.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        cpu.check(x, self.inputs, out, (x.shape[0], self.outputs, *x.shape[2:]))
        activation = cpu.Activation.of(self.activation, self.slope)
        return prepare(x, out, self.packed, self.inputs, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x, (B, C, H, W) or (C, H, W).

        Raises:
            BackendError: If the kernel does not take x.
        """
        if x.ndim == 3:
            return self(x[None])[0]
        return op(x, self.packed, self.inputs, self.outputs, self.activation, self.slope)
