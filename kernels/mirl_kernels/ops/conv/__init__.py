"""Convolution; pixel (un)shuffle and a residual are part of its store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.errors import BackendError
from mirl_kernels.ops.conv.reference import conv as reference
from mirl_kernels.ops.conv.window import PackedWindow, Window

__all__ = ["PackedConv", "reference"]


class _Args(Structure):
    _fields_ = [("x", cpu.Image), ("y", cpu.Image), ("residual", cpu.Image), ("size", cpu.Size),
                ("height", c_int64), ("width", c_int64), ("weight", c_void_p), ("activation", cpu.Activation), ("stride_y", c_int64),
                ("stride_x", c_int64), ("shuffle", c_int64), ("threads", c_int64)]  # fmt: skip


def prepare(x: Tensor, out: Tensor, packed: Tensor, inputs: int, stride: tuple[int, int], shuffle: int,
        activation: cpu.Activation, residual: Tensor | None = None) -> cpu.Call:  # fmt: skip
    """What computes ``out`` = the convolution of x by the taps of ``packed`` (`cpu.pack_taps`), activated, shuffled, plus ``residual``."""
    cpu.check(x, inputs, out, tuple(out.shape))
    if residual is not None:
        cpu.check(x, inputs, residual, tuple(out.shape))
    added = cpu.Image() if residual is None else cpu.image(residual)
    args = _Args(cpu.image(x), cpu.image(out), added, cpu.size(x), *out.shape[2:], cpu.address(packed),
                 activation, *stride, shuffle)  # fmt: skip
    return cpu.Call("conv", args, x, out, packed, residual)


@torch.library.custom_op("mirl::conv", mutates_args=())
def op(x: Tensor, packed: Tensor, inputs: int, outputs: int, height: int, width: int, stride_y: int, stride_x: int,
       shuffle: int, activation: str, slope: float) -> Tensor:  # fmt: skip
    """A convolution by the taps of ``packed``: x (B, inputs, H, W) to (B, outputs, height, width)."""
    r, u = max(shuffle, 1), max(-shuffle, 1)
    cpu.expect(packed, outputs * r * r // (u * u))
    x = cpu.with_rows(x)
    out = cpu.result(x, outputs, height, width)
    prepare(x, out, packed, inputs, (stride_y, stride_x), shuffle, cpu.activation(activation, slope))()
    return out


@op.register_fake
def _(x: Tensor, packed: Tensor, inputs: int, outputs: int, height: int, width: int, stride_y: int, stride_x: int,
      shuffle: int, activation: str, slope: float) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], outputs, height, width)


def taps_fit(packed: Tensor, rows: int, channels: int, window: Collection[tuple[int, int, int]]) -> bool:
    """Whether a packed convolution has so many rows, and taps into so many channels, each of a phase and at a distance of
    those in ``window`` (`Window.taps`)."""
    (found, columns), at = cpu.header(packed), int(packed[4])
    if found != rows or len(packed) < at + 3 * columns:
        return False
    phases = 1 + max(phase for phase, _, _ in window)
    taps = packed[at : at + 3 * columns].view(-1, 3).tolist()
    return {(c % phases, dy, dx) for c, dy, dx in taps} <= set(window) and all(
        0 <= c < channels for c, _, _ in taps
    )


def conv_quantities(packed: Tensor, vectors: int, groups: int) -> Counter[str]:
    """The `Packed.quantities` of a convolution: what its product takes, and what fills and reads the ring."""
    found = cpu.product_quantities(packed, vectors, groups)
    rows, columns, taps = (int(packed[i]) for i in (0, 1, 4))
    channels = int(packed[taps : taps + 3 * columns : 3].unique().numel())
    return found + Counter({"load": channels * vectors, "gather": columns * vectors, "store": rows * vectors})


class PackedConv(PackedWindow):
    """The surviving weights of a convolution; arguments as in `reference`."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] | None = None,
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        shuffle: int = 1,
    ) -> None:
        super().__init__()
        self.window = Window.of(weight, stride, padding, dilation)
        self.outputs, per_group = weight.shape[:2]
        self.inputs, self.shuffle = per_group * groups, shuffle
        phases, window = self.window.phases, self.window.taps()
        taps = torch.tensor(
            [(c * phases + phase, dy, dx) for c in range(per_group) for phase, dy, dx in window]
        )
        order = taps[:, 0].argsort(stable=True)
        first = torch.tensor([per_group * phases, 0, 0])  # of a group's channels
        matrices = weight.detach().flatten(1)[:, order].chunk(groups)
        packed = cpu.pack_taps([(m, taps[order] + g * first) for g, m in enumerate(matrices)], bias)
        self.register_buffer("packed", packed)

    def _fits(self) -> bool:
        return taps_fit(self.packed, self.outputs, self.inputs * self.window.phases, self.window.taps())

    def _shape(self, x: Tensor) -> tuple[int, int, int]:
        """Channels, height and width of the result."""
        height, width = self.window.result(*x.shape[2:])
        r, u = max(self.shuffle, 1), max(-self.shuffle, 1)  # shuffled by r, unshuffled by u
        if u > 1 and (height % u or width % u):
            raise BackendError(f"the result is {height}x{width}; expected multiples of {u} to unshuffle")
        return self.outputs * u * u // (r * r), height * r // u, width * r // u

    def _quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        return conv_quantities(self.packed, *self._groups(batch, height, width))

    def bind(
        self, x: Tensor, out: Tensor, scratch: Tensor | None = None, residual: Tensor | None = None
    ) -> cpu.Call:
        """What computes ``out`` = the convolution of x (B, C, H, W), shuffled, plus ``residual``; x and out may not share
        memory."""
        cpu.check(x, self.inputs, out, (x.shape[0], *self._shape(x)))
        activation = cpu.activation(self.activation, self.slope)
        return prepare(
            x, out, self.packed, self.inputs, self.window.stride, self.shuffle, activation, residual
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self(x[None])[0]
        return op(x, self.packed, self.inputs, *self._shape(x), *self.window.stride, self.shuffle,
                  self.activation, self.slope)  # fmt: skip
