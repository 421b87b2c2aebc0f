"""Multiply a sparse matrix in row groups with the channels of every pixel, which is what most layers do."""

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

from mirl_kernels.core.layer_norm import EPS
from mirl_kernels.core.triton.dependent import after_previous
from mirl_kernels.core.triton.finite import finite
from mirl_kernels.core.triton.launches import Launch, launch
from mirl_kernels.core.triton.row_groups import HEIGHTS, RowGroups
from mirl_kernels.core.triton.strips import PAD, Strip
from mirl_kernels.core.triton.tuner import Tile
from mirl_kernels.core.triton.work import Work, counts_work_of, nbytes
from mirl_kernels.core.triton.workspace import Workspace

# 128 pixels where the registers suffice, 16 where AMD's scalar registers would not suffice for 32.
PRODUCT_TILES = (
    Tile({"BLOCK_P": 128}, 4),
    Tile({"BLOCK_P": 128}, 8),
    Tile({"BLOCK_P": 128}, 4, pipelined=False),
    Tile({"BLOCK_P": 128}, 8, pipelined=False),
    Tile({"BLOCK_P": 64}, 4, pipelined=False),
    Tile({"BLOCK_P": 64}, 8, pipelined=False),
    Tile({"BLOCK_P": 32}, 4, pipelined=False),
    Tile({"BLOCK_P": 16}, 4, pipelined=False),
)
# What a program takes to normalise: once, and for each channel, in the unit of `GroupCost`.
_NORM_START, _NORM_CHANNEL = 430, 5
_MOST_UNROLLED = 12  # blocks of channels that a trip of `moments` loads, at most


def product_grid(
    pixels: int, batch: int, matrix: RowGroups, workspace: Workspace, norm_channels: int = 0
) -> Callable[[dict[str, int]], tuple[int, int, int]]:
    """Return the grid of a product: tiles of pixels, images, and shares of the row groups.

    Each share has programs of its own. There are as many shares as leave the busiest processor the least to
    do.

    Args:
        pixels: The pixels of an image.
        batch: The number of images.
        matrix: The matrix.
        workspace: Describes the GPU.
        norm_channels: How many channels each program normalises first, or 0 for none.
    """
    cost = HEIGHTS[matrix.height]
    group_cost = cost.group + cost.column * len(matrix.column) / max(1, matrix.groups)
    norm_cost = norm_channels and _NORM_START + _NORM_CHANNEL * norm_channels

    def grid(sizes: dict[str, int]) -> tuple[int, int, int]:
        tiles = triton.cdiv(pixels, sizes["BLOCK_P"])

        def busiest(shares: int) -> float:
            waves = workspace.waves(tiles * batch * shares)
            return waves * (norm_cost + triton.cdiv(matrix.groups, shares) * group_cost)

        return tiles, batch, min(range(1, max(1, matrix.groups) + 1), key=busiest)

    return grid


