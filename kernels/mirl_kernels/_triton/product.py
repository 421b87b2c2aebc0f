"""The product that most layers are: a sparse matrix in panels times the channels of every pixel of a tile."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mirl_kernels._triton import PAD, Launch, Panels, Work, counts, launch, size
from mirl_kernels.layer_norm import EPS

PIXELS = 128  # of a program
_PROGRAMS = 256  # that a launch has at least, if there are as many panels: enough for the largest GPUs to be busy


def shares(programs: int, groups: int) -> int:
    """In how many shares the panels are worked on, each by programs of its own."""
    return max(1, min(groups, triton.cdiv(_PROGRAMS, programs)))


def tiling(height: int, width: int, pixels: int) -> tuple[int, int, bool]:
    """(columns of a tile, tiles, whether they are the image exactly): the tiles of so many pixels that cover it with the fewest."""
    spans = [pixels >> i for i in range(pixels.bit_length()) if pixels >> i >= 8]
    count = {s: triton.cdiv(width, s) * triton.cdiv(height, pixels // s) for s in spans}
    span = min(spans, key=lambda s: count[s])
    return span, count[span], count[span] * pixels == height * width


@triton.jit
def tile(number, height, width, SPAN: tl.constexpr, EVEN: tl.constexpr, BLOCK_P: tl.constexpr):
    """Row and column of the pixels of a tile of `tiling`, and which of them are in the image. Their distances are known when
    the kernel is compiled, which saves most arithmetic of addresses."""
    p = tl.arange(0, BLOCK_P)
    across = tl.cdiv(width, SPAN)
    row = number // across * (BLOCK_P // SPAN) + p // SPAN
    column = number % across * SPAN + p % SPAN
    inside = tl.full([BLOCK_P], True, tl.int1) if EVEN else (row < height) & (column < width)
    return row, column, inside


@triton.jit
def in_plane(row, column, width, PAD: tl.constexpr):
    """Where a pixel is in a plane of hidden channels, see `hidden`."""
    return (row + 1) * (width + PAD) + (column + PAD)


@triton.jit
def moments(x, plane, pixel, inside, channels, eps, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Mean and reciprocal deviation of each pixel's channels, in one pass over their distances from the first one, which is
    within sqrt(channels) deviations of the mean: few digits are lost."""
    c = tl.arange(0, BLOCK_C)
    near = tl.load(x + pixel, inside, 0.0).to(tl.float32)
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    square = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for first in range(0, channels, BLOCK_C):
        known = (first + c < channels)[:, None] & inside[None, :]
        part = tl.load(x + (first + c).to(tl.int64)[:, None] * plane + pixel[None, :], known, 0.0).to(tl.float32)
        part = tl.where((first + c < channels)[:, None], part - near[None, :], 0.0)
        total += part
        square += part * part
    mean = tl.sum(total, 0) / channels
    return near + mean, tl.rsqrt(tl.maximum(tl.sum(square, 0) / channels - mean * mean, 0.0) + eps)


@triton.jit
def own_panels(groups):
    """The first panel of this program's share, and the one behind its last; the grid's third axis are the shares."""
    share = tl.cdiv(groups, tl.num_programs(2))
    first = tl.program_id(2) * share
    return first, tl.minimum(first + share, groups)


@triton.jit(do_not_specialize=["groups"])  # a loop's end
def pointwise_kernel(
    x, y, start, column, value, row, total, bias,
    x_batch, y_batch, y_plane, height, width, channels, groups, eps,
    HIDDEN: tl.constexpr, ALIGNED: tl.constexpr, NORM: tl.constexpr, CENTRED: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    SPAN: tl.constexpr, EVEN: tl.constexpr, BLOCK_P: tl.constexpr, PAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y[row] = matrix @ norm(x) (+ bias), for a tile of BLOCK_P pixels of an image and every panel that is this program's:
    grid (tiles, batch, shares of panels). HIDDEN: y is as `hidden` says. The norm is applied to the sums, of which there
    are fewer than of factors: matrix @ ((x - mean) * scale) = (matrix @ x - mean * total) * scale."""
    plane = height * width
    i, j, inside = tile(tl.program_id(0), height, width, SPAN, EVEN, BLOCK_P)
    pixel = i * width + j
    to = in_plane(i, j, width, PAD) if HIDDEN else pixel
    if ALIGNED:  # PAD pixels from a multiple of PAD on are in one row
        pixel = tl.max_contiguous(tl.multiple_of(pixel, PAD), PAD)
        to = tl.max_contiguous(tl.multiple_of(to, PAD), PAD)
    batch = tl.program_id(1).to(tl.int64)
    x += batch * x_batch
    y += batch * y_batch
    if NORM:
        mean, scale = moments(x, plane, pixel, inside, channels, eps, BLOCK_C, BLOCK_P)
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
            acc += tl.load(bias + rows, rows >= 0, 0.0)[:, None]
        here = (rows >= 0)[:, None] & inside[None, :]
        tl.store(y + rows.to(tl.int64)[:, None] * y_plane + to[None, :], acc.to(y.dtype.element_ty), here)


@counts(pointwise_kernel)
def _work(launch: Launch) -> Work:
    a, (tiles, batch, parts) = launch.arguments, launch.grid
    item, everywhere = a["x"].itemsize, tiles * batch
    used = a["channels"] if a["NORM"] else len(a["column"].unique())
    indices = size(a["start"], a["column"], a["row"], a["bias"], a["total"] if a["NORM"] and a["CENTRED"] else None)
    plane = a["height"] * a["width"]
    norm = [everywhere * parts * triton.cdiv(a["channels"], a["BLOCK_C"])] if a["NORM"] else []
    steps = len(a["column"]) // a["BLOCK_K"]
    rows = int((a["row"] >= 0).sum())
    return Work(
        read=batch * used * plane * item + size(a["value"]) + indices,
        written=batch * rows * plane * a["y"].itemsize,
        fetched=everywhere * (parts * used * a["BLOCK_P"] * item + size(a["value"]) + indices),
        macs=everywhere * a["BLOCK_P"] * a["value"].numel(),
        trips=(*norm, everywhere * a["groups"], everywhere * steps),
    )


def project(
    x: Tensor,
    y: Tensor,
    matrix: Panels,
    bias: Tensor | None = None,
    norm: bool = False,
    centred: bool = True,
) -> None:
    """y (B, rows, H, W), or where it has three dimensions of `hidden`, = matrix @ x (B, columns, H, W) at each pixel, x normalised
    over its channels where ``norm`` says so; + bias (rows,) float32."""
    batch, channels, height, width = x.shape
    span, tiles, even = tiling(height, width, PIXELS)
    launch(
        pointwise_kernel, (tiles, batch, shares(tiles * batch, matrix.groups)),
        x, y, matrix.start, matrix.column, matrix.value, matrix.row, matrix.total, bias,
        x.stride(0), y.stride(0), y.stride(1), height, width, channels, matrix.groups, EPS,
        HIDDEN=y.ndim == 3, ALIGNED=width % PAD == 0, NORM=norm, CENTRED=centred, BIAS=bias is not None,
        ROWS=matrix.height, BLOCK_K=matrix.step, BLOCK_C=min(16, triton.next_power_of_2(channels)),
        SPAN=span, EVEN=even, BLOCK_P=PIXELS, PAD=PAD, PRECISION="ieee", warps=4, waves=2,
    )  # fmt: skip
