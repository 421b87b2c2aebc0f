"""Convolutions of any geometry on GPUs: panels over (tap, channel), the pixel shuffle and the residual in the store."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirl_kernels.core.triton import Launch, Packed, Panels, Work, counts, launch, pack_panels, size, touched
from mirl_kernels.core.triton.product import TILES, grid, own_panels


@triton.jit(do_not_specialize=["groups"])  # a loop's end
def conv_kernel(
    x, y, start, channel, down, right, value, row, bias, residual,
    x_batch, y_batch, residual_batch, height, width, out_height, out_width, stride_y, stride_x, groups,
    SHUFFLE: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = shuffle(matrix @ window(x) (+ bias)) (+ residual): ``down`` and ``right`` are the distances of a panel's columns from
    the output pixel's place in x. Grid (tiles of output pixels, batch, shares of panels)."""
    plane, out_plane = height * width, out_height * out_width
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < out_plane
    r, c = pixel // out_width, pixel % out_width
    batch = tl.program_id(1).to(tl.int64)
    x += batch * x_batch
    y += batch * y_batch
    first_panel, last_panel = own_panels(groups)
    for g in range(first_panel, last_panel):
        total = tl.zeros([ROWS, BLOCK_P], tl.float32)
        for k in range(tl.load(start + g), tl.load(start + g + 1), BLOCK_K):
            ks = k + tl.arange(0, BLOCK_K)
            at_y = r * stride_y + tl.load(down + k)  # the columns of a step are all of one tap
            at_x = c * stride_x + tl.load(right + k)
            near = inside & (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
            base = x + tl.load(channel + ks).to(tl.int64) * plane
            part = tl.load(base[:, None] + (at_y * width + at_x)[None, :], near[None, :], 0.0)
            weight = tl.load(value + ks[None, :] * ROWS + tl.arange(0, ROWS)[:, None])
            total = tl.dot(weight, part.to(weight.dtype), total, input_precision=PRECISION)
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
        tl.store(y + at, total.to(y.dtype.element_ty), here)


@counts(conv_kernel)
def _work(launch: Launch) -> Work:
    a, (tiles, batch, _) = launch.arguments, launch.grid
    everywhere, item, columns = tiles * batch, a["x"].itemsize, len(a["channel"])
    patterns: dict[int, list[tuple[int, int]]] = {}
    for channel, *place in zip(*(a[name].tolist() for name in ("channel", "down", "right")), strict=True):
        patterns.setdefault(channel, []).append(tuple(place))
    output = a["out_height"], a["out_width"]
    image = touched(patterns.values(), (a["height"], a["width"]), output, (a["stride_y"], a["stride_x"]))
    tables = size(a["start"], a["channel"], a["value"], a["row"], a["bias"]) + 8 * columns // a["BLOCK_K"]
    return Work(
        read=batch * item * image + tables + size(a["residual"]),
        written=size(a["y"]),
        fetched=everywhere * (columns * a["BLOCK_P"] * item + tables) + size(a["residual"]),
        macs=everywhere * a["BLOCK_P"] * a["value"].numel(),
        trips=(everywhere * a["groups"], everywhere * columns // a["BLOCK_K"]),
    )


class TritonConv(Packed):
    """A sparse convolution; arguments as in `reference`, ``shuffle`` 1, 2 or -2."""

    channel: Tensor
    down: Tensor
    right: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None, stride: tuple[int, int] = (1, 1),
                 padding: tuple[int, int, int, int] | None = None, dilation: tuple[int, int] = (1, 1), groups: int = 1,
                 shuffle: int = 1, dtype: torch.dtype = torch.float16) -> None:  # fmt: skip
        super().__init__(dtype)
        outputs, inputs, rows, columns = weight.shape
        if shuffle not in (1, 2, -2):
            raise ValueError(f"shuffle is {shuffle}; expected 1, 2 or -2")
        self.padding = padding if padding is not None else (rows // 2, rows // 2, columns // 2, columns // 2)
        self.kernel, self.stride, self.dilation, self.shuffle = (rows, columns), stride, dilation, shuffle
        whole = weight.new_zeros(groups, outputs // groups, rows * columns, groups, inputs)
        for g in range(groups):
            whole[g, :, :, g] = (
                weight.detach()[g * (outputs // groups) :][: outputs // groups].flatten(2).transpose(1, 2)
            )
        self.channels = groups * inputs
        self.matrix: Panels = pack_panels(whole.view(outputs, -1), dtype, part=self.channels)
        tap = self.matrix.column // self.channels
        self.register_buffer("channel", (self.matrix.column % self.channels).int())
        self.register_buffer("down", (tap // columns * dilation[0] - self.padding[0]).int())
        self.register_buffer("right", (tap % columns * dilation[1] - self.padding[2]).int())
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def _size(self, x: Tensor) -> tuple[int, int]:
        top, bottom, left, right = self.padding
        padded = x.shape[2] + top + bottom, x.shape[3] + left + right
        reach = tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True))
        return (padded[0] - reach[0] - 1) // self.stride[0] + 1, (padded[1] - reach[1] - 1) // self.stride[
            1
        ] + 1

    def forward(self, x: Tensor, y: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) to the shuffled result; x, y and residual may be float32 whatever the weights are."""
        height, width = self._size(x)
        o, r = self.matrix.rows, abs(self.shuffle)
        shape = (o, height, width) if r == 1 else (o // 4, 2 * height, 2 * width)
        if self.shuffle < -1:
            if height % 2 or width % 2:
                raise ValueError(f"the result is {height}x{width}; expected even sides to make channels of")
            shape = o * 4, height // 2, width // 2
        y = self.check(x, self.channels, y, (len(x), *shape), (torch.float32,), residual)
        launch(
            conv_kernel, grid(height * width, len(x), self.matrix),
            x, y, self.matrix.start, self.channel, self.down, self.right, self.matrix.value, self.matrix.row, self.bias,
            residual, x.stride(0), y.stride(0), 0 if residual is None else residual.stride(0),
            *x.shape[2:], height, width, *self.stride, self.matrix.groups,
            SHUFFLE=self.shuffle, BIAS=self.bias is not None, RESIDUAL=residual is not None,
            ROWS=self.matrix.height, BLOCK_K=self.matrix.step, PRECISION="ieee", tiles=TILES,
        )  # fmt: skip
        return y
