"""Make examples of LeFF."""

from __future__ import annotations

import torch

from mirl_kernels.ops.examples import Example, sparse_weight

_EPS = 1e-5


def example(
    channels: int,
    density: float,
    generator: torch.Generator | None = None,
    *,
    tap_density: float | None = None,
    hidden: int = 4,
) -> Example:
    """Return random weights of a LeFF without biases.

    Args:
        channels: Channels of x.
        density: Density of the linear layers, 0 to 1.
        generator: The source of random numbers; None for PyTorch's default.
        tap_density: Density of the depthwise convolution; None for the same.
        hidden: Hidden channels, as a multiple of the channels.
    """
    taps = density if tap_density is None else tap_density
    weights = [
        sparse_weight(density, hidden * channels, channels, generator=generator),
        sparse_weight(taps, hidden * channels, 1, 3, 3, generator=generator),
        sparse_weight(density, channels, hidden * channels, generator=generator),
    ]
    return Example(((torch.ones(channels), torch.zeros(channels), _EPS), weights), {})
