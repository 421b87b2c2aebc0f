"""Bring pruned weights back."""

from __future__ import annotations

import torch

from mirl_sparse.architectures.promptir import PromptIR
from mirl_training.pruning.mask import MaskError, matching_names, prunable_names


@torch.no_grad()
def regrow(network: PromptIR, source: PromptIR, patterns: tuple[str, ...]) -> None:
    """Give a network the values of another one where it has zeros.

    Args:
        network: The network, which is changed in place.
        source: A network of the same config.
        patterns: Shell wildcards; prunable parameters whose name matches one of them are regrown.

    Raises:
        MaskError: The two networks differ in their config, or a pattern matches no name.
    """
    if network.config != source.config:
        raise MaskError("regrow.source is a network of another shape than start; expected the same")
    for name in matching_names(prunable_names(network), patterns, "regrow.layers"):
        p = network.get_parameter(name)
        p.copy_(torch.where(p == 0, source.get_parameter(name), p))
