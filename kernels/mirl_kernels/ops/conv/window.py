"""How a convolution's kernel moves over an image, and what that takes: shared by conv and depthwise."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mirl_kernels.core import cpu


def _axis(kernel: int, stride: int, dilation: int, before: int) -> list[tuple[int, int]]:
    """Of each tap along an axis: the phase of the pixels that it reads, and how far off they are."""
    reads = [k * dilation - before for k in range(kernel)]
    return [(at % stride, at // stride) for at in reads]


class Window(NamedTuple):
    """Rows and columns of a kernel, its strides and dilations, and the padding (top, bottom, left, right)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int, int, int] | None,
           dilation: tuple[int, int]) -> Window:  # fmt: skip
        """That of a (O, C, k, l) weight; without a padding, half the kernel on each side."""
        rows, columns = weight.shape[2:]
        half = rows // 2, rows // 2, columns // 2, columns // 2
        return cls((rows, columns), stride, half if padding is None else padding, dilation)

    @property
    def phases(self) -> int:
        """How many phases the strides take an image apart into (MirlTap of abi.h)."""
        return self.stride[0] * self.stride[1]

    def taps(self) -> list[tuple[int, int, int]]:
        """Of each of the kernel's weights, row by row: its phase, and how many rows and columns off it reads."""
        rows = _axis(self.kernel[0], self.stride[0], self.dilation[0], self.padding[0])
        columns = _axis(self.kernel[1], self.stride[1], self.dilation[1], self.padding[2])
        return [(i * self.stride[1] + j, dy, dx) for i, dy in rows for j, dx in columns]

    def result(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what it makes of an image."""
        top, bottom, left, right = self.padding
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        return (height + top + bottom - spans[0]) // self.stride[0] + 1, (
            width + left + right - spans[1]
        ) // self.stride[1] + 1


class PackedWindow(cpu.Packed):
    """A convolution's surviving weights; ``outputs`` channels before any shuffle."""

    packed: Tensor
    window: Window
    inputs: int
    outputs: int

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        rows, columns = self.window.result(height, width)
        kept = cpu.kept(self.packed)
        moved = 4 * batch * (self.inputs * height * width + self.outputs * rows * columns)
        return cpu.Work(kept * batch * rows * columns, moved + 8 * kept)

    def _groups(self, batch: int, height: int, width: int) -> tuple[int, int]:
        """`cpu.groups` of the result."""
        rows, columns = self.window.result(height, width)
        return cpu.groups(batch * rows, columns)
