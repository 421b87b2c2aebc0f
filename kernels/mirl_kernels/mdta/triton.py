"""MDTA on GPUs: the norm with qkv; taps of q and k into their Gram matrix and norms; the attention composed with project_out,
which is linear behind it; and that matrix applied to the tapped v, with the residual. q, k and v touch memory once each way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirl_kernels._triton import ROWS, Packed, pack_panels
from mirl_kernels._triton.product import project
from mirl_kernels._triton.taps import Taps, mix, slots, tapped
from mirl_kernels.gdfn import live_after_taps

_GRAM, _PIXELS = 64, 32  # channels each way of the block of a Gram matrix that a program sums up, and pixels at a time


@triton.jit
def gram_kernel(
    hidden, slot, taps, tap_bias, gram, norms,
    hidden_batch, height, width, channels, heads, tiles,
    TAP_BIAS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over ``tiles`` tiles of pixels of q k^T, gram (S, B, heads, c, c), and of q^2 and k^2, norms (S, B, 2, C), for c =
    channels of a head. Grid (S, B * heads, blocks of q times blocks of k)."""
    plane = height * width
    share, image = tl.program_id(0), tl.program_id(1)
    batch, head = (image // heads).to(tl.int64), image % heads
    inner = channels // heads
    blocks = tl.cdiv(inner, BLOCK_C)
    first_i = tl.program_id(2) // blocks * BLOCK_C
    first_j = tl.program_id(2) % blocks * BLOCK_C
    i, j = first_i + tl.arange(0, BLOCK_C), first_j + tl.arange(0, BLOCK_C)
    hidden += batch * hidden_batch
    total = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    q_norm = tl.zeros([BLOCK_C], tl.float32)
    k_norm = tl.zeros([BLOCK_C], tl.float32)
    for tile in range(share * tiles, (share + 1) * tiles):
        pixel = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = pixel < plane
        q = tapped(
            hidden, slot, taps, tap_bias, head * inner + i, i < inner, pixel, inside, plane, height, width, TAP_BIAS
        )
        k = tapped(
            hidden,
            slot,
            taps,
            tap_bias,
            channels + head * inner + j,
            j < inner,
            pixel,
            inside,
            plane,
            height,
            width,
            TAP_BIAS,
        )
        if TAP_BIAS:  # of pixels beyond the image
            q, k = tl.where(inside[None, :], q, 0.0), tl.where(inside[None, :], k, 0.0)
        q_norm += tl.sum(q * q, 1)
        k_norm += tl.sum(k * k, 1)
        kind = hidden.dtype.element_ty
        total = tl.dot(q.to(kind), tl.trans(k.to(kind)), total, input_precision=PRECISION)
    where = share.to(tl.int64) * (tl.num_programs(1) // heads) + batch
    here = (i < inner)[:, None] & (j < inner)[None, :]
    tl.store(gram + (where * heads + head) * inner * inner + i[:, None] * inner + j[None, :], total, here)
    norms += where * 2 * channels + head * inner
    tl.store(norms + i, q_norm, (i < inner) & (tl.full([BLOCK_C], first_j, tl.int32) == 0))
    tl.store(norms + channels + j, k_norm, (j < inner) & (tl.full([BLOCK_C], first_i, tl.int32) == 0))


@triton.jit
def compose_kernel(
    gram, norms, temperature, project_out, weight, order,
    batches, channels, heads, shares, count,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_O: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """weight (B, count, C): row ``order[v channel]`` is project_out @ softmax(temperature * q k^T)'s column of that channel, of
    normalised q and k; order is -1 for a v that is zero. project_out (C, C) float32. Grid (B * heads, tiles of outputs)."""
    batch, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    inner = channels // heads
    j = tl.arange(0, BLOCK_J)
    out = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    warmth = tl.load(temperature + head)
    k_square = tl.zeros([BLOCK_J], tl.float32)
    for share in range(shares):
        at = norms + (share * batches + batch) * 2 * channels + channels + head * inner
        k_square += tl.load(at + j, j < inner, 0.0)
    k_norm = tl.maximum(tl.sqrt(k_square), 1e-12)
    total = tl.zeros([BLOCK_J, BLOCK_O], tl.float32)
    for first in range(0, inner, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        here = (i < inner)[:, None] & (j < inner)[None, :]
        logits = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
        q_square = tl.zeros([BLOCK_I], tl.float32)
        for share in range(shares):
            where = share * batches + batch
            logits += tl.load(
                gram + (where * heads + head) * inner * inner + i[:, None] * inner + j[None, :], here, 0.0
            )
            q_square += tl.load(norms + where * 2 * channels + head * inner + i, i < inner, 0.0)
        q_norm = tl.maximum(tl.sqrt(q_square), 1e-12)
        logits = logits / q_norm[:, None] / k_norm[None, :] * warmth
        logits = tl.where((j < inner)[None, :], logits, float("-inf"))
        attention = tl.exp(logits - tl.max(logits, 1)[:, None])
        attention = tl.where(here, attention / tl.sum(attention, 1)[:, None], 0.0)
        known = (i < inner)[:, None] & (out < channels)[None, :]
        rows = tl.load(project_out + out[None, :] * channels + head * inner + i[:, None], known, 0.0)
        total = tl.dot(tl.trans(attention), rows, total, input_precision=PRECISION)
    at = tl.load(order + head * inner + j, j < inner, -1)
    place = weight + batch.to(tl.int64) * count * channels + at[:, None] * channels + out[None, :]
    tl.store(place, total.to(weight.dtype.element_ty), (at >= 0)[:, None] & (out < channels)[None, :])


class TritonMDTA(Packed):
    """The surviving weights of one MDTA for the Triton kernels; arguments as in `reference`.

    Dead channels of q, k and v are neither computed nor stored; a dead q or k still counts in the softmax, as a logit of 0.
    Activations are of ``dtype`` (float16, bfloat16 or float32), sums float32.
    """

    offset: Tensor
    order: Tensor
    temperature: Tensor
    project_out: Tensor
    bias: Tensor | None

    def __init__(self, norm_weight: Tensor, norm_bias: Tensor | None, qkv: Tensor, dwconv: Tensor, temperature: Tensor,
                 project_out: Tensor, biases: Sequence[Tensor | None] = (None, None, None),
                 dtype: torch.dtype = torch.float16) -> None:  # fmt: skip
        super().__init__(dtype)
        fan_in, taps, out = (w.detach().float().flatten(1) for w in (qkv, dwconv, project_out))
        self.channels, self.heads, self.centred = len(out), len(temperature), norm_bias is not None
        live = live_after_taps(fan_in, taps, biases[0], None)
        offset = torch.zeros(len(fan_in)) if biases[0] is None else biases[0].detach().float()
        if norm_bias is not None:
            offset = offset + fan_in @ norm_bias.detach().float()
        self.qkv = pack_panels((fan_in * norm_weight.detach().float())[live], dtype)
        self.register_buffer("offset", offset[live])
        slot = slots(live)
        tap_bias = None if biases[1] is None else biases[1].detach().float()
        self.taps = Taps(slot, taps, tap_bias)
        # v that is zero everywhere is left out of the last product.
        v = torch.arange(2 * self.channels, 3 * self.channels)
        kept = live[v] if tap_bias is None else live[v] | (tap_bias[v] != 0)
        self.register_buffer("order", slots(kept))
        v = v[kept]
        self.v_taps = Taps(slot[v], taps[v], None if tap_bias is None else tap_bias[v])
        self.register_buffer("temperature", temperature.detach().float().flatten())
        self.register_buffer("project_out", out)
        self.register_buffer("bias", None if biases[2] is None else biases[2].detach().float())

    def forward(self, x: Tensor, y: Tensor | None = None, shares: int = 32) -> Tensor:
        """x (B, C, H, W) of ``dtype`` to the same shape, written into ``y`` if given; the Gram matrix is summed up in ``shares``
        parts."""
        y = self.check(x, y, x.shape)
        batch, channels, height, width = x.shape
        inner, plane = channels // self.heads, height * width
        hidden = x.new_empty(batch, len(self.offset), height, width)
        if len(self.offset):
            project(x, hidden, self.qkv, bias=self.offset, norm=True, centred=self.centred)
        tiles = triton.cdiv(plane, _PIXELS * shares)
        shares = triton.cdiv(plane, _PIXELS * tiles)
        gram = torch.empty(shares, batch, self.heads, inner, inner, device=x.device)
        norms = torch.empty(shares, batch, 2, channels, device=x.device)
        block = min(_GRAM, max(ROWS, triton.next_power_of_2(inner)))
        gram_kernel[(shares, batch * self.heads, triton.cdiv(inner, block) ** 2)](
            hidden, self.taps.slot, self.taps.weight, self.taps.bias, gram, norms,
            hidden.stride(0), height, width, channels, self.heads, tiles,
            TAP_BIAS=self.taps.bias is not None, BLOCK_C=block, BLOCK_P=_PIXELS, PRECISION="ieee", num_warps=8,
        )  # fmt: skip
        count = len(self.v_taps.slot)
        weight = x.new_empty(batch, count, channels)
        compose_kernel[(batch * self.heads, triton.cdiv(channels, 32))](
            gram, norms, self.temperature, self.project_out, weight, self.order,
            batch, channels, self.heads, shares, count,
            BLOCK_I=16, BLOCK_J=max(ROWS, triton.next_power_of_2(inner)), BLOCK_O=32, PRECISION="ieee", num_warps=8,
        )  # fmt: skip
        mix(hidden, self.v_taps, weight, self.bias, x, y, gate=False)
        return y
