"""Make examples of the linear layer."""

from __future__ import annotations

import torch

from mirl_kernels.ops.examples import Example, sparse_weight


def example(channels: int, density: float, generator: torch.Generator | None = None) -> Example:
    """Return the random weight of a linear layer that keeps the number of channels.

    Args:
        channels: Channels of a token.
        density: Density of the weight, 0 to 1.
        generator: The source of random numbers; None for PyTorch's default.
    """
    return Example((sparse_weight(density, channels, channels, generator=generator),))