@triton.jit
def moments(
    x,
    plane,
    pixel,
    inside,
    channels,
    eps,
    WHOLE: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Return the mean and the reciprocal deviation of the channels at each pixel, in one pass.

    E[x^2] - E[x]^2 loses digits. The same of x less the mean m of the first n of N channels loses few, since
    (m - mean)^2 <= variance * (N - n) / n whatever the channels are.

    A trip loads BLOCKS blocks of channels, so that a program waits for memory once for all of them. WHOLE
    says that the channels are a multiple of what a trip loads.
    """
    c = tl.arange(0, BLOCK_C)
    sums = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    squares = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    at = x + c.to(tl.int64)[:, None] * plane + pixel[None, :]
    part = tl.load(at, (c < channels)[:, None] & inside[None, :], 0.0).to(tl.float32)
    shift = (tl.sum(part, 0) / tl.minimum(channels, BLOCK_C))[None, :]
    for trip in range(0, channels, BLOCK_C * BLOCKS):
        for block in tl.static_range(BLOCKS):
            channel = trip + block * BLOCK_C + c
            here = (channel < channels)[:, None]
            at = x + channel.to(tl.int64)[:, None] * plane + pixel[None, :]
            part = tl.load(at, here & inside[None, :], 0.0).to(tl.float32) - shift
            if not WHOLE:
                part = tl.where(here, part, 0.0)
            sums += part
            squares += part * part
    mean = tl.sum(sums, 0) / channels
    variance = tl.maximum(tl.sum(squares, 0) / channels - mean * mean, 0.0)
    return tl.sum(shift, 0) + mean, tl.rsqrt(variance + eps)


def blocks_of_a_trip(channels: int, block: int) -> int:
    """Return how many blocks of channels a trip of `moments` loads: no more than the fewest trips need.

    >>> [blocks_of_a_trip(channels, 8) for channels in (8, 96, 160)]
    [1, 12, 10]
    """
    blocks = -(-channels // block)
    return -(-blocks // -(-blocks // _MOST_UNROLLED))


@triton.jit
def place_in_plane(pixel, width, PAD: tl.constexpr):
    """Return where a pixel is in a plane of `hidden_planes`, counted from the row above the strip."""
    return pixel + pixel // width * PAD + PAD


@triton.jit
def group_share(groups):
    """Return the first row group of this program's share, and the end of the share.

    The shares are the third axis of the grid.
    """
    share = tl.cdiv(groups, tl.num_programs(2))
    first = tl.program_id(2) * share
    return first, tl.minimum(first + share, groups)


@triton.jit(do_not_specialize=["groups"])  # a loop's end
def pointwise_kernel(
    x,
    y,
    start,
    column,
    value,
    row,
    total,
    bias,
    x_batch,
    y_batch,
    y_plane,
    plane,
    first,
    begin,
    count,
    width,
    channels,
    groups,
    eps,
    HIDDEN: tl.constexpr,
    ALIGNED: tl.constexpr,
    NORM: tl.constexpr,
    CENTRED: tl.constexpr,
    BIAS: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PAD: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute y = matrix @ norm(x) (+ bias) at BLOCK_P pixels, for this program's share of the row groups.

    The grid is (tiles of pixels, batch, shares of row groups). The ``count`` pixels start at ``begin``. The
    tiles start at ``first``, at or before ``begin``, where vectors may start.

    The norm is applied to the sums, of which there are fewer than factors: matrix @ ((x - mean) * scale) =
    (matrix @ x - mean * total) * scale.

    HIDDEN says that y is of `hidden_planes` and gets zeros at pixels outside the image, ALIGNED that the
    width is then a multiple of PAD, and CENTRED that the norm subtracts the mean.
    """
    after_previous(PDL)
    pixel = first + tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel.to(tl.uint32) < plane  # not before it either
    place = pixel - begin
    batch = tl.program_id(1).to(tl.int64)
    x += batch * x_batch
    y += batch * y_batch
    if NORM:
        mean, scale = moments(x, plane, pixel, inside, channels, eps, WHOLE, BLOCKS, BLOCK_C, BLOCK_P)
    to = place
    if HIDDEN:
        to = place_in_plane(tl.maximum(place, 0), width, PAD)
        if ALIGNED:  # PAD pixels from a multiple of PAD on are in one row
            to = tl.max_contiguous(tl.multiple_of(to, PAD), PAD)
    first_group, end_group = group_share(groups)
    for g in range(first_group, end_group):
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
        tl.store(
            y + rows.to(tl.int64)[:, None] * y_plane + to[None, :], finite(acc, y.dtype.element_ty), here
        )


@counts_work_of(pointwise_kernel)
def _work(launch: Launch) -> Work:
    a, (tiles, batch, shares) = launch.arguments, launch.grid
    item, programs = a["x"].itemsize, tiles * batch  # programs of one share
    columns, norm_channels = len(a["column"]), shares * a["channels"] if a["NORM"] else 0
    used = a["channels"] if a["NORM"] else len(a["column"].unique())
    total = a["total"] if a["NORM"] and a["CENTRED"] else None
    indices = nbytes(a["start"], a["column"], a["row"], a["bias"], total)
    in_a_trip = a["BLOCK_C"] * a["BLOCKS"]
    norm_trips = [programs * shares * triton.cdiv(a["channels"], in_a_trip)] if a["NORM"] else []
    pixels = min(a["first"] + tiles * a["BLOCK_P"], a["plane"]) - max(a["first"], 0)
    written = batch * int((a["row"] >= 0).sum()) * a["count"] * a["y"].itemsize
    loaded = (columns + norm_channels) * a["BLOCK_P"] * item
    return Work(
        read=batch * used * pixels * item + nbytes(a["value"]) + indices,
        written=written,
        fetched=programs * (loaded + nbytes(a["value"]) + indices),
        macs=programs * a["BLOCK_P"] * a["value"].numel(),
        trips=(*norm_trips, programs * a["groups"], programs * (columns // a["BLOCK_K"])),
        hidden=written if a["HIDDEN"] else 0,
        buffer=nbytes(a["y"]) if a["HIDDEN"] else 0,
    )


def project(
    x: Tensor,
    y: Tensor,
    matrix: RowGroups,
    workspace: Workspace,
    bias: Tensor | None = None,
    norm: bool = False,
    centred: bool = True,
    strip: Strip | None = None,
) -> None:
    """Compute y = matrix @ x (+ bias) at each pixel.

    Args:
        x: The input, (B, columns, H, W).
        y: The tensor to write to, (B, rows, H, W). With a ``strip``, the planes of `hidden_planes`.
        matrix: The matrix.
        workspace: The workspace of the op.
        bias: (rows,) float32, or None.
        norm: Whether x is normalised over its channels first.
        centred: Whether the norm subtracts the mean.
        strip: Compute only this strip, with the rows above and below it.
    """
    batch, channels, height, width = x.shape
    plane = height * width
    begin, count = ((strip.first - 1) * width, (strip.rows + 2) * width) if strip else (0, plane)
    first, block = begin // 16 * 16, min(8, triton.next_power_of_2(channels))
    blocks = blocks_of_a_trip(channels, block)
    operands = x, y, matrix.start, matrix.column, matrix.value, matrix.row, matrix.total, bias
    strides = x.stride(0), y.stride(0), y.stride(1), plane
    launch(
        workspace,
        pointwise_kernel,
        product_grid(begin + count - first, batch, matrix, workspace, channels if norm else 0),
        *operands,
        *strides,
        *(first, begin, count, width, channels, matrix.groups, EPS),
        HIDDEN=strip is not None,
        ALIGNED=strip is not None and width % PAD == 0,
        NORM=norm,
        CENTRED=centred,
        BIAS=bias is not None,
        WHOLE=channels % (block * blocks) == 0,
        ROWS=matrix.height,
        BLOCK_K=matrix.step,
        BLOCKS=blocks,
        BLOCK_C=block,
        PAD=PAD,
        PRECISION="ieee",
        tiles=PRODUCT_TILES,
    )
