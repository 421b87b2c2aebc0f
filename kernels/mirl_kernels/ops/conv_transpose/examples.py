"""Make examples of the transposed convolution."""

from __future__ import annotations

import torch

from mirl_kernels.ops.examples import Example, sparse_weight


def example(channels: int, density: float, generator: torch.Generator | None = None) -> Example:
    """Return the random weight of a 2x2 transposed convolution to half the channels, with stride 2.

    Args:
        channels: Channels of x.
        density: Density of the weight, 0 to 1.
        generator: The source of random numbers; None for PyTorch's default.
    """
    weight = sparse_weight(density, channels, channels // 2, 2, 2, generator=generator)
    return Example((weight,), {"stride": 2})
