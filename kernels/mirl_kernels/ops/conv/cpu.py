"""Pack a convolution for the C++ kernel, and call that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import PackedMatrix, Quantity
from mirl_kernels.errors import BackendError
from mirl_kernels.ops.conv.window import PackedWindow, Window


class ConvArgs(Structure):
    """Hold the argument of the kernel (``MirlConv`` of abi.h)."""

    _fields_ = [
        ("x", cpu.Image),
        ("y", cpu.Image),
        ("residual", cpu.Image),
        ("size", cpu.Size),
        ("height", c_int64),
        ("width", c_int64),
        ("weight", c_void_p),
        ("activation", cpu.Activation),
        ("stride_y", c_int64),
        ("stride_x", c_int64),
        ("shuffle", c_int64),
        ("threads", c_int64),
    ]


def prepare(
    x: Tensor,
    out: Tensor,
    packed: Tensor,
    inputs: int,
    stride: tuple[int, int],
    shuffle: int,
    activation: cpu.Activation,
    residual: Tensor | None = None,
) -> cpu.Call:
    """Return the call that computes ``out`` = the convolution of x, activated, shuffled, plus a residual.

    Args:
        x: (B, inputs, H, W).
        out: The result.
        packed: The packed matrix, with taps (`cpu.pack_taps`).
        inputs: Channels of x.
        stride: Along rows and columns.
        shuffle: As in the definition, `conv`.
        activation: What happens to the result before it is shuffled.
        residual: In the shape of ``out``, or None.
    """
    cpu.check(x, inputs, out, tuple(out.shape))
    if residual is not None:
        cpu.check(x, inputs, residual, tuple(out.shape))
    args = ConvArgs(
        cpu.image(x),
        cpu.image(out),
        cpu.Image() if residual is None else cpu.image(residual),
        cpu.size(x),
        *out.shape[2:],
        cpu.address(packed),
        activation,
        *stride,
        shuffle,
    )
    return cpu.Call("conv", args, x, out, packed, residual)


@torch.library.custom_op("mirl::conv", mutates_args=())
def op(
    x: Tensor,
    packed: Tensor,
    inputs: int,
    outputs: int,
    height: int,
    width: int,
    stride_y: int,
    stride_x: int,
    shuffle: int,
    activation: str,
    slope: float,
) -> Tensor:
    """Return the convolution of x by a packed matrix, activated and shuffled.

    Args:
        x: (B, inputs, H, W).
        packed: The packed matrix, with taps.
        inputs: Channels of x.
        outputs: Channels of the result.
        height: Rows of the result.
        width: Columns of the result.
        stride_y: Stride along rows.
        stride_x: Stride along columns.
        shuffle: As in the definition, `conv`.
        activation: Name of what happens to the result (`cpu.Activation.of`).
        slope: Slope of the activation.

    Returns:
        (B, outputs, height, width).
    """
    r, u = max(shuffle, 1), max(-shuffle, 1)
    PackedMatrix(packed).expect(outputs * r * r // (u * u))
    x = cpu.with_rows(x)
    out = cpu.result(x, outputs, height, width)
    act = cpu.Activation.of(activation, slope)
    prepare(x, out, packed, inputs, (stride_y, stride_x), shuffle, act)()
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
    shuffle: int,
    activation: str,
    slope: float,
) -> Tensor:
    return x.new_empty(x.shape[0], outputs, height, width)


def taps_fit(packed: Tensor, rows: int, channels: int, window: Collection[tuple[int, int, int]]) -> bool:
    """Return whether a packed convolution belongs to a layer.

    Args:
        packed: The packed matrix.
        rows: How many rows it must have.
        channels: Its taps must name channels 0 to channels - 1.
        window: Phase and distance of each tap that the layer's kernel has (`Window.taps`).
    """
    matrix = PackedMatrix(packed)
    if matrix.rows != rows or matrix.taps is None:
        return False
    phases = 1 + max(phase for phase, _, _ in window)
    taps = matrix.taps.tolist()
    return {(c % phases, dy, dx) for c, dy, dx in taps} <= set(window) and all(
        0 <= c < channels for c, _, _ in taps
    )


def conv_quantities(packed: Tensor, rows: int, columns: int) -> Counter[str]:
    """Return the quantities of a convolution: of its product, and of what fills and reads the ring of rows.

    Args:
        packed: The packed matrix, with taps.
        rows: Rows of the result, of all items of a batch.
        columns: Pixels of a row.
    """
    vectors, groups = cpu.pixel_groups(rows, columns)
    matrix = PackedMatrix(packed)
    assert matrix.taps is not None
    channels = int(matrix.taps[:, 0].unique().numel())
    counts = cpu.product_quantities(packed, vectors, groups)
    counts += Counter({Quantity.LOAD: channels * vectors, Quantity.STORE: matrix.rows * vectors})
    within_rows = groups >= rows  # groups of pixels
    for chunk in matrix.chunks:
        few = cpu.kernel_rule("conv_reads_ring", chunk.nnz, chunk.columns)
        if chunk.is_dense or not within_rows or not few:
            counts[Quantity.GATHER] += chunk.columns * vectors
            continue
        for panel, ring, times in (
            (Quantity.ENTRY, Quantity.DEPTHWISE_TAP, vectors),
            (Quantity.ENTRY_OF_GROUP, Quantity.DEPTHWISE_TAP_OF_GROUP, groups),
        ):
            counts[panel] -= chunk.nnz * times
            counts[ring] += chunk.nnz * times
    return counts


class PackedConv(PackedWindow):
    """Keep the surviving weights of a convolution.

    The constructor takes what the definition, `conv`, takes after x, but for the residual.
    """

    multiplied = ("packed",)

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

    def _shape(self, x: Tensor) -> tuple[int, int, int]:
        """Return channels, height and width of the result."""
        height, width = self.window.result(*x.shape[2:])
        r, u = max(self.shuffle, 1), max(-self.shuffle, 1)  # shuffled by r, unshuffled by u
        if u > 1 and (height % u or width % u):
            raise BackendError(f"the result is {height}x{width}; expected multiples of {u} to unshuffle")
        return self.outputs * u * u // (r * r), height * r // u, width * r // u

    def kernel_quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """Return the quantities of the kernel itself."""
        rows, columns = self.window.result(height, width)
        return conv_quantities(self.packed, batch * rows, columns)

    def bind(
        self, x: Tensor, out: Tensor, scratch: Tensor | None = None, residual: Tensor | None = None
    ) -> cpu.Call:
        """Return the call that computes ``out`` = the convolution of x, activated, shuffled, plus a residual.

        Args:
            x: (B, C, H, W).
            out: The result; it may not share memory with x.
            scratch: Not used.
            residual: In the shape of ``out``, or None.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        cpu.check(x, self.inputs, out, (x.shape[0], *self._shape(x)))
        activation = cpu.Activation.of(self.activation, self.slope)
        return prepare(
            x, out, self.packed, self.inputs, self.window.stride, self.shuffle, activation, residual
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x, (B, C, H, W) or (C, H, W), activated and shuffled.

        Raises:
            BackendError: If the kernel does not take x.
        """
        if x.ndim == 3:
            return self(x[None])[0]
        return op(
            x,
            self.packed,
            self.inputs,
            *self._shape(x),
            *self.window.stride,
            self.shuffle,
            self.activation,
            self.slope,
        )
