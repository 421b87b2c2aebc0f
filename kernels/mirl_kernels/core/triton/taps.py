"""Run the last part of MDTA and GDFN in one pass over the hidden channels.

It consists of depthwise taps, a gate or none, a matrix and the residual.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from mirl_kernels.core.triton.dependent import after_previous
from mirl_kernels.core.triton.finite import finite
from mirl_kernels.core.triton.launches import Launch, launch
from mirl_kernels.core.triton.product import place_in_plane
from mirl_kernels.core.triton.strips import PAD, Strip
from mirl_kernels.core.triton.tuner import Tile
from mirl_kernels.core.triton.work import Work, counts_work_of, nbytes, touched_elements
from mirl_kernels.core.triton.workspace import Workspace

STEP = 16  # hidden channels that a step works on, at least
_LONG = 112  # channels from which a step has twice as many: half the steps wait half as often
# The most output channels of a program, the most sums of a program, and the numbers of pixels to choose from.
_CHANNELS, _SUMS, _PIXELS = 256, 1 << 14, (256, 128, 64, 32, 16)
_STEP_PIXELS = 60  # pixels that take as long as what a program does once a step
TAPS_OF_A_TRIP = tl.constexpr(3)  # taps of a trip; 9 is a multiple of it
LEVELS = tl.constexpr(3)  # the numbers of taps, from 1 on, that a loop of its own is written for
_ROW = tl.constexpr(12)  # taps of a row of the tables, of which 9 count, so that trips may have 1 to 4
_LANES = tl.constexpr(16)  # threads that load as many pixels side by side: a sector of the cache


@triton.jit
def in_lanes(place, BLOCK_P: tl.constexpr):
    """Return (BLOCK_P,) places as (rows, pixels side by side)."""
    LANES: tl.constexpr = _LANES if BLOCK_P > _LANES else BLOCK_P
    return tl.reshape(place, [BLOCK_P // LANES, LANES])


@triton.jit
def flat(v):
    """Return (rows, channels, pixels side by side) as (channels, pixels)."""
    return tl.reshape(tl.permute(v, (1, 0, 2)), [v.shape[1], v.shape[0] * v.shape[2]])


@triton.jit
def add_taps(total, hidden, offset, taps, channel, at, first, TAPS: tl.constexpr):
    """Add some taps of each channel to the sums (rows, channels, pixels side by side) at the places ``at``.

    A thread has some pixels of a channel, not a pixel of many channels. So it loads the offset and the weight
    of a tap once for all of them.
    """
    for t in tl.static_range(TAPS):
        weight = tl.load(taps + channel * _ROW + first + t)
        tap = hidden + tl.load(offset + channel * _ROW + first + t)
        total += weight[None, :, None] * tl.load(tap[None, :, None] + at[:, None, :]).to(tl.float32)
    return total


@triton.jit
def before_taps(bias, channel, at, BIAS: tl.constexpr):
    """Return what the sums of `add_taps` begin with."""
    total = tl.zeros([at.shape[0], channel.shape[0], at.shape[1]], tl.float32)
    if BIAS:
        total += tl.load(bias + channel)[None, :, None]
    return total


@triton.jit
def two_depthwise(hidden, offset, taps, bias, most, one, other, at, BIAS: tl.constexpr, TAPS: tl.constexpr):
    """Return the depthwise 3x3 convolutions, in float32, of two blocks of channels with up to ``most`` taps.

    ``at`` are the pixels' places in a plane that has zeros around the image, as `in_lanes` returns them. The
    tables are those of `Taps.tables`. The taps are a loop, since they spill when all are unrolled. A trip
    loads TAPS taps of both blocks, so that a program waits for memory once for all of them; those after a
    channel's last tap weigh 0.
    """
    a, b = before_taps(bias, one, at, BIAS), before_taps(bias, other, at, BIAS)
    for first in range(0, most, TAPS):
        a = add_taps(a, hidden, offset, taps, one, at, first, TAPS)
        b = add_taps(b, hidden, offset, taps, other, at, first, TAPS)
    return a, b


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
    return x / (1 + tl.exp2(x * ((0.00101453917 * square - 0.106777424) * square - 2.30111947)))


@triton.jit(do_not_specialize=["count"])  # a loop's end
def mix_kernel(
    hidden,
    ends,
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
    PDL: tl.constexpr,
):
    """Compute y = x + weight^T @ v (+ bias), for a strip of ``pixels`` of the planes of x and y.

    v are the ``count`` channels of taps(hidden). With GATE, v = GELU(a) * b, where a and b are the halves of
    the ``2 * padded`` channels of taps(hidden). weight is (count, channels). The grid is (tiles of pixels,
    batch, tiles of channels).
    """
    after_previous(PDL)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < pixels
    batch = tl.program_id(1).to(tl.int64)
    at = in_lanes(place_in_plane(width + tl.where(inside, pixel, 0), width, PAD), BLOCK_P)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    hidden += batch * hidden_batch
    weight += batch * weight_batch
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    # All at once, so that a program waits for them once.
    bounds = tl.load(ends), tl.load(ends + 1), tl.load(ends + 2), tl.load(ends + 3)
    for level in tl.static_range(1, LEVELS + 1):
        for step in range(bounds[level - 1], bounds[level]):
            h = step * BLOCK_H + tl.arange(0, BLOCK_H)
            here = known[:, None] & (h < count)[None, :]
            part = tl.load(weight + h[None, :] * channels + channel[:, None], here, 0.0)
            v = before_taps(tap_bias, h, at, TAP_BIAS)
            v = add_taps(v, hidden, offset, taps, h, at, 0, level)
            if GATE:
                b = before_taps(tap_bias, padded + h, at, TAP_BIAS)
                b = add_taps(b, hidden, offset, taps, padded + h, at, 0, level)
                v = gelu(v, hidden.dtype.element_ty == tl.float32) * b
            total = tl.dot(part, flat(finite(v, part.dtype)), total, input_precision=PRECISION)
    for step in range(bounds[LEVELS], tl.cdiv(count, BLOCK_H)):
        h = step * BLOCK_H + tl.arange(0, BLOCK_H)
        here = known[:, None] & (h < count)[None, :]
        part = tl.load(weight + h[None, :] * channels + channel[:, None], here, 0.0)
        v = before_taps(tap_bias, h, at, TAP_BIAS)
        b = v
        if GATE:
            b = before_taps(tap_bias, padded + h, at, TAP_BIAS)
        for first in range(0, tl.load(most + step), TAPS_OF_A_TRIP):
            v = add_taps(v, hidden, offset, taps, h, at, first, TAPS_OF_A_TRIP)
            if GATE:
                b = add_taps(b, hidden, offset, taps, padded + h, at, first, TAPS_OF_A_TRIP)
        if GATE:
            v = gelu(v, hidden.dtype.element_ty == tl.float32) * b
        total = tl.dot(part, flat(finite(v, part.dtype)), total, input_precision=PRECISION)
    here = known[:, None] & inside[None, :]
    at = channel.to(tl.int64)[:, None] * plane + pixel[None, :]
    if BIAS:
        total += tl.load(bias + channel, known, 0.0)[:, None]
    total += tl.load(x + batch * x_batch + at, here, 0.0).to(tl.float32)
    tl.store(y + batch * y_batch + at, finite(total, y.dtype.element_ty), here)


class DepthwiseWork(NamedTuple):
    """State how much the depthwise taps of some channels do.

    Attributes:
        image: Bytes of distinct addresses of the hidden channels of one image that are read.
        tables: Bytes of the tables that are read.
        pixel: Bytes of hidden channels that a program fetches for each of its pixels.
    """

    image: int
    tables: int
    pixel: int


def depthwise_work(
    arguments: dict[str, Any], channels: Tensor, loaded: Sequence[int], block: int, beyond: bool = False
) -> DepthwiseWork:
    """Return how much the depthwise taps of some channels do.

    Args:
        arguments: The arguments of the launch.
        channels: The channels, (n,) int64.
        loaded: How many taps of each channel of a block are loaded, for each block.
        block: The channels of a block.
        beyond: Whether programs go beyond the image, where they read zeros between two rows.
    """
    a, blocks = arguments, channels.split(block)
    item, pitch, plane = a["hidden"].itemsize, a["width"] + PAD, a["hidden"].stride(1)
    patterns: dict[int, set[tuple[int, int]]] = {}  # by slot
    for part, n in zip(blocks, loaded, strict=True):
        tapped = part[a["taps"][part].any(1)]  # channels without a tap read what one of these reads
        for offset in a["offset"][tapped, :n].flatten().unique().tolist():
            slot, place = divmod(offset + pitch + 1, plane)  # 0 is the tap above and to the left
            patterns.setdefault(slot, set()).add(divmod(place, pitch))
    output = a["pixels"] // a["width"], a["width"]
    elements = touched_elements(patterns.values(), (output[0] + 2, output[1] + 2), output)
    elements += beyond * sum(map(len, patterns.values()))
    read = sum(n * len(part) for n, part in zip(loaded, blocks, strict=True))
    tables = 12 * read + (4 * len(channels) if a["TAP_BIAS"] else 0)
    rows = sum(len({i for i, _ in pattern}) for pattern in patterns.values())
    return DepthwiseWork(item * elements, tables, item * rows)


def loop_trips(most: Iterable[int]) -> list[int]:
    """Return the trips of the loop over the taps, TAPS_OF_A_TRIP taps each, for each block of channels."""
    return [triton.cdiv(n, TAPS_OF_A_TRIP.value) for n in most]


@counts_work_of(mix_kernel)
def _work(launch: Launch) -> Work:
    a, (tiles, batch, blocks) = launch.arguments, launch.grid
    count, block, pixels = a["weight"].shape[-2], a["BLOCK_H"], a["BLOCK_P"]
    steps, ends = triton.cdiv(count, block), a["ends"].tolist()
    trips = loop_trips(a["most"][ends[-1] : steps].tolist())  # of the steps that have a loop over their taps
    loaded = [level for level in range(1, len(ends)) for _ in range(ends[level - 1], ends[level])]
    loaded += [trip * TAPS_OF_A_TRIP.value for trip in trips]
    halves = [torch.arange(steps * block) + h * a["padded"] for h in range(1 + a["GATE"])]
    taps = [depthwise_work(a, half, loaded, block) for half in halves]
    hidden, tables = batch * sum(half.image for half in taps), sum(half.tables for half in taps)
    tables += 4 * (len(ends) + len(trips))
    programs, features = tiles * batch * blocks, batch * a["channels"] * a["pixels"] * a["x"].itemsize
    weights = nbytes(a["weight"]) // (batch if a["weight_batch"] else 1)  # of one image
    fetched = programs * (sum(half.pixel for half in taps) * pixels + tables)
    in_loops = [last - first for first, last in pairwise(ends)]
    return Work(
        read=hidden + tables + features + nbytes(a["weight"], a["bias"]),
        written=features,
        fetched=fetched + tiles * batch * weights + features,
        macs=programs * steps * block * a["BLOCK_C"] * pixels,
        trips=tuple(programs * n for n in (*in_loops, len(trips), sum(trips))),
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
        step: See above.
        slot: (n,) int64. A channel without taps has the slot of one that has taps, and weights of 0.
        most: (n / step / halves,) int32, the most taps that a channel of a step has, in whatever part.
        ends: (LEVELS + 1,) int32, 0, and how many steps come first of which none has more than 1 tap, 2 taps,
            and so on.
        tap: (n, 12) int64, the live taps of a channel, 0 to 8, row by row. After the last one the first is
            repeated.
        weight: (n, 12) float32, the values of the live taps. The repeated ones are 0.
        bias: (n,) float32, or None.
    """

    slot: Tensor
    most: Tensor
    ends: Tensor
    tap: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, slot: Tensor, weight: Tensor, bias: Tensor | None, halves: int = 1, step: int = STEP
    ) -> None:
        super().__init__()
        self.step = step
        steps = -(-len(slot) // (halves * step))
        slot, weight = _padded(slot, halves, step, -1), _padded(weight, halves, step, 0)
        weight = nn.functional.pad(weight, (0, _ROW.value - weight.shape[1]))
        bias = None if bias is None else _padded(bias, halves, step, 0)
        weight = torch.where((slot >= 0)[:, None], weight, 0)
        live = weight != 0
        tap = live.int().argsort(dim=1, descending=True, stable=True)
        weight, count = weight.gather(1, tap), live.sum(1)
        fullest = int(count.argmax())  # channels without a tap read what this one does
        slot = torch.where(count > 0, slot, slot[fullest].clamp(min=0))
        first = torch.where(count > 0, tap[:, 0], tap[fullest, 0])
        self.register_buffer("slot", slot)
        most = count.view(halves, -1, step).amax((0, 2))
        levels = torch.arange(1, LEVELS.value + 1)
        ends = (most[:steps].cummax(0).values <= levels[:, None]).sum(1)
        if not count.any():  # perhaps there are no hidden channels to read
            ends.zero_()
        self.register_buffer("most", most.int())
        self.register_buffer("ends", torch.cat([ends.new_zeros(1), ends]).int())
        self.register_buffer(
            "tap", torch.where(torch.arange(_ROW.value) < count[:, None], tap, first[:, None])
        )
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias)

    def tables(
        self, width: int, plane: int, workspace: Workspace, slots_before: int = 0
    ) -> list[Tensor | None]:
        """Return the tables that the kernels take: ends, most, offset, weight and bias.

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
        return [self.ends, self.most, offsets, self.weight, self.bias]


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
        BLOCK_H=taps.step,
        BLOCK_C=block,
        PAD=PAD,
        PRECISION="ieee",
        tiles=[Tile({"BLOCK_P": p}, warps) for warps in (8, 16) for p in sizes],
    )


def step_for(count: int) -> int:
    """Return how many of so many hidden channels a step of `mix` works on."""
    return 2 * STEP if count > _LONG else STEP


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
