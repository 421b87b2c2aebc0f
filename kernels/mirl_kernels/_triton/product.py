"""The product that most layers are: a sparse matrix in panels times the channels of every pixel of a tile."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mirl_kernels._triton import COLUMNS, ROWS, Panels
from mirl_kernels.layer_norm import EPS

_PIXELS = 64  # of a program


@triton.jit
def moments(x, plane, pixel, inside, channels, eps, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Mean and reciprocal deviation of each pixel's channels: two passes, since E[x^2] - E[x]^2 loses digits."""
    total = tl.zeros([BLOCK_P], tl.float32)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        here = (c < channels)[:, None] & inside[None, :]
        total += tl.sum(tl.load(x + c.to(tl.int64)[:, None] * plane + pixel[None, :], here, 0.0).to(tl.float32), 0)
    mean = total / channels
    total = tl.zeros([BLOCK_P], tl.float32)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        here = (c < channels)[:, None] & inside[None, :]
        part = tl.load(x + c.to(tl.int64)[:, None] * plane + pixel[None, :], here, 0.0).to(tl.float32) - mean[None, :]
        total += tl.sum(tl.where(here, part * part, 0.0), 0)
    return mean, tl.rsqrt(total / channels + eps)


@triton.jit
def own_panels(groups):
    """The first panel of this program's share, and the one behind its last; the grid's third axis are the shares."""
    share = tl.cdiv(groups, tl.num_programs(2))
    first = tl.program_id(2) * share
    return first, tl.minimum(first + share, groups)


@triton.jit
def pointwise_kernel(
    x, y, start, column, value, row, bias,
    x_batch, y_batch, plane, channels, groups, eps,
    NORM: tl.constexpr, CENTRED: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y[row] = matrix @ norm(x) (+ bias), for BLOCK_P pixels of an image and every panel that is this program's:
    grid (tiles of pixels, batch, shares of panels)."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < plane
    batch = tl.program_id(1).to(tl.int64)
    x += batch * x_batch
    y += batch * y_batch
    if NORM:
        mean, scale = moments(x, plane, pixel, inside, channels, eps, BLOCK_C, BLOCK_P)
        if not CENTRED:
            mean = tl.zeros([BLOCK_P], tl.float32)
    first_panel, last_panel = own_panels(groups)
    for g in range(first_panel, last_panel):
        total = tl.zeros([ROWS, BLOCK_P], tl.float32)
        for k in range(tl.load(start + g), tl.load(start + g + 1), BLOCK_K):
            ks = k + tl.arange(0, BLOCK_K)
            channel = tl.load(column + ks).to(tl.int64)
            part = tl.load(x + channel[:, None] * plane + pixel[None, :], inside[None, :], 0.0)
            if NORM:
                part = ((part.to(tl.float32) - mean[None, :]) * scale[None, :]).to(part.dtype)
            weight = tl.load(value + ks[None, :] * ROWS + tl.arange(0, ROWS)[:, None])
            total = tl.dot(weight, part, total, input_precision=PRECISION)
        rows = tl.load(row + g * ROWS + tl.arange(0, ROWS))
        here = (rows >= 0)[:, None] & inside[None, :]
        if BIAS:
            total += tl.load(bias + rows, rows >= 0, 0.0)[:, None]
        at = rows.to(tl.int64)[:, None] * plane + pixel[None, :]
        tl.store(y + at, total.to(y.dtype.element_ty), here)


def project(
    x: Tensor,
    y: Tensor,
    matrix: Panels,
    bias: Tensor | None = None,
    norm: bool = False,
    centred: bool = True,
) -> None:
    """y (B, rows, H, W) = matrix @ x (B, columns, H, W) at each pixel, x normalised over its channels where ``norm`` says so;
    + bias (rows,) float32."""
    batch, channels, height, width = x.shape
    plane = height * width
    grid = (triton.cdiv(plane, _PIXELS), batch, 1)
    pointwise_kernel[grid](
        x, y, matrix.start, matrix.column, matrix.value, matrix.row, bias,
        x.stride(0), y.stride(0), plane, channels, matrix.groups, EPS,
        NORM=norm, CENTRED=centred, BIAS=bias is not None,
        ROWS=ROWS, BLOCK_K=COLUMNS, BLOCK_C=min(32, triton.next_power_of_2(channels)), BLOCK_P=_PIXELS,
        PRECISION="ieee", num_warps=4,
    )  # fmt: skip
