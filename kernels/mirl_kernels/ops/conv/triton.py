"""Run sparse convolutions of any geometry on GPUs.

The matrix has a column for each tap and channel. The pixel shuffle and the residual are part of the store.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirl_kernels.core.triton import (
    Launch,
    Packed,
    Work,
    Workspace,
    counts_work_of,
    launch,
    nbytes,
    pack_row_groups,
    touched_elements,
)
from mirl_kernels.core.triton.dependent import after_previous
from mirl_kernels.core.triton.finite import finite
from mirl_kernels.core.triton.product import PRODUCT_TILES, group_share, product_grid


@triton.jit(do_not_specialize=["groups"])  # a loop's end
def conv_kernel(
    x,
    y,
    start,
    channel,
    down,
    right,
    value,
    row,
    bias,
    residual,
    x_batch,
    y_batch,
    residual_batch,
    height,
    width,
    out_height,
    out_width,
    stride_y,
    stride_x,
    groups,
    SHUFFLE: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute y = shuffle(matrix @ window(x) (+ bias)) (+ residual).

    ``down`` and ``right`` are the distances of a row group's columns from the output pixel's place in x. The
    grid is (tiles of output pixels, batch, shares of row groups).
    """
    after_previous(PDL)
    plane, out_plane = height * width, out_height * out_width
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < out_plane
    r, c = pixel // out_width, pixel % out_width
    batch = tl.program_id(1).to(tl.int64)
    x += batch * x_batch
    y += batch * y_batch
    first_group, end_group = group_share(groups)
    for g in range(first_group, end_group):
        total = tl.zeros([ROWS, BLOCK_P], tl.float32)
        for k in range(tl.load(start + g), tl.load(start + g + 1), BLOCK_K):
            ks = k + tl.arange(0, BLOCK_K)
            at_y = r * stride_y + tl.load(down + k)  # the columns of a step are all of one tap
            at_x = c * stride_x + tl.load(right + k)
            near = inside & (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
            base = x + tl.load(channel + ks).to(tl.int64) * plane
            part = tl.load(base[:, None] + (at_y * width + at_x)[None, :], near[None, :], 0.0)
            weight = tl.load(value + ks[None, :] * ROWS + tl.arange(0, ROWS)[:, None])
            total = tl.dot(weight, finite(part, weight.dtype), total, input_precision=PRECISION)
        o = tl.load(row + g * ROWS + tl.arange(0, ROWS))
        here = (o >= 0)[:, None] & inside[None, :]
        if BIAS:
            total += tl.load(bias + o, o >= 0, 0.0)[:, None]
        o = o.to(tl.int64)
        if SHUFFLE == 2:
            fine = (2 * r)[None, :] + (o % 4 // 2)[:, None]
            at = (
                (o // 4)[:, None] * (4 * out_plane)
                + fine * (2 * out_width)
                + (2 * c)[None, :]
                + (o % 2)[:, None]
            )
        elif SHUFFLE == -2:
            coarse = (r // 2 * (out_width // 2) + c // 2)[None, :]
            at = (4 * o[:, None] + (r % 2 * 2 + c % 2)[None, :]) * (out_plane // 4) + coarse
        else:
            at = o[:, None] * out_plane + pixel[None, :]
        if RESIDUAL:
            total += tl.load(residual + batch * residual_batch + at, here, 0.0).to(tl.float32)
        tl.store(y + at, finite(total, y.dtype.element_ty), here)


@counts_work_of(conv_kernel)
def _work(launch: Launch) -> Work:
    a, (tiles, batch, _) = launch.arguments, launch.grid
    programs, item, columns = tiles * batch, a["x"].itemsize, len(a["channel"])  # programs of one share
    patterns: dict[int, list[tuple[int, int]]] = {}  # by channel
    for channel, *place in zip(*(a[name].tolist() for name in ("channel", "down", "right")), strict=True):
        patterns.setdefault(channel, []).append(tuple(place))
    elements = touched_elements(
        patterns.values(),
        size=(a["height"], a["width"]),
        output=(a["out_height"], a["out_width"]),
        stride=(a["stride_y"], a["stride_x"]),
    )
    tables = nbytes(a["start"], a["channel"], a["value"], a["row"], a["bias"]) + 8 * columns // a["BLOCK_K"]
    return Work(
        read=batch * item * elements + tables + nbytes(a["residual"]),
        written=nbytes(a["y"]),
        fetched=programs * (columns * a["BLOCK_P"] * item + tables) + nbytes(a["residual"]),
        macs=programs * a["BLOCK_P"] * a["value"].numel(),
        trips=(programs * a["groups"], programs * columns // a["BLOCK_K"]),
    )


class TritonConv(Packed):
    """Hold the surviving weights of a convolution for the Triton kernels.

    The arguments are those of `reference`.

    Args:
        weight: (O, C / groups, KH, KW).
        bias: (O,), or None.
        stride: Down and right.
        padding: Zeros above, below, left and right; None for half the kernel on each side.
        dilation: Down and right.
        groups: The groups of channels that are convolved by themselves.
        shuffle: 2 shuffles each four channels into 2x2 pixels, -2 does the reverse, 1 neither.
        dtype: The type of activations and weights.

    Raises:
        ValueError: If ``shuffle`` is another number.
    """

    channel: Tensor
    down: Tensor
    right: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] | None = None,
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        shuffle: int = 1,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        super().__init__(dtype)
        outputs, inputs, rows, columns = weight.shape
        if shuffle not in (1, 2, -2):
            raise ValueError(f"shuffle is {shuffle}; expected 1, 2 or -2")
        self.padding = padding if padding is not None else (rows // 2, rows // 2, columns // 2, columns // 2)
        self.kernel, self.stride, self.dilation, self.shuffle = (rows, columns), stride, dilation, shuffle
        matrix = weight.new_zeros(groups, outputs // groups, rows * columns, groups, inputs)
        for g, part in enumerate(weight.detach().split(outputs // groups)):
            matrix[g, :, :, g] = part.flatten(2).transpose(1, 2)
        self.channels = groups * inputs
        self.matrix = pack_row_groups(matrix.view(outputs, -1), dtype, section=self.channels)
        tap = self.matrix.column // self.channels
        self.register_buffer("channel", (self.matrix.column % self.channels).int())
        self.register_buffer("down", (tap // columns * dilation[0] - self.padding[0]).int())
        self.register_buffer("right", (tap % columns * dilation[1] - self.padding[2]).int())
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def _size(self, x: Tensor) -> tuple[int, int]:
        """Return height and width before the shuffle."""
        top, bottom, left, right = self.padding
        padded = x.shape[2] + top + bottom, x.shape[3] + left + right
        height, width = (
            (side - d * (k - 1) - 1) // s + 1
            for side, d, k, s in zip(padded, self.dilation, self.kernel, self.stride, strict=True)
        )
        return height, width

    def _output_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return channels, height and width after the shuffle."""
        channels = self.matrix.rows
        if self.shuffle == 1:
            return channels, height, width
        if self.shuffle == 2:
            return channels // 4, 2 * height, 2 * width
        if height % 2 or width % 2:
            raise ValueError(f"the result is {height}x{width}; expected even sides to make channels of")
        return channels * 4, height // 2, width // 2

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        workspace: Workspace | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Return the shuffled convolution of x, plus the residual.

        x, y and residual may also be float32, whatever the weights are.

        Args:
            x: (B, C, H, W).
            y: The tensor to write to, or None for a new one.
            workspace: What it shares with other ops; by default a workspace of its own.
            residual: A tensor of y's shape, or None.

        Raises:
            ValueError: If an operand does not fit, or a reverse shuffle has odd sides to work on.
        """
        height, width = self._size(x)
        shape = len(x), *self._output_shape(height, width)
        y = self.checked_output(x, self.channels, y, shape, (torch.float32,), residual)
        matrix = self.matrix
        columns = matrix.start, self.channel, self.down, self.right
        batch_strides = x.stride(0), y.stride(0), 0 if residual is None else residual.stride(0)
        workspace = workspace or Workspace()
        launch(
            workspace,
            conv_kernel,
            product_grid(height * width, len(x), matrix, workspace),
            *(x, y, *columns, matrix.value, matrix.row, self.bias, residual),
            *batch_strides,
            *(*x.shape[2:], height, width, *self.stride, matrix.groups),
            SHUFFLE=self.shuffle,
            BIAS=self.bias is not None,
            RESIDUAL=residual is not None,
            ROWS=matrix.height,
            BLOCK_K=matrix.step,
            PRECISION="ieee",
            tiles=PRODUCT_TILES,
        )
        return y
