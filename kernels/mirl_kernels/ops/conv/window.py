"""Describe how a convolution's kernel moves over an image; conv and depthwise share it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import PackedMatrix


def _axis(kernel: int, stride: int, dilation: int, before: int) -> list[tuple[int, int]]:
    """Return for each tap along an axis the phase of the pixels that it reads, and how far off they are."""
    reads = [k * dilation - before for k in range(kernel)]
    return [(at % stride, at // stride) for at in reads]


class Window(NamedTuple):
    """Hold the geometry of a kernel.

    Attributes:
        kernel: Its rows and columns.
        stride: Along rows and columns.
        padding: Top, bottom, left and right.
        dilation: Along rows and columns.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(
        cls,
        weight: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int, int, int] | None,
        dilation: tuple[int, int],
    ) -> Window:
        """Return the window of a (O, C, k, l) weight; without a padding, half the kernel on each side."""
        rows, columns = weight.shape[2:]
        half = rows // 2, rows // 2, columns // 2, columns // 2
        return cls((rows, columns), stride, half if padding is None else padding, dilation)

    @property
    def phases(self) -> int:
        """Return how many phases the strides take an image apart into (``MirlTap`` of abi.h)."""
        return self.stride[0] * self.stride[1]

    def taps(self) -> list[tuple[int, int, int]]:
        """Return what the weights of the kernel read, row by row.

        Returns:
            For each weight the phase of its pixel, and how many rows and columns off it is.
        """
        rows = _axis(self.kernel[0], self.stride[0], self.dilation[0], self.padding[0])
        columns = _axis(self.kernel[1], self.stride[1], self.dilation[1], self.padding[2])
        return [(i * self.stride[1] + j, dy, dx) for i, dy in rows for j, dx in columns]

    def result(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the result on an image of this height and width."""
        top, bottom, left, right = self.padding
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        return (
            (height + top + bottom - spans[0]) // self.stride[0] + 1,
            (width + left + right - spans[1]) // self.stride[1] + 1,
        )


class PackedWindow(cpu.Packed):
    """Keep the surviving weights of a convolution.

    Attributes:
        packed: The packed matrix, with taps.
        window: The geometry of the kernel.
        inputs: Channels of the input.
        outputs: Channels of the result, before any shuffle.
    """

    packed: Tensor
    window: Window
    inputs: int
    outputs: int

    def matrices(self) -> tuple[Tensor]:
        """Return the packed matrices among the buffers."""
        return (self.packed,)

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        """Return what a call on (batch, C, height, width) must do."""
        rows, columns = self.window.result(height, width)
        nnz = PackedMatrix(self.packed).nnz
        moved = 4 * batch * (self.inputs * height * width + self.outputs * rows * columns)
        return cpu.Work(nnz * batch * rows * columns, moved + 8 * nnz)

    def result_groups(self, batch: int, height: int, width: int) -> tuple[int, int]:
        """Return the `cpu.pixel_groups` of the result of a call on (batch, C, height, width)."""
        rows, columns = self.window.result(height, width)
        return cpu.pixel_groups(batch * rows, columns)
