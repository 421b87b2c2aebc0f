"""Pack a transposed convolution for the C++ kernel of the convolution."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import PackedMatrix
from mirl_kernels.ops.conv.cpu import conv_quantities, prepare
from mirl_kernels.ops.conv.cpu import op as conv_op


def _reads(kernel: int, stride: int, padding: int, dilation: int) -> list[tuple[int, int, int]]:
    """Return phase, tap and distance of the input pixel for all taps along an axis."""
    return [
        (i, k, (i + padding - dilation * k) // stride)
        for i in range(stride)
        for k in range(kernel)
        if (i + padding - dilation * k) % stride == 0
    ]


class PackedConvTranspose(cpu.Packed):
    """Keep the surviving weights of a transposed convolution.

    Of an output pixel stride * Y + i, the taps k with i + padding - dilation * k = stride * dy read input
    pixel Y + dy: for each i a convolution of its own (sub-pixel convolution: Shi et al., CVPR 2016).

    The constructor takes what the definition, `conv_transpose`, takes after x. Where an input is infinite or
    NaN, more pixels around it may be NaN than PyTorch's.
    """

    multiplied = ("packed",)
    packed: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        output_padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.inputs, per_group, *kernel = weight.shape
        self.outputs, self.stride = per_group * groups, stride
        self.grow = [
            d * (k - 1) + 1 + more - 2 * p - stride
            for k, d, more, p in zip(kernel, dilation, output_padding, padding, strict=True)
        ]
        reads = [_reads(n, stride, p, d) for n, p, d in zip(kernel, padding, dilation, strict=True)]
        rows, columns = (sorted({at for _, _, at in axis}) for axis in reads)
        near = self.inputs // groups
        taps = torch.tensor([(c, dy, dx) for c in range(near) for dy in rows for dx in columns])
        packed = []
        for g, part in enumerate(weight.detach().split(near)):
            spread = weight.new_zeros(per_group, stride, stride, near, len(rows), len(columns))
            for i, ky, dy in reads[0]:
                for j, kx, dx in reads[1]:
                    spread[:, i, j, :, rows.index(dy), columns.index(dx)] = part[:, :, ky, kx].T
            packed.append((spread.flatten(0, 2).flatten(1), taps + torch.tensor([g * near, 0, 0])))
        offset = None if bias is None else bias.repeat_interleave(stride * stride)
        self.register_buffer("packed", cpu.pack_taps(packed, offset))

    def matrices(self) -> tuple[Tensor]:
        """Return the packed matrices among the buffers."""
        return (self.packed,)

    def _shape(self, x: Tensor) -> tuple[int, int, int]:
        """Return channels, height and width of the result."""
        return self.outputs, x.shape[2] * self.stride + self.grow[0], x.shape[3] * self.stride + self.grow[1]

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        """Return what a call on (batch, C, height, width) must do."""
        nnz, pixels = PackedMatrix(self.packed).nnz, batch * height * width
        return cpu.Work(nnz * pixels, 4 * (self.inputs + self.outputs * self.stride**2) * pixels + 8 * nnz)

    def kernel_quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """Return the quantities of the kernel itself."""
        return conv_quantities(self.packed, batch * height, width)

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """Return the call that computes ``out`` = the transposed convolution of x (B, C, H, W).

        They may not share memory. ``scratch`` is not used.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        cpu.check(x, self.inputs, out, (x.shape[0], *self._shape(x)))
        activation = cpu.Activation.of(self.activation, self.slope)
        return prepare(x, out, self.packed, self.inputs, (1, 1), self.stride, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transposed convolution of x, (B, C, H, W) or (C, H, W).

        Raises:
            BackendError: If the kernel does not take x.
        """
        if x.ndim == 3:
            return self(x[None])[0]
        return conv_op(
            x, self.packed, self.inputs, *self._shape(x), 1, 1, self.stride, self.activation, self.slope
        )
