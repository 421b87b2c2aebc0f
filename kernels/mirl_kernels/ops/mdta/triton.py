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

from mirl_kernels.core.triton import (
    PAD,
    Launch,
    Packed,
    Panels,
    Strip,
    Tile,
    Work,
    counts,
    hidden,
    kept,
    launch,
    pack_panels,
    processors,
    size,
    strips,
)
from mirl_kernels.core.triton.product import in_plane, project
from mirl_kernels.core.triton.taps import STEP, Taps, mix, slots, tap_work, tapped
from mirl_kernels.ops.gdfn import live_after_taps

# Channels each way of the block of a Gram matrix that a program sums up, and pixels at a time, at most.
_GRAM, _PIXELS = 64, 64


@triton.jit
def gram_kernel(
    hidden, most, offset, taps, tap_bias, sums, total_size,
    hidden_batch, pixels, width, heads, q_blocks, k_blocks, span,
    FIRST: tl.constexpr, TAP_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, PAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over ``span`` of a strip's pixels, and those of the strips before unless it is the FIRST, of q k^T, (B, heads, n, m), and
    behind it of q^2, (B, heads, n), and k^2, (B, heads, m), of the n = q_blocks * BLOCK_C and m = k_blocks * BLOCK_C rows of each
    head that the tables have, those of q first; sums (S, total_size). Grid (S, B * heads, blocks of q times blocks of k)."""
    share, image = tl.program_id(0), tl.program_id(1)
    batch, head, images = (image // heads).to(tl.int64), image % heads, tl.num_programs(1)
    q_block, k_block = tl.program_id(2) // k_blocks, tl.program_id(2) % k_blocks
    n, m = q_blocks * BLOCK_C, k_blocks * BLOCK_C
    i, j = q_block * BLOCK_C + tl.arange(0, BLOCK_C), k_block * BLOCK_C + tl.arange(0, BLOCK_C)
    hidden += batch * hidden_batch
    sums += share.to(tl.int64) * total_size
    products = sums + (image * n + i[:, None]) * m + j[None, :]
    q_squares = sums + images * n * m + image * n + i
    k_squares = sums + images * n * (m + 1) + image * m + j
    own_q, own_k = tl.full([BLOCK_C], k_block, tl.int32) == 0, tl.full([BLOCK_C], q_block, tl.int32) == 0
    total = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    if not FIRST:
        total = tl.load(products)
    q_norm = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)  # summed up once, at the end
    k_norm = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    step_q, step_k = head * q_blocks + q_block, heads * q_blocks + head * k_blocks + k_block
    row = tl.arange(0, BLOCK_C)
    for first in range(share * span, (share + 1) * span, BLOCK_P):
        pixel = first + tl.arange(0, BLOCK_P)
        inside = pixel < pixels
        # Outside the strip, what is between two rows, where all is zero.
        at = tl.where(inside, in_plane(width + pixel, width, PAD), width + PAD + PAD // 2)
        q = tapped(hidden, most, offset, taps, tap_bias, step_q, step_q * BLOCK_C + row, at, TAP_BIAS)
        k = tapped(hidden, most, offset, taps, tap_bias, step_k, step_k * BLOCK_C + row, at, TAP_BIAS)
        if TAP_BIAS:
            q, k = tl.where(inside[None, :], q, 0.0), tl.where(inside[None, :], k, 0.0)
        q_norm += q * q
        k_norm += k * k
        kind = hidden.dtype.element_ty
        total = tl.dot(q.to(kind), tl.trans(k.to(kind)), total, input_precision=PRECISION)
    tl.store(products, total)
    q_sum, k_sum = tl.sum(q_norm, 1), tl.sum(k_norm, 1)
    if not FIRST:
        q_sum += tl.load(q_squares, own_q, 0.0)
        k_sum += tl.load(k_squares, own_k, 0.0)
    tl.store(q_squares, q_sum, own_q)
    tl.store(k_squares, k_sum, own_k)


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
        read=size(a["sums"]),
        written=size(a["result"]),
        fetched=size(a["sums"]),
        macs=0,
        trips=(launch.grid[0] * triton.cdiv(a["shares"], a["BLOCK_S"]),),
        hidden=size(a["sums"]),
        buffer=size(a["sums"]),
    )


@counts(gram_kernel)
def _gram_work(launch: Launch) -> Work:
    a, (parts, images, pairs) = launch.arguments, launch.grid
    heads, block, pixels = a["heads"], a["BLOCK_C"], a["BLOCK_P"]
    batch, steps = images // heads, parts * a["span"] // pixels
    rows = [heads * a[name] * block for name in ("q_blocks", "k_blocks")]
    beyond = parts * a["span"] > a["pixels"]
    found = [tap_work(a, half, block, beyond) for half in torch.arange(sum(rows)).split(rows)]
    others = a["k_blocks"], a["q_blocks"]  # that each block of one is multiplied by
    features, before = batch * sum(image for image, *_ in found), 0 if a["FIRST"] else size(a["sums"])
    fetched = (
        n * (steps * pixels * tile + parts * tables)
        for n, (_, tables, tile, _) in zip(others, found, strict=True)
    )
    return Work(
        read=features + sum(tables for _, tables, *_ in found) + before,
        written=size(a["sums"]),
        fetched=batch * sum(fetched) + before,
        macs=steps * images * pairs * block * block * pixels,
        trips=(
            steps * images * pairs,
            *(batch * steps * n * sum(t) for n, (*_, t) in zip(others, found, strict=True)),
        ),
        hidden=features + before + size(a["sums"]),
        buffer=max(size(a["hidden"]), size(a["sums"])),
    )


@triton.jit
def compose_kernel(
    sums, spot, temperature, project_out, weight, order,
    channels, heads, n, m, count,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_O: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """weight (B, count, C): row ``order[v channel]`` is project_out @ softmax(temperature * q k^T)'s column of that channel, of
    normalised q and k; order is -1 for a v that is zero. spot (2, C) says where each q and k is in its head's sums, -1 for one
    that is zero, whose logits are 0. project_out (C, C) of weight's dtype. Grid (B * heads, tiles of outputs)."""
    image = tl.program_id(0)
    batch, head = image // heads, image % heads
    inner = channels // heads
    j = tl.arange(0, BLOCK_J)
    at_j = tl.load(spot + channels + head * inner + j, j < inner, -1)
    out = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    warmth = tl.load(temperature + head)
    images = tl.num_programs(0)
    gram = sums + image * n * m
    q_squares, k_squares = sums + images * n * m + image * n, sums + images * n * (m + 1) + image * m
    k_norm = tl.maximum(tl.sqrt(tl.load(k_squares + at_j, at_j >= 0, 0.0)), 1e-12)
    total = tl.zeros([BLOCK_J, BLOCK_O], tl.float32)
    for first in range(0, inner, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        at_i = tl.load(spot + head * inner + i, i < inner, -1)
        q_norm = tl.maximum(tl.sqrt(tl.load(q_squares + at_i, at_i >= 0, 0.0)), 1e-12)
        logits = tl.load(
            gram + at_i[:, None] * m + at_j[None, :], (at_i >= 0)[:, None] & (at_j >= 0)[None, :], 0.0
        )
        logits = logits / q_norm[:, None] / k_norm[None, :] * warmth
        logits = tl.where((j < inner)[None, :], logits, float("-inf"))
        attention = tl.exp(logits - tl.max(logits, 1)[:, None])
        known = (i < inner)[:, None] & (j < inner)[None, :]
        attention = tl.where(known, attention / tl.sum(attention, 1)[:, None], 0.0)
        known = (i < inner)[:, None] & (out < channels)[None, :]
        rows = tl.load(project_out + out[None, :] * channels + head * inner + i[:, None], known, 0.0)
        total = tl.dot(tl.trans(attention).to(rows.dtype), rows, total, input_precision=PRECISION)
    at = tl.load(order + head * inner + j, j < inner, -1)
    place = weight + batch.to(tl.int64) * count * channels + at[:, None] * channels + out[None, :]
    tl.store(place, total.to(weight.dtype.element_ty), (at >= 0)[:, None] & (out < channels)[None, :])


@counts(compose_kernel)
def _compose_work(launch: Launch) -> Work:
    a, (images, tiles, _) = launch.arguments, launch.grid
    steps = triton.cdiv(a["channels"] // a["heads"], a["BLOCK_I"])
    q, k = (a["spot"] >= 0).view(2, a["heads"], -1).sum(2)
    batch, matrix = images // a["heads"], size(a["project_out"])
    sums, tables = 4 * batch * int((q * k + q + k).sum()), size(a["temperature"], a["order"], a["spot"])
    return Work(
        read=sums + tables + matrix,
        written=size(a["weight"]),
        fetched=tiles * (sums + batch * tables) + batch * matrix,
        macs=images * tiles * steps * a["BLOCK_I"] * a["BLOCK_J"] * a["BLOCK_O"]
        if a["weight"].itemsize < 4
        else 0,
        trips=(images * tiles * steps,),
    )


def _rows_of(slot: Tensor, taps: Tensor, bias: Tensor | None, rows: Tensor, step: int = STEP) -> Taps:
    """The taps of these channels, of nothing where -1."""
    none = rows < 0
    weight = taps[rows].masked_fill(none[:, None], 0)
    bias = None if bias is None else bias[rows].masked_fill(none, 0)
    return Taps(slot[rows].masked_fill(none, -1), weight, bias, step=step)


class TritonMDTA(Packed):
    """The surviving weights of one MDTA for the Triton kernels; arguments as in `reference`.

    Dead channels of q, k and v are neither computed nor stored; a dead q or k still counts in the softmax, as a logit of 0.
    Activations are of ``dtype`` (float16, bfloat16 or float32), sums float32.
    """

    offset: Tensor
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
        self.qk, self.v, self.qkv = (pack_panels(scaled[rows], dtype) for rows in (ahead, behind, live))
        self.register_buffer("offset", offset[live])
        self.ahead = int(ahead.sum())
        slot = torch.where(ahead, slots(ahead), slots(behind))
        tap_bias = None if biases[1] is None else biases[1].detach().float()
        felt = live if tap_bias is None else live | (tap_bias != 0)  # not zero everywhere
        q, k = (list(half.view(self.heads, -1)) for half in felt.chunk(3)[:2])
        most = [max(1, *(int(head.sum()) for head in part)) for part in (q, k)]
        self.block = min(_GRAM, max(16, 1 << (max(most) - 1).bit_length()))
        self.blocks = [-(-n // self.block) for n in most]
        rows = []
        for first, blocks, part in zip((0, self.channels), self.blocks, (q, k), strict=True):
            for i, head in enumerate(part):
                rows.append(torch.full((blocks * self.block,), -1))
                rows[-1][: int(head.sum())] = first + i * self.channels // self.heads + head.nonzero()[:, 0]
        self.taps = _rows_of(slot, taps, tap_bias, torch.cat(rows), self.block)
        self.register_buffer("spot", torch.cat([slots(head) for head in q + k]).int())
        # v that is zero everywhere is left out of the last product.
        v = felt[2 * self.channels :].nonzero()[:, 0]
        # Those of about as many taps side by side: a step of the kernel takes as long as the one with most.
        v = v[taps[2 * self.channels + v].count_nonzero(1).argsort(stable=True)]
        self.count = len(v)
        self.register_buffer(
            "order", torch.full((self.channels,), -1).index_put((v,), torch.arange(len(v))).int()
        )
        self.v_taps = _rows_of(slot, taps, tap_bias, v + 2 * self.channels)
        self.register_buffer("temperature", temperature.detach().float().flatten())
        self.register_buffer("project_out", out.to(dtype))
        self.register_buffer("bias", None if biases[2] is None else biases[2].detach().float())

    def forward(self, x: Tensor, y: Tensor | None = None, shares: int = 0) -> Tensor:
        """x (B, C, H, W) of ``dtype`` to the same shape, written into ``y``, which is not x, if given; Gram matrices are summed up in
        ``shares`` parts, or as many as there are processors for."""
        y = self.check(x, self.channels, y, x.shape)
        batch, channels, _, width = x.shape
        inner = channels // self.heads
        # v as well, by the same pass, if one strip has room for all.
        whole = all(len(strips(x, n, self.dtype)) == 1 for n in (self.ahead, len(self.offset)))
        planes, parts = hidden(x, len(self.offset) if whole else self.ahead, self.dtype)
        taps, block, images, (q_blocks, k_blocks) = self.taps, self.block, batch * self.heads, self.blocks
        shares = shares or max(1, processors() // (images * q_blocks * k_blocks))
        span = triton.cdiv(parts[0].rows * width, _PIXELS * shares) * _PIXELS  # pixels of a share
        shares = triton.cdiv(parts[0].rows * width, span)
        n, m = q_blocks * block, k_blocks * block
        size = images * (n * m + n + m)
        sums = kept(  # the next block's are summed up there as well, so that the cache keeps them
            "sums",
            lambda: torch.empty(shares * size, dtype=torch.float32, device=x.device),
            lambda found: len(found) >= shares * size,
        )[: shares * size].view(shares, size)
        for strip in parts:
            if whole:
                self._project(x, planes, self.qkv, self.offset, strip)
            else:
                self._project(x, planes, self.qk, self.offset[: self.ahead], strip)
            launch(
                gram_kernel, lambda sizes: (shares, images, q_blocks * k_blocks),
                planes, *taps.tables(width, planes.stride(1)), sums, size,
                planes.stride(0), strip.rows * width, width, self.heads, q_blocks, k_blocks, span,
                FIRST=strip.first == 0, TAP_BIAS=taps.bias is not None, BLOCK_C=block, PAD=PAD, PRECISION="ieee",
                tiles=[Tile({"BLOCK_P": p}, warps) for p, warps in ((_PIXELS, 8), (_PIXELS, 16), (_PIXELS // 2, 8))],
            )  # fmt: skip
        summed = torch.empty(size, dtype=torch.float32, device=x.device)
        launch(
            sum_kernel, lambda sizes: (triton.cdiv(size, sizes["BLOCK"]), 1, 1),
            sums, summed, shares, size, BLOCK_S=16, tiles=[Tile({"BLOCK": 64}, 4)],
        )  # fmt: skip
        weight = x.new_empty(batch, self.count, channels)
        wide = max(16, triton.next_power_of_2(inner))
        launch(
            compose_kernel, lambda sizes: (images, triton.cdiv(channels, sizes["BLOCK_O"]), 1),
            summed, self.spot, self.temperature, self.project_out, weight, self.order,
            channels, self.heads, n, m, self.count,
            BLOCK_I=16, BLOCK_J=wide, PRECISION="ieee",
            tiles=[Tile({"BLOCK_O": o}, 8 if wide > 64 else 4) for o in (16, 8)],
        )  # fmt: skip
        if whole:
            mix(planes, self.v_taps, weight, self.bias, x, y, gate=False, strip=parts[0], before=self.ahead)
            return y
        planes, parts = hidden(x, len(self.offset) - self.ahead, self.dtype)
        for strip in parts:
            self._project(x, planes, self.v, self.offset[self.ahead :], strip)
            mix(planes, self.v_taps, weight, self.bias, x, y, gate=False, strip=strip)
        return y

    def _project(self, x: Tensor, planes: Tensor, matrix: Panels, offset: Tensor, strip: Strip) -> None:
        if len(offset):
            project(x, planes, matrix, offset, norm=True, centred=self.centred, strip=strip)
