"""How MDTA and GDFN end: depthwise taps, a gate or none, a matrix and the residual, in one pass over the hidden channels."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from mirl_kernels.core.triton import (
    PAD,
    Launch,
    Strip,
    Tile,
    Work,
    counts,
    kept,
    launch,
    size,
    touched,
    turns,
)
from mirl_kernels.core.triton.product import in_plane

STEP = 16  # hidden channels that a step multiplies on tensor cores
_CHANNELS, _SUMS, _PIXELS = 256, 1 << 14, (256, 128, 64, 32, 16)  # of a program, at most
_ONCE = 8  # pixels that take as long as what a program does once a step


@triton.jit
def tapped(hidden, most, offset, taps, bias, block, channel, at, BIAS: tl.constexpr):
    """Depthwise 3x3 convolution (float32) of a block of channels at some pixels, which are ``at`` these places of a plane that
    has zeros around the image; the tables as in `Taps`. A loop over the taps, since unrolled they spill."""
    total = tl.zeros([channel.shape[0], at.shape[0]], tl.float32)
    if BIAS:
        total += tl.load(bias + channel)[:, None]
    for t in range(0, tl.load(most + block)):
        weight = tl.load(taps + channel * 9 + t)
        tap = hidden + tl.load(offset + channel * 9 + t)
        total += weight[:, None] * tl.load(tap[:, None] + at[None, :]).to(tl.float32)
    return total


@triton.jit
def gelu(x, EXACT: tl.constexpr):
    """x * Phi(x). EXACT: with the error function of Abramowitz and Stegun, 7.1.26, which is within 1.5e-7 and takes a third of the
    instructions of the device library's. Otherwise with a logistic function of a polynomial fitted to Phi, in half as many: within
    2.6e-5, where float16 rounds by more from 0.1 on."""
    if EXACT:
        z = tl.abs(x) * 0.7071067811865476
        t = 1 / (1 + 0.3275911 * z)
        tail = (
            ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592)
            * t * tl.exp(-z * z)
        )  # fmt: skip
        return 0.5 * (x + tl.abs(x) * (1 - tail))
    square = tl.minimum(x * x, 64.0)  # Phi is 0 or 1 from there on
    return x / (1 + tl.exp2(-x * ((-0.00101453917 * square + 0.106777424) * square + 2.30111947)))


@triton.jit(do_not_specialize=["count"])  # a loop's end
def mix_kernel(
    hidden, most, offset, taps, tap_bias, weight, bias, x, y,
    hidden_batch, weight_batch, x_batch, y_batch, plane, pixels, width, channels, count, padded,
    GATE: tl.constexpr, TAP_BIAS: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    PAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = x + weight^T @ v (+ bias) with v = taps(hidden), ``count`` of them, or where GATE v = GELU(a) * b of the ``2 * padded``
    rows' halves a and b; weight (count, channels). x and y are a strip of ``pixels`` of planes. Grid (tiles of pixels, batch,
    tiles of channels)."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < pixels
    batch = tl.program_id(1).to(tl.int64)
    at = in_plane(width + tl.where(inside, pixel, 0), width, PAD)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    hidden += batch * hidden_batch
    weight += batch * weight_batch
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for first in range(0, count, BLOCK_H):
        h = first + tl.arange(0, BLOCK_H)
        real = h < count
        step = first // BLOCK_H
        v = tapped(hidden, most, offset, taps, tap_bias, step, h, at, TAP_BIAS)
        if GATE:
            v = gelu(v, hidden.dtype.element_ty == tl.float32)
            v *= tapped(
                hidden, most, offset, taps, tap_bias, padded // BLOCK_H + step, padded + h, at, TAP_BIAS
            )
        part = tl.load(weight + h[None, :] * channels + channel[:, None], known[:, None] & real[None, :], 0.0)
        total = tl.dot(part, v.to(part.dtype), total, input_precision=PRECISION)
    here = known[:, None] & inside[None, :]
    at = channel.to(tl.int64)[:, None] * plane + pixel[None, :]
    if BIAS:
        total += tl.load(bias + channel, known, 0.0)[:, None]
    total += tl.load(x + batch * x_batch + at, here, 0.0).to(tl.float32)
    tl.store(y + batch * y_batch + at, total.to(y.dtype.element_ty), here)


def tap_work(
    a: dict[str, Any], channels: Tensor, block: int, beyond: bool = False
) -> tuple[int, int, int, list[int]]:
    """What `tapped` of these channels reads of the hidden ones: bytes of distinct addresses of an image, and of zeros between two
    rows if it goes ``beyond`` the image, and of the taps, bytes that a program of one pixel fetches for it, and the trips of its
    loop for each block of channels."""
    item, pitch, plane = a["hidden"].itemsize, a["width"] + PAD, a["hidden"].stride(1)
    blocks = channels.split(block)
    trips = a["most"][[int(part[0]) // block for part in blocks]].tolist()
    patterns: dict[int, set[tuple[int, int]]] = {}  # by channel
    for part, most in zip(blocks, trips, strict=True):
        own = part[a["taps"][part].any(1)]  # others read what one of these does
        for offset in a["offset"][own, :most].flatten().unique().tolist():
            slot, place = divmod(offset + pitch + 1, plane)  # of the tap above and to the left: 0
            patterns.setdefault(slot, set()).add(divmod(place, pitch))
    output = a["pixels"] // a["width"], a["width"]
    image = item * touched(patterns.values(), (output[0] + 2, output[1] + 2), output)
    image += item * beyond * sum(map(len, patterns.values()))
    read = sum(trip * len(part) for trip, part in zip(trips, blocks, strict=True))
    tables = 12 * read + 4 * len(blocks) + (4 * len(channels) if a["TAP_BIAS"] else 0)
    rows = sum(len({i for i, _ in pattern}) for pattern in patterns.values())
    return image, tables, rows * item, trips


@counts(mix_kernel)
def _work(launch: Launch) -> Work:
    a, (tiles, batch, blocks) = launch.arguments, launch.grid
    count, block, pixels = a["weight"].shape[-2], a["BLOCK_H"], a["BLOCK_P"]
    halves = [torch.arange(a["padded"]) + h * a["padded"] for h in range(1 + a["GATE"])]
    images, tables, tile, loops = zip(*(tap_work(a, half, block) for half in halves), strict=True)
    programs, features = tiles * batch * blocks, batch * a["channels"] * a["pixels"] * a["x"].itemsize
    weights = size(a["weight"]) // (batch if a["weight_batch"] else 1)  # of one image
    return Work(
        read=batch * sum(images) + sum(tables) + features + size(a["weight"], a["bias"]),
        written=features,
        fetched=programs * (sum(tile) * pixels + sum(tables)) + tiles * batch * weights + features,
        macs=programs * triton.cdiv(count, block) * block * a["BLOCK_C"] * pixels,
        trips=(programs * triton.cdiv(count, block), *(programs * sum(loop) for loop in loops)),
        hidden=batch * sum(images),
        buffer=size(a["hidden"]),
    )


class Taps(nn.Module):
    """The depthwise taps of n channels, as lists: slot (n,) int64, where each is among the hidden channels (-1 of one that is
    nowhere, and has no taps); most (n / step,) int32, how many taps the channels of a step have at most; tap (n, 9) int64 and
    weight (n, 9) float32, which they are (0 to 8, row by row) and their values, behind the last one the first again with a value
    of 0; bias (n,) float32, or None. Given are slot, weight (n, 9) and bias; ``halves`` parts of them are padded to multiples of
    ``step`` each."""

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
        weight, taken = weight.gather(1, tap), live.sum(1)
        some = int(taken.argmax())  # what has no tap reads what this one does, with weights of 0
        slot = torch.where(taken > 0, slot, slot[some].clamp(min=0))
        tap = torch.where(
            torch.arange(9) < taken[:, None], tap, torch.where(taken > 0, tap[:, 0], tap[some, 0])[:, None]
        )
        most = taken.view(-1, step).amax(1).int()
        for name, tensor in (
            ("slot", slot), ("most", most), ("tap", tap), ("weight", weight.contiguous()), ("bias", bias),
        ):  # fmt: skip
            self.register_buffer(name, tensor)

    def tables(self, width: int, plane: int, before: int = 0) -> list[Tensor | None]:
        """What the kernels take of it for images of this width, in their order, where these hidden channels, of so many elements,
        are behind others."""

        def offset() -> Tensor:
            return (
                (before + self.slot[:, None]) * plane + (self.tap // 3 - 1) * (width + PAD) + self.tap % 3 - 1
            )

        return [self.most, kept((self, width, plane, before), offset), self.weight, self.bias]


def _padded(t: Tensor, halves: int, step: int, value: int) -> Tensor:
    """(n, ...) in ``halves`` parts, each padded to a multiple of ``step`` rows, and to one step at least."""
    parts = t.unflatten(0, (halves, len(t) // halves))
    missing = max(step, -(-parts.shape[1] // step) * step) - parts.shape[1]
    return torch.cat([parts, parts.new_full((halves, missing, *t.shape[1:]), value)], 1).flatten(0, 1)


def mix(
    hidden: Tensor, taps: Taps, weight: Tensor, bias: Tensor | None, x: Tensor, y: Tensor, gate: bool, strip: Strip,
    before: int = 0,
) -> None:  # fmt: skip
    """y = x + weight^T @ v at the pixels of a strip, see `mix_kernel`: hidden (B, ``before`` others and slots, plane), weight (count, C) or one for each
    image (B, count, C), x and y (B, C, H, W)."""
    batch, channels, height, width = x.shape
    x, y = (t[:, :, strip.first : strip.first + strip.rows] for t in (x, y))
    block = min(_CHANNELS, max(16, triton.next_power_of_2(channels)))
    blocks, pixels = triton.cdiv(channels, block), strip.rows * width
    sizes = [p for p in _PIXELS if p * block <= _SUMS]
    sizes.sort(key=lambda p: turns(triton.cdiv(pixels, p) * batch * blocks) * (p + _ONCE))
    launch(
        mix_kernel, lambda sizes: (triton.cdiv(pixels, sizes["BLOCK_P"]), batch, blocks),
        hidden, *taps.tables(width, hidden.stride(1), before), weight, bias, x, y,
        hidden.stride(0), weight.stride(0) if weight.ndim == 3 else 0, x.stride(0), y.stride(0),
        height * width, pixels, width, channels, weight.shape[-2], len(taps.slot) // (2 if gate else 1),
        GATE=gate, TAP_BIAS=taps.bias is not None, BIAS=bias is not None,
        BLOCK_H=STEP, BLOCK_C=block, PAD=PAD, PRECISION="ieee",
        tiles=[Tile({"BLOCK_P": p}, warps) for warps in (8, 16) for p in sizes],
    )  # fmt: skip


def slots(live: Tensor) -> Tensor:
    """Where each channel is when only the live ones (n,) bool are kept, -1 for the others."""
    return torch.where(live, live.cumsum(0) - 1, -1).int()
