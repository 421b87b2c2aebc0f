"""Run the last part of MDTA and GDFN in one pass over the hidden channels.

It consists of depthwise taps, a gate or none, a matrix and the residual.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from mirl_kernels.core.triton.finite import finite
from mirl_kernels.core.triton.launches import Launch, launch
from mirl_kernels.core.triton.product import place_in_plane
from mirl_kernels.core.triton.strips import PAD, Strip
from mirl_kernels.core.triton.tuner import Tile
from mirl_kernels.core.triton.work import Work, counts_work_of, nbytes, touched_elements
from mirl_kernels.core.triton.workspace import Workspace

STEP = 16  # hidden channels that a step multiplies on tensor cores
# The most output channels of a program, the most sums of a program, and the numbers of pixels to choose from.
_CHANNELS, _SUMS, _PIXELS = 256, 1 << 14, (256, 128, 64, 32, 16)
_STEP_PIXELS = 8  # pixels that take as long as what a program does once a step
TAPS_OF_A_TRIP = tl.constexpr(3)  # taps of a trip; 9 is a multiple of it


@triton.jit
def depthwise(hidden, most, offset, taps, bias, block, channel, at, BIAS: tl.constexpr):
    """Return the depthwise 3x3 convolution, in float32, of a block of channels at some pixels.

    ``at`` are the pixels' places in a plane that has zeros around the image. The tables are those of
    `Taps.tables`. The taps are a loop, since they spill when all are unrolled. A trip loads TAPS_OF_A_TRIP
    taps, so that a program waits for memory once for all of them; those after a channel's last tap weigh 0.
    """
    total = tl.zeros([channel.shape[0], at.shape[0]], tl.float32)
    if BIAS:
        total += tl.load(bias + channel)[:, None]
    for first in range(0, tl.load(most + block), TAPS_OF_A_TRIP):
        for t in tl.static_range(TAPS_OF_A_TRIP):
            weight = tl.load(taps + channel * 9 + first + t)
            tap = hidden + tl.load(offset + channel * 9 + first + t)
            total += weight[:, None] * tl.load(tap[:, None] + at[None, :]).to(tl.float32)
    return total


@triton.jit
def gelu(x, EXACT: tl.constexpr):
    """Return x * Phi(x), where Phi is the normal distribution.

    EXACT takes the error function of Abramowitz and Stegun, 7.1.26, which is within 1.5e-7 and takes a third
    of the instructions of the device library's. Otherwise Phi is a logistic function of a polynomial fitted
    to it, in half as many instructions. It is within 2.6e-5; float16 rounds by more from 0.1 on.
    """
    if EXACT:
        z = tl.abs(x) * 0.7071067811865476
        t = 1 / (1 + 0.3275911 * z)
        tail = (((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592
        tail = tail * t * tl.exp(-z * z)
        return 0.5 * (x + tl.abs(x) * (1 - tail))
    square = tl.minimum(x * x, 64.0)  # Phi is 0 or 1 from there on
    return x / (1 + tl.exp2(-x * ((-0.00101453917 * square + 0.106777424) * square + 2.30111947)))


@triton.jit(do_not_specialize=["count"])  # a loop's end
def mix_kernel(
    hidden,
    most,
    offset,
    taps,
    tap_bias,
    weight,
    bias,
    x,
    y,
    hidden_batch,
    weight_batch,
    x_batch,
    y_batch,
    plane,
    pixels,
    width,
    channels,
    count,
    padded,
    GATE: tl.constexpr,
    TAP_BIAS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute y = x + weight^T @ v (+ bias), for a strip of ``pixels`` of the planes of x and y.

    v are the ``count`` channels of taps(hidden). With GATE, v = GELU(a) * b, where a and b are the halves of
    the ``2 * padded`` channels of taps(hidden). weight is (count, channels). The grid is (tiles of pixels,
    batch, tiles of channels).
    """
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < pixels
    batch = tl.program_id(1).to(tl.int64)
    at = place_in_plane(width + tl.where(inside, pixel, 0), width, PAD)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    hidden += batch * hidden_batch
    weight += batch * weight_batch
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for first in range(0, count, BLOCK_H):
        h = first + tl.arange(0, BLOCK_H)
        real = h < count
        step = first // BLOCK_H
        v = depthwise(hidden, most, offset, taps, tap_bias, step, h, at, TAP_BIAS)
        if GATE:
            v = gelu(v, hidden.dtype.element_ty == tl.float32)
            half = padded // BLOCK_H + step
            v *= depthwise(hidden, most, offset, taps, tap_bias, half, padded + h, at, TAP_BIAS)
        part = tl.load(weight + h[None, :] * channels + channel[:, None], known[:, None] & real[None, :], 0.0)
        total = tl.dot(part, finite(v, part.dtype), total, input_precision=PRECISION)
    here = known[:, None] & inside[None, :]
    at = channel.to(tl.int64)[:, None] * plane + pixel[None, :]
    if BIAS:
        total += tl.load(bias + channel, known, 0.0)[:, None]
    total += tl.load(x + batch * x_batch + at, here, 0.0).to(tl.float32)
    tl.store(y + batch * y_batch + at, finite(total, y.dtype.element_ty), here)


