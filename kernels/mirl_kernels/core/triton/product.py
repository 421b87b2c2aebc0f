"""The product that most layers are: a sparse matrix in panels times the channels of every pixel of a tile."""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

from mirl_kernels.core.triton import (
    HEIGHTS,
    PAD,
    Launch,
    Panels,
    Strip,
    Tile,
    Work,
    counts,
    launch,
    size,
    turns,
)
from mirl_kernels.ops.layer_norm import EPS

# Of a program: 128 pixels where its registers suffice, 16 where AMD's scalar ones would not even for 32.
TILES = tuple(
    Tile({"BLOCK_P": pixels}, warps, pipelined)
    for pixels, warps, pipelined in (
        (128, 4, True), (128, 4, False), (128, 8, False), (64, 4, False), (64, 8, False), (32, 4, False), (16, 4, False),
    )
)  # fmt: skip
# What a program that normalises takes before its panels, and for each channel, as `HEIGHTS` counts.
_START, _CHANNEL = 430, 5


def grid(
    pixels: int, batch: int, matrix: Panels, norm: int = 0
) -> Callable[[dict[str, int]], tuple[int, int, int]]:
    """That of a product: tiles of pixels, images, and shares of the panels, each of which programs of its own work on: as many as
    leave the busiest processor least to do, where each program needs the ``norm`` of so many channels."""
    column, panel = HEIGHTS[matrix.height]
    each = panel + column * len(matrix.column) / max(1, matrix.groups)
    before = norm and _START + _CHANNEL * norm

    def of(sizes: dict[str, int]) -> tuple[int, int, int]:
        tiles = triton.cdiv(pixels, sizes["BLOCK_P"])

        def busiest(shares: int) -> float:
            return turns(tiles * batch * shares) * (before + triton.cdiv(matrix.groups, shares) * each)

        return tiles, batch, min(range(1, max(1, matrix.groups) + 1), key=busiest)

    return of


@triton.jit
def moments(
    x, plane, pixel, inside, channels, eps, WHOLE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr
):
    """Mean and reciprocal deviation of each pixel's channels, WHOLE blocks of BLOCK_C or not, in one pass. E[x^2] - E[x]^2 loses
    digits; of x less the mean m of the first n of N channels it loses few, since (m - mean)^2 <= variance * (N - n) / n whatever
    they are."""
    c = tl.arange(0, BLOCK_C)
    sums = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    squares = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    at = x + c.to(tl.int64)[:, None] * plane + pixel[None, :]
    part = tl.load(at, (c < channels)[:, None] & inside[None, :], 0.0).to(tl.float32)
    shift = (tl.sum(part, 0) / tl.minimum(channels, BLOCK_C))[None, :]
    for first in range(0, channels, BLOCK_C):
        here = (first + c < channels)[:, None]
        at = x + (first + c).to(tl.int64)[:, None] * plane + pixel[None, :]
        part = tl.load(at, here & inside[None, :], 0.0).to(tl.float32) - shift
        if not WHOLE:
            part = tl.where(here, part, 0.0)
        sums += part
        squares += part * part
    mean = tl.sum(sums, 0) / channels
    variance = tl.maximum(tl.sum(squares, 0) / channels - mean * mean, 0.0)
    return tl.sum(shift, 0) + mean, tl.rsqrt(variance + eps)


@triton.jit
def in_plane(pixel, width, PAD: tl.constexpr):
    """Where a pixel is in a plane of hidden channels, see `hidden`, counted from the row above the strip."""
    return pixel + pixel // width * PAD + PAD


@triton.jit
def own_panels(groups):
    """The first panel of this program's share, and the one behind its last; the grid's third axis are the shares."""
    share = tl.cdiv(groups, tl.num_programs(2))
    first = tl.program_id(2) * share
    return first, tl.minimum(first + share, groups)


