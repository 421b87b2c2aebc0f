"""MDTA on GPUs: the norm with qkv; taps of q and k into their Gram matrix and norms; the attention composed with project_out,
which is linear behind it; and that matrix applied to the tapped v, with the residual. q, k and v touch memory once each way, or,
strip by strip, the cache alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirl_kernels._triton import PAD, Launch, Packed, Tile, Work, counts, hidden, launch, pack_panels, size
from mirl_kernels._triton.product import in_plane, project
from mirl_kernels._triton.taps import Taps, mix, slots, tap_work, tapped
from mirl_kernels.gdfn import live_after_taps

# Channels each way of the block of a Gram matrix that a program sums up, and pixels at a time, at most.
_GRAM, _PIXELS = 64, 64
_PROGRAMS = 128  # that sum them up, at least


@triton.jit
def gram_kernel(
    hidden, slot, taken, place, taps, tap_bias, sums, total_size,
    hidden_batch, hidden_plane, pixels, width, heads, blocks, span,
    FIRST: tl.constexpr, TAP_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, PAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over ``span`` of a strip's pixels, and those of the strips before unless it is the FIRST, of q k^T, (B, heads, n, n), and behind it of q^2 and k^2, (B, heads, 2, n), of the n =
    blocks * BLOCK_C rows of each that the tables have; sums (S, total_size). Grid (S, B * heads, blocks of q times blocks of k)."""
    share, image = tl.program_id(0), tl.program_id(1)
    batch, head = (image // heads).to(tl.int64), image % heads
    size = blocks * BLOCK_C
    first_i = tl.program_id(2) // blocks * BLOCK_C
    first_j = tl.program_id(2) % blocks * BLOCK_C
    i, j = first_i + tl.arange(0, BLOCK_C), first_j + tl.arange(0, BLOCK_C)
    hidden += batch * hidden_batch
    sums += share.to(tl.int64) * total_size
    products = sums + (image * size + i[:, None]) * size + j[None, :]
    q_squares = sums + (tl.num_programs(1) * size + 2 * image) * size + i
    k_squares = sums + (tl.num_programs(1) * size + (2 * image + 1)) * size + j
    own_q, own_k = tl.full([BLOCK_C], first_j, tl.int32) == 0, tl.full([BLOCK_C], first_i, tl.int32) == 0
    if FIRST:
        total = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
        q_norm = tl.zeros([BLOCK_C], tl.float32)
        k_norm = tl.zeros([BLOCK_C], tl.float32)
    else:
        total = tl.load(products)
        q_norm = tl.load(q_squares, own_q, 0.0)
        k_norm = tl.load(k_squares, own_k, 0.0)
    for first in range(share * span, (share + 1) * span, BLOCK_P):
        pixel = first + tl.arange(0, BLOCK_P)
        inside = pixel < pixels
        at = in_plane(width + tl.where(inside, pixel, 0), width, PAD)
        q = tapped(hidden, hidden_plane, slot, taken, place, taps, tap_bias, head * size + i, at, TAP_BIAS)
        k = tapped(hidden, hidden_plane, slot, taken, place, taps, tap_bias, (heads + head) * size + j, at, TAP_BIAS)
        q, k = tl.where(inside[None, :], q, 0.0), tl.where(inside[None, :], k, 0.0)
        q_norm += tl.sum(q * q, 1)
        k_norm += tl.sum(k * k, 1)
        kind = hidden.dtype.element_ty
        total = tl.dot(q.to(kind), tl.trans(k.to(kind)), total, input_precision=PRECISION)
    tl.store(products, total)
    tl.store(q_squares, q_norm, own_q)
    tl.store(k_squares, k_norm, own_k)


@triton.jit(do_not_specialize=["shares"])  # a loop's end
def sum_kernel(sums, result, shares, size, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr):
    """result (size,) = the sum of sums (shares, size). Grid (tiles,)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK_S, BLOCK], tl.float32)
    for first in range(0, shares, BLOCK_S):
        share = first + tl.arange(0, BLOCK_S)
        here = (share < shares)[:, None] & (at < size)[None, :]
        total += tl.load(sums + share[:, None] * size + at[None, :], here, 0.0)
    tl.store(result + at, tl.sum(total, 0), at < size)


@counts(sum_kernel)
def _sum_work(launch: Launch) -> Work:
    a = launch.arguments
    return Work(
        size(a["sums"]),
        size(a["result"]),
        size(a["sums"]),
        0,
        (launch.grid[0] * triton.cdiv(a["shares"], a["BLOCK_S"]),),
    )


@counts(gram_kernel)
def _gram_work(launch: Launch) -> Work:
    a, (parts, images, pairs) = launch.arguments, launch.grid
    heads, blocks, block, pixels = a["heads"], a["blocks"], a["BLOCK_C"], a["BLOCK_P"]
    batch, steps = images // heads, parts * a["span"] // pixels
    found = [tap_work(a, half, block) for half in torch.arange(2 * heads * blocks * block).view(2, -1)]
    features, before = batch * sum(image for image, *_ in found), 0 if a["FIRST"] else size(a["sums"])
    return Work(
        read=features + sum(tables for _, tables, *_ in found) + before,
        written=size(a["sums"]),
        fetched=batch * blocks * sum(steps * pixels * tile + parts * tables for _, tables, tile, _ in found) + before,
        macs=steps * images * pairs * block * block * pixels,
        trips=(steps * images * pairs, *(batch * steps * blocks * sum(trips) for *_, trips in found)),
        hidden=features,
        buffer=size(a["hidden"]),
    )


@triton.jit
def compose_kernel(
    sums, spot, temperature, project_out, weight, order,
    channels, heads, size, count,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_O: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """weight (B, count, C): row ``order[v channel]`` is project_out @ softmax(temperature * q k^T)'s column of that channel, of
    normalised q and k; order is -1 for a v that is zero. spot (2, C) says where each q and k is in its head's sums, -1 for one
    that is zero, whose logits are 0. project_out (C, C) float32. Grid (B * heads, tiles of outputs)."""
    image = tl.program_id(0)
    batch, head = image // heads, image % heads
    inner = channels // heads
    j = tl.arange(0, BLOCK_J)
    at_j = tl.load(spot + channels + head * inner + j, j < inner, -1)
    out = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    warmth = tl.load(temperature + head)
    gram = sums + image * size * size
    squares = sums + (tl.num_programs(0) * size + 2 * image) * size
    k_norm = tl.maximum(tl.sqrt(tl.load(squares + size + at_j, at_j >= 0, 0.0)), 1e-12)
    total = tl.zeros([BLOCK_J, BLOCK_O], tl.float32)
    for first in range(0, inner, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        at_i = tl.load(spot + head * inner + i, i < inner, -1)
        q_norm = tl.maximum(tl.sqrt(tl.load(squares + at_i, at_i >= 0, 0.0)), 1e-12)
        logits = tl.load(gram + at_i[:, None] * size + at_j[None, :], (at_i >= 0)[:, None] & (at_j >= 0)[None, :], 0.0)
        logits = logits / q_norm[:, None] / k_norm[None, :] * warmth
        logits = tl.where((j < inner)[None, :], logits, float("-inf"))
        attention = tl.exp(logits - tl.max(logits, 1)[:, None])
        known = (i < inner)[:, None] & (j < inner)[None, :]
        attention = tl.where(known, attention / tl.sum(attention, 1)[:, None], 0.0)
        known = (i < inner)[:, None] & (out < channels)[None, :]
        rows = tl.load(project_out + out[None, :] * channels + head * inner + i[:, None], known, 0.0)
        total = tl.dot(tl.trans(attention), rows, total, input_precision=PRECISION)
    at = tl.load(order + head * inner + j, j < inner, -1)
    place = weight + batch.to(tl.int64) * count * channels + at[:, None] * channels + out[None, :]
    tl.store(place, total.to(weight.dtype.element_ty), (at >= 0)[:, None] & (out < channels)[None, :])


@counts(compose_kernel)
def _compose_work(launch: Launch) -> Work:
    a, (images, tiles, _) = launch.arguments, launch.grid
    steps = triton.cdiv(a["channels"] // a["heads"], a["BLOCK_I"])
    q, k = (a["spot"] >= 0).view(2, a["heads"], -1).sum(2)
    sums = 4 * images // a["heads"] * int((q * k + q + k).sum())
    tables = size(a["temperature"], a["order"], a["spot"], a["project_out"])
    return Work(
        read=sums + tables,
        written=size(a["weight"]),
        fetched=tiles * sums + images // a["heads"] * tables,
        macs=0,  # in float32
        trips=(images * tiles * steps,),
    )


def _rows_of(slot: Tensor, taps: Tensor, bias: Tensor | None, rows: Tensor) -> Taps:
    """The taps of these channels, of nothing where -1."""
    none = rows < 0
    weight = taps[rows].masked_fill(none[:, None], 0)
    return Taps(slot[rows].masked_fill(none, -1), weight, None if bias is None else bias[rows].masked_fill(none, 0))


class TritonMDTA(Packed):
    """The surviving weights of one MDTA for the Triton kernels; arguments as in `reference`.

    Dead channels of q, k and v are neither computed nor stored; a dead q or k still counts in the softmax, as a logit of 0.
    Activations are of ``dtype`` (float16, bfloat16 or float32), sums float32.
    """

    qk_offset: Tensor
    v_offset: Tensor
    spot: Tensor
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
        ahead = live.clone()  # q and k, whose sums v waits for
        ahead[2 * self.channels :] = False
        behind = live & ~ahead
        offset = torch.zeros(len(fan_in)) if biases[0] is None else biases[0].detach().float()
        if norm_bias is not None:
            offset = offset + fan_in @ norm_bias.detach().float()
        scaled = fan_in * norm_weight.detach().float()
        self.qk, self.v = pack_panels(scaled[ahead], dtype), pack_panels(scaled[behind], dtype)
        self.register_buffer("qk_offset", offset[ahead])
        self.register_buffer("v_offset", offset[behind])
        slot = torch.where(ahead, slots(ahead), slots(behind))
        tap_bias = None if biases[1] is None else biases[1].detach().float()
        felt = live if tap_bias is None else live | (tap_bias != 0)  # not zero everywhere
        q, k = (list(half.view(self.heads, -1)) for half in felt.chunk(3)[:2])
        most = max(1, *(int(head.sum()) for head in q + k))
        self.block = min(_GRAM, max(16, 1 << (most - 1).bit_length()))
        self.blocks = -(-most // self.block)
        inner = self.channels // self.heads
        rows = torch.full((2 * self.heads, self.blocks * self.block), -1)
        for i, head in enumerate(q + k):
            rows[i, : int(head.sum())] = head.nonzero()[:, 0] + i * inner
        self.taps = _rows_of(slot, taps, tap_bias, rows.flatten())
        self.register_buffer("spot", torch.cat([slots(head) for head in q + k]).int())
        # v that is zero everywhere is left out of the last product.
        v = felt[2 * self.channels :].nonzero()[:, 0]
        # Those of about as many taps side by side: a step of the kernel takes as long as the one with most.
        v = v[taps[2 * self.channels + v].count_nonzero(1).argsort(stable=True)]
        self.count = len(v)
        self.register_buffer("order", torch.full((self.channels,), -1).index_put((v,), torch.arange(len(v))).int())
        self.v_taps = _rows_of(slot, taps, tap_bias, v + 2 * self.channels)
        self.register_buffer("temperature", temperature.detach().float().flatten())
        self.register_buffer("project_out", out)
        self.register_buffer("bias", None if biases[2] is None else biases[2].detach().float())

    def forward(self, x: Tensor, y: Tensor | None = None, shares: int = 0) -> Tensor:
        """x (B, C, H, W) of ``dtype`` to the same shape, written into ``y``, which is not x, if given; Gram matrices are summed up in
        ``shares`` parts, or as many as keep a large GPU busy."""
        y = self.check(x, y, x.shape)
        batch, channels, _, width = x.shape
        inner = channels // self.heads
        qk, strips = hidden(x, len(self.qk_offset), self.dtype)
        taps, block, blocks = self.taps, self.block, self.blocks
        shares = shares or triton.cdiv(_PROGRAMS, batch * self.heads * blocks**2)
        span = triton.cdiv(strips[0].rows * width, _PIXELS * shares) * _PIXELS  # pixels of a share
        shares = triton.cdiv(strips[0].rows * width, span)
        size = batch * self.heads * blocks * block * (blocks * block + 2)
        sums = torch.empty(shares, size, device=x.device)
        for strip in strips:
            if len(self.qk_offset):
                project(x, qk, self.qk, self.qk_offset, norm=True, centred=self.centred, strip=strip)
            launch(
                gram_kernel, lambda sizes: (shares, batch * self.heads, blocks**2),
                qk, *taps.tables(width), sums, size,
                qk.stride(0), qk.stride(1), strip.rows * width, width, self.heads, blocks, span,
                FIRST=strip.first == 0, TAP_BIAS=taps.bias is not None, BLOCK_C=block, PAD=PAD, PRECISION="ieee",
                tiles=[Tile({"BLOCK_P": p}, warps) for p, warps in ((_PIXELS, 8), (_PIXELS // 2, 8), (_PIXELS, 16))],
            )  # fmt: skip
        summed = torch.empty(size, device=x.device)
        launch(
            sum_kernel, lambda sizes: (triton.cdiv(size, sizes["BLOCK"]), 1, 1),
            sums, summed, shares, size, BLOCK_S=16, tiles=[Tile({"BLOCK": 64}, 4)],
        )  # fmt: skip
        weight = x.new_empty(batch, self.count, channels)
        wide = max(16, triton.next_power_of_2(inner))
        launch(
            compose_kernel, lambda sizes: (batch * self.heads, triton.cdiv(channels, sizes["BLOCK_O"]), 1),
            summed, self.spot, self.temperature, self.project_out, weight, self.order,
            channels, self.heads, blocks * block, self.count,
            BLOCK_I=16, BLOCK_J=wide, PRECISION="ieee",
            tiles=[Tile({"BLOCK_O": o}, 8 if wide > 64 else 4) for o in (16, 8)],
        )  # fmt: skip
        v, strips = hidden(x, len(self.v_offset), self.dtype)
        for strip in strips:
            if len(self.v_offset):
                project(x, v, self.v, self.v_offset, norm=True, centred=self.centred, strip=strip)
            mix(v, self.v_taps, weight, self.bias, x, y, gate=False, strip=strip)
        return y