class DepthwiseWork(NamedTuple):
    """State how much `depthwise` does for some channels.

    Attributes:
        image: Bytes of distinct addresses of the hidden channels of one image that are read.
        tables: Bytes of the tables that are read.
        pixel: Bytes of hidden channels that a program fetches for each of its pixels.
        trips: The trips of the loop over the taps, for each block of channels, TAPS_OF_A_TRIP taps each.
    """

    image: int
    tables: int
    pixel: int
    trips: list[int]


def depthwise_work(
    arguments: dict[str, Any], channels: Tensor, block: int, beyond: bool = False
) -> DepthwiseWork:
    """Return how much `depthwise` does for some channels.

    Args:
        arguments: The arguments of the launch.
        channels: The channels, (n,) int64.
        block: The channels of a block.
        beyond: Whether programs go beyond the image, where they read zeros between two rows.
    """
    a, blocks = arguments, channels.split(block)
    item, pitch, plane = a["hidden"].itemsize, a["width"] + PAD, a["hidden"].stride(1)
    most = a["most"][[int(part[0]) // block for part in blocks]].tolist()
    trips = [triton.cdiv(n, TAPS_OF_A_TRIP.value) for n in most]
    patterns: dict[int, set[tuple[int, int]]] = {}  # by slot
    for part, n in zip(blocks, most, strict=True):
        tapped = part[a["taps"][part].any(1)]  # channels without a tap read what one of these reads
        for offset in a["offset"][tapped, :n].flatten().unique().tolist():
            slot, place = divmod(offset + pitch + 1, plane)  # 0 is the tap above and to the left
            patterns.setdefault(slot, set()).add(divmod(place, pitch))
    output = a["pixels"] // a["width"], a["width"]
    elements = touched_elements(patterns.values(), (output[0] + 2, output[1] + 2), output)
    elements += beyond * sum(map(len, patterns.values()))
    read = sum(TAPS_OF_A_TRIP.value * trip * len(part) for trip, part in zip(trips, blocks, strict=True))
    tables = 12 * read + 4 * len(blocks) + (4 * len(channels) if a["TAP_BIAS"] else 0)
    rows = sum(len({i for i, _ in pattern}) for pattern in patterns.values())
    return DepthwiseWork(item * elements, tables, item * rows, trips)


@counts_work_of(mix_kernel)
def _work(launch: Launch) -> Work:
    a, (tiles, batch, blocks) = launch.arguments, launch.grid
    count, block, pixels = a["weight"].shape[-2], a["BLOCK_H"], a["BLOCK_P"]
    halves = [torch.arange(a["padded"]) + h * a["padded"] for h in range(1 + a["GATE"])]
    taps = [depthwise_work(a, half, block) for half in halves]
    hidden, tables = batch * sum(half.image for half in taps), sum(half.tables for half in taps)
    programs, features = tiles * batch * blocks, batch * a["channels"] * a["pixels"] * a["x"].itemsize
    weights = nbytes(a["weight"]) // (batch if a["weight_batch"] else 1)  # of one image
    fetched = programs * (sum(half.pixel for half in taps) * pixels + tables)
    return Work(
        read=hidden + tables + features + nbytes(a["weight"], a["bias"]),
        written=features,
        fetched=fetched + tiles * batch * weights + features,
        macs=programs * triton.cdiv(count, block) * block * a["BLOCK_C"] * pixels,
        trips=(programs * triton.cdiv(count, block), *(programs * sum(half.trips) for half in taps)),
        hidden=hidden,
        buffer=nbytes(a["hidden"]),
    )


class Taps(nn.Module):
    """Hold the depthwise taps of n channels as lists.

    The channels come in ``halves`` equal parts, each of which is padded to a multiple of ``step``. The
    attributes are those after padding.

    Args:
        slot: (n,) int64, where each channel is among the hidden ones; -1 for a channel that is nowhere, whose
            taps are then ignored.
        weight: (n, 9) float32, the taps, row by row.
        bias: (n,) float32, or None.
        halves: The number of parts.
        step: The number of channels that a kernel works on together.

    Attributes:
        slot: (n,) int64. A channel without taps has the slot of one that has taps, and weights of 0.
        most: (n / step,) int32, the most taps that a channel of a step has.
        tap: (n, 9) int64, the live taps of a channel, 0 to 8, row by row. After the last one the first is
            repeated.
        weight: (n, 9) float32, the values of the live taps. The repeated ones are 0.
        bias: (n,) float32, or None.
    """

    slot: Tensor
    most: Tensor
    tap: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, slot: Tensor, weight: Tensor, bias: Tensor | None, halves: int = 1, step: int = STEP
    ) -> None:
        super().__init__()
        slot, weight = _padded(slot, halves, step, -1), _padded(weight, halves, step, 0)
        bias = None if bias is None else _padded(bias, halves, step, 0)
        weight = torch.where((slot >= 0)[:, None], weight, 0)
        live = weight != 0
        tap = live.int().argsort(dim=1, descending=True, stable=True)
        weight, count = weight.gather(1, tap), live.sum(1)
        fullest = int(count.argmax())  # channels without a tap read what this one does
        slot = torch.where(count > 0, slot, slot[fullest].clamp(min=0))
        first = torch.where(count > 0, tap[:, 0], tap[fullest, 0])
        self.register_buffer("slot", slot)
        self.register_buffer("most", count.view(-1, step).amax(1).int())
        self.register_buffer("tap", torch.where(torch.arange(9) < count[:, None], tap, first[:, None]))
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias)

    def tables(
        self, width: int, plane: int, workspace: Workspace, slots_before: int = 0
    ) -> list[Tensor | None]:
        """Return the tables that the kernels take: most, offset, weight and bias.

        Args:
            width: The width of the images.
            plane: The elements of a plane of hidden channels.
            workspace: Keeps the tables.
            slots_before: The planes of other channels in front of these.
        """
        state = [_state(t) for t in (self.slot, self.tap)]

        def offset() -> Tensor:
            down, right = self.tap // 3 - 1, self.tap % 3 - 1
            offsets = (slots_before + self.slot[:, None]) * plane + down * (width + PAD) + right
            offsets.made_of = state  # type: ignore[attr-defined]
            return offsets

        offsets = workspace.tensor(
            (self, width, plane, slots_before),
            offset,
            lambda offsets: offsets.made_of == state,  # type: ignore[attr-defined]
        )
        return [self.most, offsets, self.weight, self.bias]


