"""Find the channels of q, k and v of an MDTA that must be computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mirl_kernels.ops.gdfn.liveness import live_after_taps


def live_channels(
    qkv: Tensor,
    dwconv: Tensor,
    project_out: Tensor,
    heads: int,
    biases: Sequence[Tensor | None] = (None, None, None),
) -> list[Tensor]:
    """Return the channels of q, of k and of v that must be computed.

    A v channel that is zero everywhere is dropped. The logits of a zero q or k channel are 0 and still count
    in the softmax, so only the computation of that channel is dropped. A q channel is also dropped if no
    output reads its row of the attention. All of a head is dropped if no output reads it or if all its v
    channels are zero. If all q or all k channels of a head are zero, its logits are zero, and the others are
    dropped.

    Args:
        qkv: (3C, C, ...) weight.
        dwconv: (3C, ...) weight.
        project_out: (C, C, ...) weight.
        heads: Number of heads, contiguous groups of channels.
        biases: Biases of the three convolutions.

    Returns:
        Three lists of channels, 0 to C - 1, each sorted.
    """
    q, k, v = live_after_taps(qkv, dwconv, biases[0], biases[1]).view(3, heads, -1)
    read = (project_out.flatten(1) != 0).any(0).view(heads, -1)
    v = v & read.any(1, keepdim=True)
    q = q & read & v.any(1, keepdim=True)
    k = k & q.any(1, keepdim=True)
    q = q & k.any(1, keepdim=True)
    return [live.flatten().nonzero()[:, 0] for live in (q, k, v)]


def ordered_channels(
    qkv: Tensor,
    dwconv: Tensor,
    project_out: Tensor,
    heads: int,
    biases: Sequence[Tensor | None] = (None, None, None),
) -> tuple[list[Tensor], Tensor]:
    """Return `live_channels` in the order that suits the kernel, head by head.

    Args:
        qkv: (3C, C) weight.
        dwconv: (3C, 9) weight.
        project_out: (C, C) weight.
        heads: Number of heads.
        biases: Biases of the three convolutions.

    Returns:
        The channels of q, of k and of v, and the rows of qkv that compute them.
    """
    live, channels = live_channels(qkv, dwconv, project_out, heads, biases), len(project_out)
    counts = dwconv.count_nonzero(1).view(3, -1)
    for i, index in enumerate(
        live
    ):  # with loops of equal length side by side the processor foresees their ends
        live[i] = index[(index * heads // channels * 1000 + counts[i, index]).argsort(stable=True)]
    return live, torch.cat([index + i * channels for i, index in enumerate(live)])


def by_head(live: Sequence[Tensor], channels: int, heads: int) -> list[Tensor]:
    """Return how many live channels of q, of k and of v each head has: three times (heads,) int64."""
    return [torch.bincount(index * heads // channels, minlength=heads) for index in live]
