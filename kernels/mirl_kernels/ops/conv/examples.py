"""Make examples of the convolution."""

from __future__ import annotations

import torch

from mirl_kernels.ops.examples import Example, sparse_weight


def example(channels: int, density: float, generator: torch.Generator | None = None) -> Example:
    """Return the random weight of a 3x3 convolution to half the channels, whose pixels are unshuffled by 2.

    Args:
        channels: Channels of x.
        density: Density of the weight, 0 to 1.
        generator: The source of random numbers; None for PyTorch's default.
    """
    weight = sparse_weight(density, channels // 2, channels, 3, 3, generator=generator)
    return Example((weight,), {"shuffle": -2})
