"""Make examples of NAFNet's block."""

from __future__ import annotations

import torch

from mirl_kernels.ops.examples import Example, sparse_weight

_EPS = 1e-6  # as in NAFNet


def example(channels: int, density: float, generator: torch.Generator | None = None) -> Example:
    """Return random weights of one block with as many pairs of hidden channels as channels, without biases.

    Args:
        channels: Channels of x.
        density: Density of the convolutions, 0 to 1.
        generator: The source of random numbers; None for PyTorch's default.
    """
    shapes = (
        (2 * channels, channels, 1, 1),
        (2 * channels, 1, 3, 3),
        (channels, channels, 1, 1),
        (channels, channels, 1, 1),
        (2 * channels, channels, 1, 1),
        (channels, channels, 1, 1),
    )
    weights = [sparse_weight(density, *shape, generator=generator) for shape in shapes]
    norm = (torch.ones(channels), torch.zeros(channels), _EPS)
    scale = torch.ones(channels)
    return Example(([norm, norm], weights, [None] * len(shapes), scale, scale))
