"""Make examples of the block of Swin transformers."""

from __future__ import annotations

import torch

from mirl_kernels.ops.examples import Example, sparse_weight

_EPS = 1e-5


def example(
    channels: int,
    density: float,
    generator: torch.Generator | None = None,
    *,
    window: int = 4,
    head_channels: int = 6,
    hidden: int = 2,
) -> Example:
    """Return random weights of one block, whose windows are shifted by half of their side, without biases.

    Args:
        channels: Channels of x, a multiple of ``head_channels``.
        density: Density of the four matrices, 0 to 1.
        generator: The source of random numbers; None for PyTorch's default.
        window: Side of a window.
        head_channels: Channels of a head.
        hidden: Hidden channels of the feed-forward layer, as a multiple of the channels.
    """
    sizes = (
        (3 * channels, channels),
        (channels, channels),
        (hidden * channels, channels),
        (channels, hidden * channels),
    )
    weights = [sparse_weight(density, *size, generator=generator) for size in sizes]
    norm = (torch.ones(channels), torch.zeros(channels), _EPS)
    position = torch.randn(channels // head_channels, window**2, window**2, generator=generator)
    options = {"window": window, "shift": window // 2}
    return Example(([norm, norm], weights, [None] * 4, position), options)
