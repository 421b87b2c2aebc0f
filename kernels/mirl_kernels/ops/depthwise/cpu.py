"""Pack a depthwise convolution for the C++ kernel, and call that."""

from __future__ import annotations

from collections import Counter
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import PackedMatrix, Quantity
from mirl_kernels.ops.conv.window import PackedWindow, Window


class DepthwiseArgs(Structure):
    """Hold the argument of the kernel (``MirlDepthwise`` of abi.h)."""

    _fields_ = [
        ("x", cpu.Image),
        ("y", cpu.Image),
        ("size", cpu.Size),
        ("height", c_int64),
        ("width", c_int64),
        ("weight", c_void_p),
        ("activation", cpu.Activation),
        ("multiplier", c_int64),
        ("stride_y", c_int64),
        ("stride_x", c_int64),
        ("threads", c_int64),
    ]


def prepare(
    x: Tensor,
    out: Tensor,
    packed: Tensor,
    inputs: int,
    stride: tuple[int, int],
    activation: cpu.Activation,
) -> cpu.Call:
    """Return the call that computes ``out`` = the depthwise convolution of x.

    Args:
        x: (B, inputs, H, W).
        out: The result.
        packed: The packed taps (`cpu.pack_taps`).
        inputs: Channels of x.
        stride: Along rows and columns.
        activation: What happens to the result.
    """
    cpu.check(x, inputs, out, tuple(out.shape))
    args = DepthwiseArgs(
        cpu.image(x),
        cpu.image(out),
        cpu.size(x),
        *out.shape[2:],
        cpu.address(packed),
        activation,
        out.shape[1] // inputs,
        *stride,
    )
    return cpu.Call("depthwise", args, x, out, packed)


@torch.library.custom_op("mirl::depthwise", mutates_args=())
def op(
    x: Tensor,
    packed: Tensor,
    inputs: int,
    outputs: int,
    height: int,
    width: int,
    stride_y: int,
    stride_x: int,
    activation: str,
    slope: float,
) -> Tensor:
    """Return the depthwise convolution of x by packed taps.

    Args:
        x: (B, inputs, H, W).
        packed: The packed taps.
        inputs: Channels of x.
        outputs: Channels of the result.
        height: Rows of the result.
        width: Columns of the result.
        stride_y: Stride along rows.
        stride_x: Stride along columns.
        activation: Name of what happens to the result (`cpu.Activation.of`).
        slope: Slope of the activation.

    Returns:
        (B, outputs, height, width).
    """
    PackedMatrix(packed).expect(outputs)
    x = cpu.with_rows(x)
    out = cpu.result(x, outputs, height, width)
    prepare(x, out, packed, inputs, (stride_y, stride_x), cpu.Activation.of(activation, slope))()
    return out


@op.register_fake
def _(
    x: Tensor,
    packed: Tensor,
    inputs: int,
    outputs: int,
    height: int,
    width: int,
    stride_y: int,
    stride_x: int,
    activation: str,
    slope: float,
) -> Tensor:
    return x.new_empty(x.shape[0], outputs, height, width)


class PackedDepthwise(PackedWindow):
    """Keep the surviving taps of a depthwise convolution.

    The constructor takes what the definition, `depthwise`, takes after x, and the number of input channels;
    None for as many as output channels.
    """

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
        self.register_buffer(
            "packed",
            cpu.pack_taps([(weight.detach().flatten(1), taps)], bias, chunk=None, forms=cpu.Forms.ENTRIES),
        )

    def _shape(self, x: Tensor) -> tuple[int, int, int]:
        """Return channels, height and width of the result."""
        return self.outputs, *self.window.result(*x.shape[2:])

    def kernel_quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """Return the quantities of the kernel itself."""
        vectors, groups = self.result_groups(batch, height, width)
        taps = PackedMatrix(self.packed).nnz
        return Counter(
            {
                Quantity.COPY: self.inputs * vectors,
                Quantity.STORE: self.outputs * vectors,
                Quantity.DEPTHWISE_TAP: taps * vectors,
                Quantity.DEPTHWISE_TAP_OF_GROUP: taps * groups,
            }
        )

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """Return the call that computes ``out`` = the depthwise convolution of x (B, C, H, W).

        They may not share memory. ``scratch`` is not used.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        cpu.check(x, self.inputs, out, (x.shape[0], *self._shape(x)))
        activation = cpu.Activation.of(self.activation, self.slope)
        return prepare(x, out, self.packed, self.inputs, self.window.stride, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the depthwise convolution of x, (B, C, H, W) or (C, H, W).

        Raises:
            BackendError: If the kernel does not take x.
        """
        if x.ndim == 3:
            return self(x[None])[0]
        return op(
            x, self.packed, self.inputs, *self._shape(x), *self.window.stride, self.activation, self.slope
        )
