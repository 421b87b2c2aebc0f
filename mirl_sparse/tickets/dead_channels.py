"""Remove what cannot reach the result of a pruned network."""

from __future__ import annotations

import torch
from torch import Tensor

from mirl_kernels.ops.gdfn import live_pairs
from mirl_kernels.ops.mdta import live_channels
from mirl_sparse.architectures.promptir.network import GDFN, MDTA, PromptIR, TransformerBlock


@torch.no_grad()
def remove_dead_channels(network: PromptIR) -> int:
    """Set to zero, exactly, every weight that cannot reach the result; the network's answers do not change.

    In GDFN a pair of hidden channels dies with either half or with its reader; for MDTA see `live_channels`.

    Args:
        network: Changed in place.

    Returns:
        How many weights were not zero and are now.
    """
    return sum(
        _clear_gdfn(block.ffn) + _clear_mdta(block.attn)
        for block in network.modules()
        if isinstance(block, TransformerBlock)
    )


def _clear_gdfn(ffn: GDFN) -> int:
    weights = ffn.project_in.weight, ffn.dwconv.weight, ffn.project_out.weight
    dead = torch.ones(ffn.project_out.weight.shape[1], dtype=torch.bool)
    dead[live_pairs(*weights)] = False
    halves = dead.repeat(2)
    return (
        _clear(ffn.project_in.weight, halves)
        + _clear(ffn.dwconv.weight, halves)
        + _clear(ffn.project_out.weight.transpose(0, 1), dead)
    )


def _clear_mdta(attn: MDTA) -> int:
    heads, width = attn.temperature.shape[0], attn.qkv.weight.shape[1]
    live = live_channels(attn.qkv.weight, attn.qkv_dwconv.weight, attn.project_out.weight, heads)
    dead = torch.ones(attn.qkv.weight.shape[0], dtype=torch.bool)
    for i, index in enumerate(live):
        dead[index + i * width] = False
    # A head without a live v adds nothing, so nothing reads it.
    mute = torch.ones(heads, attn.project_out.weight.shape[1] // heads, dtype=torch.bool)
    mute[live[2] // mute.shape[1]] = False
    return (
        _clear(attn.qkv.weight, dead)
        + _clear(attn.qkv_dwconv.weight, dead)
        + _clear(attn.project_out.weight.transpose(0, 1), mute.flatten())
    )


def _clear(weight: Tensor, dead: Tensor) -> int:
    """Set rows of a weight to zero; return how many of their entries were not."""
    removed = int((weight[dead] != 0).sum())
    weight[dead] = 0
    return removed
