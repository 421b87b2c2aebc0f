"""Bring pruned weights back."""

from __future__ import annotations

import torch
from torch import nn

from mirl_training.pruning.mask import MaskError, matching_names, prunable_names


@torch.no_grad()
def regrow(network: nn.Module, source: nn.Module, patterns: tuple[str, ...]) -> None:
    """Give a network the values of another one where it has zeros.

    Args:
        network: The network, which is changed in place.
        source: A network of the same architecture and size.
        patterns: Shell wildcards; prunable parameters whose name matches one of them are regrown.

    Raises:
        MaskError: The two networks differ in their parameters, or a pattern matches no name.
    """
    if _shapes(network) != _shapes(source):
        raise MaskError("regrow.source is a network of another shape than start; expected the same")
    for name in matching_names(prunable_names(network), patterns, "regrow.layers"):
        p = network.get_parameter(name)
        p.copy_(torch.where(p == 0, source.get_parameter(name), p))


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in network.named_parameters()}