@triton.jit(do_not_specialize=["groups"])  # a loop's end
def pointwise_kernel(
    x, y, start, column, value, row, total, bias,
    x_batch, y_batch, y_plane, plane, first, begin, count, width, channels, groups, eps,
    HIDDEN: tl.constexpr, ALIGNED: tl.constexpr, NORM: tl.constexpr, CENTRED: tl.constexpr, BIAS: tl.constexpr,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    PAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y[row] = matrix @ norm(x) (+ bias), for BLOCK_P of the ``count`` pixels from ``begin`` on and every panel that is this
    program's: grid (tiles of pixels, batch, shares of panels); tiles start at ``first``, where vectors may, at or before ``begin``.
    HIDDEN: y is as `hidden` says, zero at pixels outside the image. The norm is applied to the sums, of which there are fewer than
    of factors: matrix @ ((x - mean) * scale) = (matrix @ x - mean * total) * scale."""
    pixel = first + tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel.to(tl.uint32) < plane  # not before it either
    place = pixel - begin
    batch = tl.program_id(1).to(tl.int64)
    x += batch * x_batch
    y += batch * y_batch
    if NORM:
        mean, scale = moments(x, plane, pixel, inside, channels, eps, WHOLE, BLOCK_C, BLOCK_P)
    to = place
    if HIDDEN:
        to = in_plane(tl.maximum(place, 0), width, PAD)
        if ALIGNED:  # PAD pixels from a multiple of PAD on are in one row
            to = tl.max_contiguous(tl.multiple_of(to, PAD), PAD)
    first_panel, last_panel = own_panels(groups)
    for g in range(first_panel, last_panel):
        acc = tl.zeros([ROWS, BLOCK_P], tl.float32)
        for k in range(tl.load(start + g), tl.load(start + g + 1), BLOCK_K):
            ks = k + tl.arange(0, BLOCK_K)
            channel = tl.load(column + ks).to(tl.int64)
            part = tl.load(x + channel[:, None] * plane + pixel[None, :], inside[None, :], 0.0)
            weight = tl.load(value + ks[None, :] * ROWS + tl.arange(0, ROWS)[:, None])
            acc = tl.dot(weight, part, acc, input_precision=PRECISION)
        at = g * ROWS + tl.arange(0, ROWS)
        rows = tl.load(row + at)
        if NORM:
            if CENTRED:
                acc -= tl.load(total + at)[:, None] * mean[None, :]
            acc *= scale[None, :]
        if BIAS:
            offset = tl.load(bias + rows, rows >= 0, 0.0)[:, None]
            if HIDDEN:  # outside the image all else is zero by now
                offset = tl.where(inside[None, :], offset, 0.0)
            acc += offset
        here = (rows >= 0)[:, None] & (place.to(tl.uint32) < count)[None, :]
        tl.store(y + rows.to(tl.int64)[:, None] * y_plane + to[None, :], acc.to(y.dtype.element_ty), here)


@counts(pointwise_kernel)
def _work(launch: Launch) -> Work:
    a, (tiles, batch, parts) = launch.arguments, launch.grid
    item, everywhere = a["x"].itemsize, tiles * batch
    used = a["channels"] if a["NORM"] else len(a["column"].unique())
    indices = size(
        a["start"], a["column"], a["row"], a["bias"], a["total"] if a["NORM"] and a["CENTRED"] else None
    )
    norm = [everywhere * parts * triton.cdiv(a["channels"], a["BLOCK_C"])] if a["NORM"] else []
    steps = len(a["column"]) // a["BLOCK_K"]
    loaded = len(a["column"]) + (
        parts * a["channels"] if a["NORM"] else 0
    )  # channels of a pixel, by all panels and for the norm
    pixels = min(a["first"] + tiles * a["BLOCK_P"], a["plane"]) - max(a["first"], 0)
    written = batch * int((a["row"] >= 0).sum()) * a["count"] * a["y"].itemsize
    return Work(
        read=batch * used * pixels * item + size(a["value"]) + indices,
        written=written,
        fetched=everywhere * (loaded * a["BLOCK_P"] * item + size(a["value"]) + indices),
        macs=everywhere * a["BLOCK_P"] * a["value"].numel(),
        trips=(*norm, everywhere * a["groups"], everywhere * steps),
        hidden=written if a["HIDDEN"] else 0,
        buffer=size(a["y"]) if a["HIDDEN"] else 0,
    )


def project(
    x: Tensor,
    y: Tensor,
    matrix: Panels,
    bias: Tensor | None = None,
    norm: bool = False,
    centred: bool = True,
    strip: Strip | None = None,
) -> None:
    """y (B, rows, H, W) = matrix @ x (B, columns, H, W) at each pixel, x normalised over its channels where ``norm`` says so;
    + bias (rows,) float32. With a ``strip`` y is of `hidden`, and gets that and the rows around it."""
    batch, channels, height, width = x.shape
    plane = height * width
    begin, count = ((strip.first - 1) * width, (strip.rows + 2) * width) if strip else (0, plane)
    first, block = begin // 16 * 16, min(8, triton.next_power_of_2(channels))
    launch(
        pointwise_kernel, grid(begin + count - first, batch, matrix, channels if norm else 0),
        x, y, matrix.start, matrix.column, matrix.value, matrix.row, matrix.total, bias,
        x.stride(0), y.stride(0), y.stride(1), plane, first, begin, count, width, channels, matrix.groups, EPS,
        HIDDEN=strip is not None, ALIGNED=strip is not None and width % PAD == 0, NORM=norm, CENTRED=centred, BIAS=bias is not None,
        WHOLE=channels % block == 0, ROWS=matrix.height, BLOCK_K=matrix.step, BLOCK_C=block, PAD=PAD, PRECISION="ieee", tiles=TILES,
    )  # fmt: skip
