"""Transposed convolution: a convolution to stride^2 times as many channels, whose store shuffles them to pixels."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.ops import conv as conv_room
from mirl_kernels.ops.conv_transpose.reference import conv_transpose as reference

__all__ = ["PackedConvTranspose", "reference"]


class PackedConvTranspose(cpu.Packed):
    """The surviving weights of a transposed convolution; arguments as in `reference`. Where an input is infinite or NaN, more
    pixels around it may be NaN than PyTorch's.

    Of an output pixel stride * Y + i, the taps k with i + padding - dilation * k = stride * dy read input pixel Y + dy:
    for each i a convolution of its own (sub-pixel convolution: Shi et al., CVPR 2016).
    """

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
        self.grow = [d * (k - 1) + 1 + more - 2 * p - stride
                     for k, d, more, p in zip(kernel, dilation, output_padding, padding, strict=True)]  # fmt: skip
        reads = [[(i, k, (i + p - d * k) // stride) for i in range(stride) for k in range(n)
                  if (i + p - d * k) % stride == 0] for n, d, p in zip(kernel, dilation, padding, strict=True)]  # fmt: skip
        rows, columns = (sorted({at for _, _, at in axis}) for axis in reads)
        self.window = [(0, dy, dx) for dy in rows for dx in columns]
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

    def _fits(self) -> bool:
        return conv_room.taps_fit(self.packed, self.outputs * self.stride**2, self.inputs, self.window)

    def _shape(self, x: Tensor) -> tuple[int, int, int]:
        return self.outputs, x.shape[2] * self.stride + self.grow[0], x.shape[3] * self.stride + self.grow[1]

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        kept, pixels = cpu.kept(self.packed), batch * height * width
        return cpu.Work(kept * pixels, 4 * (self.inputs + self.outputs * self.stride**2) * pixels + 8 * kept)

    def _quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        vectors, groups = cpu.groups(batch * height, width)
        return conv_room.conv_quantities(self.packed, vectors, groups)

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        cpu.check(x, self.inputs, out, (x.shape[0], *self._shape(x)))
        return conv_room.prepare(x, out, self.packed, self.inputs, (1, 1), self.stride,
                                 cpu.activation(self.activation, self.slope))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self(x[None])[0]
        return conv_room.op(x, self.packed, self.inputs, *self._shape(x), 1, 1, self.stride,
                            self.activation, self.slope)  # fmt: skip
