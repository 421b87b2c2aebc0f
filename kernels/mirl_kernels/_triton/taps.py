"""How MDTA and GDFN end: depthwise taps, a gate or none, a matrix and the residual, in one pass over the hidden channels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from mirl_kernels._triton import ROWS

_STEP = 16  # hidden channels that a step multiplies on tensor cores
_PIXELS, _CHANNELS = 32, 64  # of a program: with 64 and 128 some GPUs spill registers


@triton.jit
def tapped(hidden, slot, taps, bias, channel, known, pixel, inside, plane, height, width, BIAS: tl.constexpr):
    """Depthwise 3x3 convolution (float32) of some channels at some pixels. ``slot`` says where each channel is in ``hidden``,
    -1 for one that is zero. A loop over the taps, since unrolled they spill."""
    total = tl.zeros([channel.shape[0], pixel.shape[0]], tl.float32)
    if BIAS:
        total += tl.load(bias + channel, known, 0.0)[:, None]
    at = tl.load(slot + channel, known, -1)
    there = at >= 0
    base = hidden + tl.maximum(at, 0).to(tl.int64)[:, None] * plane
    row, column = pixel // width, pixel % width
    for tap in range(9):
        dy, dx = tap // 3 - 1, tap % 3 - 1
        near = inside & (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
        weight = tl.load(taps + channel * 9 + tap, there, 0.0)
        here = there[:, None] & near[None, :]
        total += weight[:, None] * tl.load(base + (pixel + dy * width + dx)[None, :], here, 0.0).to(tl.float32)
    return total


@triton.jit
def mix_kernel(
    hidden, slot, taps, tap_bias, weight, bias, x, y,
    hidden_batch, weight_batch, x_batch, y_batch, height, width, channels, count,
    GATE: tl.constexpr, TAP_BIAS: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = x + weight^T @ v (+ bias) with v = taps(hidden), ``count`` of them, or where GATE v = GELU(a) * b of the ``2 * count``
    channels' halves a and b; weight (count, channels). Grid (tiles of pixels, batch, tiles of channels)."""
    plane = height * width
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < plane
    batch = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    hidden += batch * hidden_batch
    weight += batch * weight_batch
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for first in range(0, count, BLOCK_H):
        h = first + tl.arange(0, BLOCK_H)
        real = h < count
        v = tapped(hidden, slot, taps, tap_bias, h, real, pixel, inside, plane, height, width, TAP_BIAS)
        if GATE:
            v = 0.5 * v * (1 + tl.erf(v * 0.7071067811865476))
            v *= tapped(hidden, slot, taps, tap_bias, count + h, real, pixel, inside, plane, height, width, TAP_BIAS)
        part = tl.load(weight + h[None, :] * channels + channel[:, None], known[:, None] & real[None, :], 0.0)
        total = tl.dot(part, v.to(part.dtype), total, input_precision=PRECISION)
    here = known[:, None] & inside[None, :]
    at = channel.to(tl.int64)[:, None] * plane + pixel[None, :]
    if BIAS:
        total += tl.load(bias + channel, known, 0.0)[:, None]
    total += tl.load(x + batch * x_batch + at, here, 0.0).to(tl.float32)
    tl.store(y + batch * y_batch + at, total.to(y.dtype.element_ty), here)


class Taps(nn.Module):
    """The depthwise taps of n channels: slot (n,) int32 (where each is among the hidden channels, -1: nowhere), weight (n, 9) and
    bias (n,) float32, or None."""

    slot: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(self, slot: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("slot", slot.int().contiguous())
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias)


def mix(hidden: Tensor, taps: Taps, weight: Tensor, bias: Tensor | None, x: Tensor, y: Tensor, gate: bool) -> None:  # fmt: skip
    """y = x + weight^T @ v, see `mix_kernel`: hidden (B, slots, H, W), weight (count, C) or one for each image (B, count, C), x
    and y (B, C, H, W)."""
    batch, channels, height, width = x.shape
    block = min(_CHANNELS, max(ROWS, triton.next_power_of_2(channels)))
    grid = (triton.cdiv(height * width, _PIXELS), batch, triton.cdiv(channels, block))
    mix_kernel[grid](
        hidden, taps.slot, taps.weight, taps.bias, weight, bias, x, y,
        hidden.stride(0), weight.stride(0) if weight.ndim == 3 else 0, x.stride(0), y.stride(0),
        height, width, channels, weight.shape[-2],
        GATE=gate, TAP_BIAS=taps.bias is not None, BIAS=bias is not None,
        BLOCK_H=_STEP, BLOCK_C=block, BLOCK_P=_PIXELS, PRECISION="ieee", num_warps=8,
    )  # fmt: skip


def slots(live: Tensor) -> Tensor:
    """Where each channel is when only the live ones (n,) bool are kept, -1 for the others."""
    return torch.where(live, live.cumsum(0) - 1, -1).int()