def _state(t: Tensor) -> tuple[int, int]:
    """Return a tensor's address and version, which change with it; inference tensors have no version."""
    return t.data_ptr(), -1 if t.is_inference() else t._version


def _padded(t: Tensor, halves: int, step: int, value: int) -> Tensor:
    """Return (n, ...) in equal parts, each padded to a multiple of ``step`` rows, at least one step."""
    parts = t.unflatten(0, (halves, len(t) // halves))
    missing = max(step, -(-parts.shape[1] // step) * step) - parts.shape[1]
    return torch.cat([parts, parts.new_full((halves, missing, *t.shape[1:]), value)], 1).flatten(0, 1)


def mix(
    hidden: Tensor,
    taps: Taps,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    y: Tensor,
    gate: bool,
    strip: Strip,
    workspace: Workspace,
    slots_before: int = 0,
) -> None:
    """Compute y = x + weight^T @ v (+ bias) at the pixels of a strip, with v as in `mix_kernel`.

    Args:
        hidden: The planes of the hidden channels, (B, ``slots_before`` + slots, plane), see `hidden_planes`.
        taps: The taps.
        weight: (count, C), or (B, count, C) for a matrix of each image.
        bias: (C,) float32, or None.
        x: The input, which is the residual, (B, C, H, W).
        y: The tensor to write to, (B, C, H, W).
        gate: Whether the halves of the channels are gated.
        strip: The strip of x and y.
        workspace: The workspace of the op.
        slots_before: The planes of other channels in front of those of the taps.
    """
    batch, channels, height, width = x.shape
    x, y = (t[:, :, strip.first : strip.first + strip.rows] for t in (x, y))
    block = min(_CHANNELS, max(16, triton.next_power_of_2(channels)))
    blocks, pixels = triton.cdiv(channels, block), strip.rows * width
    sizes = [p for p in _PIXELS if p * block <= _SUMS]
    sizes.sort(key=lambda p: workspace.waves(triton.cdiv(pixels, p) * batch * blocks) * (p + _STEP_PIXELS))
    operands = hidden, *taps.tables(width, hidden.stride(1), workspace, slots_before), weight, bias, x, y
    strides = hidden.stride(0), weight.stride(0) if weight.ndim == 3 else 0, x.stride(0), y.stride(0)
    padded = len(taps.slot) // (2 if gate else 1)
    launch(
        workspace,
        mix_kernel,
        lambda sizes: (triton.cdiv(pixels, sizes["BLOCK_P"]), batch, blocks),
        *operands,
        *strides,
        *(height * width, pixels, width, channels, weight.shape[-2], padded),
        GATE=gate,
        TAP_BIAS=taps.bias is not None,
        BIAS=bias is not None,
        BLOCK_H=STEP,
        BLOCK_C=block,
        PAD=PAD,
        PRECISION="ieee",
        tiles=[Tile({"BLOCK_P": p}, warps) for warps in (8, 16) for p in sizes],
    )


def slots(live: Tensor) -> Tensor:
    """Return where each channel is when only the live ones are stored.

    >>> slots(torch.tensor([True, False, True])).tolist()
    [0, -1, 1]

    Args:
        live: (n,) bool.

    Returns:
        (n,) int32, -1 for channels that are not live.
    """
    return torch.where(live, live.cumsum(0) - 1, -1).int()
