"""Run MDTA on GPUs in five kernels.

They are: the norm with qkv; the taps of q and k with their Gram matrix and norms, summed in shares; the sum
of the shares; the attention composed with project_out, which is linear behind it; and that matrix applied to
the tapped v, with the residual. q, k and v are written once and read once, in memory or, strip by strip, in
the cache alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirl_kernels.core.triton import (
    PAD,
    Launch,
    Packed,
    RowGroups,
    Strip,
    Tile,
    Work,
    Workspace,
    as_type,
    counts_work_of,
    hidden_planes,
    launch,
    nbytes,
    pack_row_groups,
    split_into_strips,
)
from mirl_kernels.core.triton.dependent import after_previous
from mirl_kernels.core.triton.finite import finite
from mirl_kernels.core.triton.product import place_in_plane, project
from mirl_kernels.core.triton.taps import (
    STEP,
    Taps,
    depthwise_work,
    flat,
    in_lanes,
    mix,
    slots,
    step_for,
    two_depthwise,
)
from mirl_kernels.ops.gdfn import live_after_taps

# The most channels each way of the block of a Gram matrix that a program sums up, and half of the most pixels
# that it works on at a time.
_GRAM, _PIXELS = 64, 64
_SHARES = 128  # shares of Gram matrices that a program loads at a time, at most


@triton.jit
def _stacked(a, b):
    """Return the rows of a, and those of b below."""
    return tl.reshape(tl.permute(tl.join(a, b), (2, 0, 1)), [2 * a.shape[0], a.shape[1]])


@triton.jit
def _tapped_step(hidden, offset, taps, bias, most, q, k, at, BIAS: tl.constexpr, TAPS: tl.constexpr):
    """Return the tapped channels of a step of q and of a step of k, (channels, pixels), of ``most`` taps."""
    a, b = two_depthwise(hidden, offset, taps, bias, most, q, k, at, BIAS, TAPS)
    return flat(a), flat(b)


@triton.jit
def gram_kernel(
    hidden,
    most,
    offset,
    taps,
    tap_bias,
    sums,
    total_size,
    hidden_batch,
    pixels,
    width,
    heads,
    q_blocks,
    k_blocks,
    span,
    FIRST: tl.constexpr,
    TAP_BIAS: tl.constexpr,
    STEP: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    TAPS: tl.constexpr,
    PAD: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Sum q k^T, q^2 and k^2 over ``span`` of a strip's pixels, and add the sums of the strips before.

    FIRST says that there are no strips before. sums (S, total_size) has a row for each of the S shares of the
    pixels. A row is q k^T, (B, heads, n, m), then q^2, (B, heads, n), then k^2, (B, heads, m). The tables
    have n = q_blocks * BLOCK_C rows of q for each head, and behind all of these m = k_blocks * BLOCK_C rows
    of k. Of the steps of a block only the first STEPS have channels. The grid is (S, B * heads, blocks of q
    times blocks of k).
    """
    after_previous(PDL)
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
    # One program of those with the same q block, and of those with the same k block, stores the squares.
    stores_q, stores_k = (
        tl.full([BLOCK_C], k_block, tl.int32) == 0,
        tl.full([BLOCK_C], q_block, tl.int32) == 0,
    )
    total = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    if not FIRST:
        total = tl.load(products)
    q_norm = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)  # summed up once, at the end
    k_norm = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    tile_q, tile_k = q_block + head * q_blocks, head * k_blocks + k_block + heads * q_blocks
    rows_q, rows_k = tile_q * BLOCK_C + tl.arange(0, STEP), tile_k * BLOCK_C + tl.arange(0, STEP)
    # Every step of channels has a loop over its taps, since steps differ in their number.
    step_q, step_k = tile_q * (BLOCK_C // STEP), tile_k * (BLOCK_C // STEP)
    most_0 = tl.maximum(tl.load(most + step_q), tl.load(most + step_k))
    if BLOCK_C > STEP:
        most_1 = tl.maximum(tl.load(most + step_q + 1), tl.load(most + step_k + 1))
    if STEPS > 2:
        most_2 = tl.maximum(tl.load(most + step_q + 2), tl.load(most + step_k + 2))
    if STEPS > 3:
        most_3 = tl.maximum(tl.load(most + step_q + 3), tl.load(most + step_k + 3))
    for first in range(share * span, (share + 1) * span, BLOCK_P):
        pixel = first + tl.arange(0, BLOCK_P)
        inside = pixel < pixels
        # Outside the strip, read what is between two rows, where all is zero.
        place = tl.where(inside, place_in_plane(width + pixel, width, PAD), width + PAD + PAD // 2)
        at = in_lanes(place, BLOCK_P)
        q, k = _tapped_step(hidden, offset, taps, tap_bias, most_0, rows_q, rows_k, at, TAP_BIAS, TAPS)
        if BLOCK_C > STEP:
            q1, k1 = _tapped_step(
                hidden, offset, taps, tap_bias, most_1, rows_q + STEP, rows_k + STEP, at, TAP_BIAS, TAPS
            )
            q, k = _stacked(q, q1), _stacked(k, k1)
        if BLOCK_C > 2 * STEP:
            third_q, third_k = rows_q + 2 * STEP, rows_k + 2 * STEP
            q2, k2 = _tapped_step(
                hidden, offset, taps, tap_bias, most_2, third_q, third_k, at, TAP_BIAS, TAPS
            )
            q3, k3 = tl.zeros_like(q2), tl.zeros_like(k2)
            if STEPS > 3:
                fourth_q, fourth_k = third_q + STEP, third_k + STEP
                q3, k3 = _tapped_step(
                    hidden, offset, taps, tap_bias, most_3, fourth_q, fourth_k, at, TAP_BIAS, TAPS
                )
            q, k = _stacked(q, _stacked(q2, q3)), _stacked(k, _stacked(k2, k3))
        if TAP_BIAS:
            q, k = tl.where(inside[None, :], q, 0.0), tl.where(inside[None, :], k, 0.0)
        q_norm += q * q
        k_norm += k * k
        kind = hidden.dtype.element_ty
        total = tl.dot(finite(q, kind), tl.trans(finite(k, kind)), total, input_precision=PRECISION)
    tl.store(products, total)
    q_sum, k_sum = tl.sum(q_norm, 1), tl.sum(k_norm, 1)
    if not FIRST:
        q_sum += tl.load(q_squares, stores_q, 0.0)
        k_sum += tl.load(k_squares, stores_k, 0.0)
    tl.store(q_squares, q_sum, stores_q)
    tl.store(k_squares, k_sum, stores_k)


@triton.jit(do_not_specialize=["shares"])  # a loop's end
def sum_kernel(sums, result, shares, size, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Compute the sum (size,) of the rows of sums (shares, size). The grid is (tiles,)."""
    after_previous(PDL)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK_S, BLOCK], tl.float32)
    for first in range(0, shares, BLOCK_S):
        share = first + tl.arange(0, BLOCK_S)
        here = (share < shares)[:, None] & (at < size)[None, :]
        total += tl.load(sums + share[:, None] * size + at[None, :], here, 0.0)
    tl.store(result + at, tl.sum(total, 0), at < size)


@counts_work_of(sum_kernel)
def _sum_work(launch: Launch) -> Work:
    a = launch.arguments
    return Work(
        read=nbytes(a["sums"]),
        written=nbytes(a["result"]),
        fetched=nbytes(a["sums"]),
        macs=0,
        trips=(launch.grid[0] * triton.cdiv(a["shares"], a["BLOCK_S"]),),
        hidden=nbytes(a["sums"]),
        buffer=nbytes(a["sums"]),
    )


@counts_work_of(gram_kernel)
def _gram_work(launch: Launch) -> Work:
    a, (shares, images, pairs) = launch.arguments, launch.grid
    heads, block, pixels = a["heads"], a["BLOCK_C"], a["BLOCK_P"]
    batch, steps = images // heads, shares * a["span"] // pixels
    rows = [heads * a[name] * block for name in ("q_blocks", "k_blocks")]
    beyond = shares * a["span"] > a["pixels"]
    loops, loaded = _gram_loops(a)
    halves = [
        depthwise_work(a, half, n, STEP, beyond)
        for half, n in zip(torch.arange(sum(rows)).split(rows), loaded, strict=True)
    ]
    repeats = a["k_blocks"], a["q_blocks"]  # every block of q is multiplied by so many of k, and of k by q
    features, before = batch * sum(half.image for half in halves), 0 if a["FIRST"] else nbytes(a["sums"])
    tables = [half.tables + 4 * len(n) for half, n in zip(halves, loaded, strict=True)]
    fetched = (
        n * (steps * pixels * half.pixel + shares * table)
        for n, half, table in zip(repeats, halves, tables, strict=True)
    )
    return Work(
        read=features + sum(tables) + before,
        written=nbytes(a["sums"]),
        fetched=batch * sum(fetched) + before,
        macs=steps * images * pairs * block * block * pixels,
        trips=(steps * images * pairs, *(batch * steps * trips for trips in loops)),
        hidden=features + before + nbytes(a["sums"]),
        buffer=max(nbytes(a["hidden"]), nbytes(a["sums"])),
    )


def _gram_loops(a: dict[str, Any]) -> tuple[list[int], tuple[list[int], list[int]]]:
    """Return the trips of the loops over the taps, and how many taps each step of q and of k loads.

    The trips are those of all blocks of an image at BLOCK_P pixels. The taps are the most that a step of q
    loads with any step of k, and the other way round.
    """
    heads, q_blocks, k_blocks, steps = a["heads"], a["q_blocks"], a["k_blocks"], a["BLOCK_C"] // STEP
    q, k = a["most"].split([heads * q_blocks * steps, heads * k_blocks * steps])
    most = torch.maximum(q.view(heads, q_blocks, 1, steps), k.view(heads, 1, k_blocks, steps))
    trips = (most + a["TAPS"] - 1) // a["TAPS"]
    loaded = (a["TAPS"] * trips.amax(side).flatten() for side in (2, 1))
    return trips.sum((0, 1, 2))[: a["STEPS"]].tolist(), tuple(n.tolist() for n in loaded)


@triton.jit
def compose_kernel(
    sums,
    place,
    temperature,
    project_out,
    weight,
    order,
    channels,
    heads,
    n,
    m,
    count,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute project_out @ softmax(temperature * q k^T) of normalised q and k.

    The result is weight (B, count, C). Its row ``order[c]`` is the column of channel c of v; order is -1 for
    a v that is zero. place (2, C) says where each q and each k is in its head's sums; it is -1 for one that
    is zero, whose logits are 0. project_out (C, C) is of weight's type. The grid is (B * heads, tiles of
    outputs).
    """
    after_previous(PDL)
    image = tl.program_id(0)
    batch, head = image // heads, image % heads
    inner = channels // heads
    j = tl.arange(0, BLOCK_J)
    at_j = tl.load(place + channels + head * inner + j, j < inner, -1)
    out = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    head_temperature = tl.load(temperature + head)
    images = tl.num_programs(0)
    gram = sums + image * n * m
    q_squares, k_squares = sums + images * n * m + image * n, sums + images * n * (m + 1) + image * m
    k_norm = tl.maximum(tl.sqrt(tl.load(k_squares + at_j, at_j >= 0, 0.0)), 1e-12)
    total = tl.zeros([BLOCK_J, BLOCK_O], tl.float32)
    for first in range(0, inner, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        at_i = tl.load(place + head * inner + i, i < inner, -1)
        q_norm = tl.maximum(tl.sqrt(tl.load(q_squares + at_i, at_i >= 0, 0.0)), 1e-12)
        logits = tl.load(
            gram + at_i[:, None] * m + at_j[None, :], (at_i >= 0)[:, None] & (at_j >= 0)[None, :], 0.0
        )
        logits = logits / q_norm[:, None] / k_norm[None, :] * head_temperature
        logits = tl.where((j < inner)[None, :], logits, float("-inf"))
        attention = tl.exp(logits - tl.max(logits, 1)[:, None])
        known = (i < inner)[:, None] & (j < inner)[None, :]
        attention = tl.where(known, attention / tl.sum(attention, 1)[:, None], 0.0)
        known = (i < inner)[:, None] & (out < channels)[None, :]
        rows = tl.load(project_out + out[None, :] * channels + head * inner + i[:, None], known, 0.0)
        total = tl.dot(tl.trans(attention).to(rows.dtype), rows, total, input_precision=PRECISION)
    at = tl.load(order + head * inner + j, j < inner, -1)
    to = weight + batch.to(tl.int64) * count * channels + at[:, None] * channels + out[None, :]
    tl.store(to, finite(total, weight.dtype.element_ty), (at >= 0)[:, None] & (out < channels)[None, :])


@counts_work_of(compose_kernel)
def _compose_work(launch: Launch) -> Work:
    a, (images, tiles, _) = launch.arguments, launch.grid
    steps = triton.cdiv(a["channels"] // a["heads"], a["BLOCK_I"])
    q, k = (a["place"] >= 0).view(2, a["heads"], -1).sum(2)
    batch, matrix = images // a["heads"], nbytes(a["project_out"])
    sums, tables = 4 * batch * int((q * k + q + k).sum()), nbytes(a["temperature"], a["order"], a["place"])
    macs = images * tiles * steps * a["BLOCK_I"] * a["BLOCK_J"] * a["BLOCK_O"]
    return Work(
        read=sums + tables + matrix,
        written=nbytes(a["weight"]),
        fetched=tiles * (sums + batch * tables) + batch * matrix,
        macs=macs if a["weight"].itemsize < 4 else 0,
        trips=(images * tiles * steps,),
    )


def _rows_of(slot: Tensor, taps: Tensor, bias: Tensor | None, rows: Tensor, step: int = STEP) -> Taps:
    """Return the taps of some channels, with none where a row is -1."""
    none = rows < 0
    weight = taps[rows].masked_fill(none[:, None], 0)
    bias = None if bias is None else bias[rows].masked_fill(none, 0)
    return Taps(slot[rows].masked_fill(none, -1), weight, bias, step=step)


@dataclass(frozen=True)
class _Sums:
    """The memory for the sums of q k^T, q^2 and k^2 of a batch.

    ``tensor`` is (shares, size), ``images`` the batch times the heads, ``n`` and ``m`` the rows of q and k of
    each head with padding, and ``span`` the pixels of a share.
    """

    tensor: Tensor
    images: int
    n: int
    m: int
    span: int


_GRAM_TILES = [
    Tile({"BLOCK_P": pixels, "TAPS": taps}, warps)
    for pixels, taps, warps in (
        (2 * _PIXELS, 2, 8),
        (2 * _PIXELS, 2, 16),
        (2 * _PIXELS, 1, 8),
        (_PIXELS, 2, 8),
        (_PIXELS, 1, 8),
        (_PIXELS, 2, 16),
        (_PIXELS // 2, 1, 8),
    )
]


class TritonMDTA(Packed):
    """Hold the surviving weights of one MDTA for the Triton kernels.

    The arguments are those of `reference`. Dead channels of q, k and v are neither computed nor stored. A
    dead q or k still counts in the softmax, as a logit of 0.

    Args:
        norm_weight: (C,).
        norm_bias: (C,), or None for a norm that does not subtract the mean.
        qkv: (3 * C, C, 1, 1).
        dwconv: (3 * C, 1, 3, 3).
        temperature: (heads, 1, 1).
        project_out: (C, C, 1, 1).
        biases: Those of qkv, dwconv and project_out.
        dtype: The type of activations and weights: float16, bfloat16 or float32. Sums are float32.
    """

    offset: Tensor
    place: Tensor
    order: Tensor
    temperature: Tensor
    project_out: Tensor
    bias: Tensor | None

    def __init__(
        self,
        norm_weight: Tensor,
        norm_bias: Tensor | None,
        qkv: Tensor,
        dwconv: Tensor,
        temperature: Tensor,
        project_out: Tensor,
        biases: Sequence[Tensor | None] = (None, None, None),
        dtype: torch.dtype = torch.float16,
    ) -> None:
        super().__init__(dtype)
        fan_in, taps, out = (w.detach().float().flatten(1) for w in (qkv, dwconv, project_out))
        self.channels, self.heads, self.centred = len(out), len(temperature), norm_bias is not None
        live = live_after_taps(fan_in, taps, biases[0], None)
        live_qk, live_v = live.clone(), live.clone()
        live_qk[2 * self.channels :] = False
        live_v[: 2 * self.channels] = False
        offset = torch.zeros(len(fan_in)) if biases[0] is None else biases[0].detach().float()
        if norm_bias is not None:
            offset = offset + fan_in @ norm_bias.detach().float()
        scaled = fan_in * norm_weight.detach().float()
        self.qk, self.v, self.qkv = (pack_row_groups(scaled[rows], dtype) for rows in (live_qk, live_v, live))
        self.register_buffer("offset", offset[live])
        self.qk_count = int(live_qk.sum())
        slot = torch.where(live_qk, slots(live_qk), slots(live_v))
        tap_bias = None if biases[1] is None else biases[1].detach().float()
        nonzero = live if tap_bias is None else live | (tap_bias != 0)  # behind the taps
        self._pack_qk(slot, taps, tap_bias, nonzero)
        self._pack_v(slot, taps, tap_bias, nonzero)
        self.register_buffer("temperature", temperature.detach().float().flatten())
        self.register_buffer("project_out", as_type(out, dtype))
        self.register_buffer("bias", None if biases[2] is None else biases[2].detach().float())

    def _pack_qk(self, slot: Tensor, taps: Tensor, tap_bias: Tensor | None, nonzero: Tensor) -> None:
        """Make the taps of q and k, head by head, and the places of their channels in the heads' sums.

        Channels of about as many taps are side by side, those of most taps first, since a step takes as long
        as its channel of most taps.
        """
        q, k = (list(part.view(self.heads, -1)) for part in nonzero.chunk(3)[:2])
        most = [max(1, *(int(head.sum()) for head in part)) for part in (q, k)]
        self.block = min(_GRAM, max(16, 1 << (max(most) - 1).bit_length()))
        self.blocks = [-(-n // self.block) for n in most]
        self.steps = -(-min(max(most), self.block) // STEP)
        rows, places = [], []
        for first, blocks, part in zip((0, self.channels), self.blocks, (q, k), strict=True):
            for i, head in enumerate(part):
                start = first + i * self.channels // self.heads
                live = head.nonzero()[:, 0]
                counts = taps[start + live].count_nonzero(1)
                live = live[counts.argsort(descending=True, stable=True)]
                rows.append(torch.full((blocks * self.block,), -1))
                rows[-1][: len(live)] = start + live
                places.append(torch.full((len(head),), -1).index_put((live,), torch.arange(len(live))))
        self.qk_taps = _rows_of(slot, taps, tap_bias, torch.cat(rows))
        self.register_buffer("place", torch.cat(places).int())

    def _pack_v(self, slot: Tensor, taps: Tensor, tap_bias: Tensor | None, nonzero: Tensor) -> None:
        """Make the taps of v and the order of its channels, without those that are zero everywhere.

        Channels of about as many taps are side by side, since a step of the kernel takes as long as the one
        with most.
        """
        v = nonzero[2 * self.channels :].nonzero()[:, 0]
        v = v[taps[2 * self.channels + v].count_nonzero(1).argsort(stable=True)]
        self.v_count = len(v)
        order = torch.full((self.channels,), -1).index_put((v,), torch.arange(len(v)))
        self.register_buffer("order", order.int())
        self.v_taps = _rows_of(slot, taps, tap_bias, v + 2 * self.channels, step_for(len(v)))

    def forward(
        self, x: Tensor, y: Tensor | None = None, workspace: Workspace | None = None, shares: int = 0
    ) -> Tensor:
        """Return x plus the MDTA of x.

        Args:
            x: (B, C, H, W) of ``dtype``.
            y: The tensor to write to, which must not be x, or None for a new one.
            workspace: What it shares with other ops; by default a workspace of its own.
            shares: In how many parts Gram matrices are summed up; 0 for as many as there are processors for.
        """
        y = self.checked_output(x, self.channels, y, x.shape)
        qk, qkv, workspace = self.qk_count, len(self.offset), workspace or Workspace()
        # If one strip has room for q, k and v, they are computed in one pass.
        one_pass = all(len(split_into_strips(x, n, self.dtype, workspace)) == 1 for n in (qk, qkv))
        planes, strips = hidden_planes(x, qkv if one_pass else qk, self.dtype, workspace)
        sums = self._sums(x, strips[0].rows * x.shape[3], shares, workspace)
        for strip in strips:
            if one_pass:
                self._project(x, planes, self.qkv, self.offset, strip, workspace)
            else:
                self._project(x, planes, self.qk, self.offset[:qk], strip, workspace)
            self._add_gram(planes, x.shape[3], sums, strip, workspace)
        weight = self._compose(x, sums, workspace)
        if one_pass:
            mix(planes, self.v_taps, weight, self.bias, x, y, False, strips[0], workspace, slots_before=qk)
            return y
        planes, strips = hidden_planes(x, qkv - qk, self.dtype, workspace)
        for strip in strips:
            self._project(x, planes, self.v, self.offset[qk:], strip, workspace)
            mix(planes, self.v_taps, weight, self.bias, x, y, False, strip, workspace)
        return y

    def _project(
        self,
        x: Tensor,
        planes: Tensor,
        matrix: RowGroups,
        offset: Tensor,
        strip: Strip,
        workspace: Workspace,
    ) -> None:
        if len(offset):
            project(x, planes, matrix, workspace, offset, True, self.centred, strip)

    def _sums(self, x: Tensor, pixels: int, shares: int, workspace: Workspace) -> _Sums:
        """Return memory for the sums over strips of so many pixels."""
        q_blocks, k_blocks = self.blocks
        images, n, m = len(x) * self.heads, q_blocks * self.block, k_blocks * self.block
        shares = shares or max(1, workspace.processors // (images * q_blocks * k_blocks))
        span = triton.cdiv(pixels, _PIXELS * shares) * _PIXELS
        if span > 2 * _PIXELS:
            span = triton.cdiv(span, 2 * _PIXELS) * 2 * _PIXELS
        shares = triton.cdiv(pixels, span)
        size = images * (n * m + n + m)
        flat = workspace.tensor(  # the next block sums up in the same memory, so that the cache keeps it
            "sums",
            lambda: torch.empty(shares * size, dtype=torch.float32, device=x.device),
            lambda tensor: len(tensor) >= shares * size,
        )
        return _Sums(flat[: shares * size].view(shares, size), images, n, m, span)

    def _add_gram(self, planes: Tensor, width: int, sums: _Sums, strip: Strip, workspace: Workspace) -> None:
        """Add the sums of one strip."""
        (shares, size), (q_blocks, k_blocks) = sums.tensor.shape, self.blocks
        tiles = [tile for tile in _GRAM_TILES if sums.span % tile.sizes["BLOCK_P"] == 0]
        launch(
            workspace,
            gram_kernel,
            lambda sizes: (shares, sums.images, q_blocks * k_blocks),
            *(planes, *self.qk_taps.tables(width, planes.stride(1), workspace)[1:], sums.tensor, size),
            *(planes.stride(0), strip.rows * width, width, self.heads, q_blocks, k_blocks, sums.span),
            FIRST=strip.first == 0,
            TAP_BIAS=self.qk_taps.bias is not None,
            STEP=STEP,
            STEPS=self.steps,
            BLOCK_C=self.block,
            PAD=PAD,
            PRECISION="ieee",
            tiles=tiles,
        )

    def _compose(self, x: Tensor, sums: _Sums, workspace: Workspace) -> Tensor:
        """Return the attention composed with project_out, (B, count, C)."""
        (shares, size), channels = sums.tensor.shape, x.shape[1]
        total = torch.empty(size, dtype=torch.float32, device=x.device)
        launch(
            workspace,
            sum_kernel,
            lambda sizes: (triton.cdiv(size, sizes["BLOCK"]), 1, 1),
            *(sums.tensor, total, shares, size),
            BLOCK_S=min(_SHARES, triton.next_power_of_2(shares)),
            tiles=[Tile({"BLOCK": 64}, 4)],
        )
        weight = x.new_empty(len(x), self.v_count, channels)
        block = max(16, triton.next_power_of_2(channels // self.heads))
        launch(
            workspace,
            compose_kernel,
            lambda sizes: (sums.images, triton.cdiv(channels, sizes["BLOCK_O"]), 1),
            *(total, self.place, self.temperature, self.project_out, weight, self.order),
            *(channels, self.heads, sums.n, sums.m, self.v_count),
            BLOCK_I=16,
            BLOCK_J=block,
            PRECISION="ieee",
            tiles=[Tile({"BLOCK_O": o}, 8 if block > 64 else 4) for o in (16, 8)],
        )
        return weight
