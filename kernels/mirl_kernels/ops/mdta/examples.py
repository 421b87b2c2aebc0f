"""Make examples of MDTA."""

from __future__ import annotations

import torch

from mirl_kernels.ops.examples import Example, sparse_weight

_HEAD = 48  # channels of a head, as in Restormer and PromptIR


def example(
    channels: int,
    density: float,
    tap_density: float | None = None,
    generator: torch.Generator | None = None,
) -> Example:
    """Return random weights of one MDTA.

    Args:
        channels: Channels of x; heads have 48 channels, or there is one head.
        density: Density of the 1x1 convolutions, 0 to 1.
        tap_density: Density of the depthwise convolution; None for the same.
        generator: The source of random numbers; None for PyTorch's default.
    """
    taps = density if tap_density is None else tap_density
    return Example(
        (
            torch.ones(channels),
            torch.zeros(channels),
            sparse_weight(density, 3 * channels, channels, 1, 1, generator=generator),
            sparse_weight(taps, 3 * channels, 1, 3, 3, generator=generator),
            torch.ones(max(1, channels // _HEAD), 1, 1),
            sparse_weight(density, channels, channels, 1, 1, generator=generator),
        )
    )
