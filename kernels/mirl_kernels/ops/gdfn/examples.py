"""Make examples of GDFN."""

from __future__ import annotations

import torch

from mirl_kernels.ops.examples import Example, sparse_weight

_EXPANSION = 2.66  # pairs of hidden channels per channel, as in Restormer and PromptIR


def example(
    channels: int,
    density: float,
    tap_density: float | None = None,
    generator: torch.Generator | None = None,
) -> Example:
    """Return random weights of one GDFN.

    Args:
        channels: Channels of x.
        density: Density of the 1x1 convolutions, 0 to 1.
        tap_density: Density of the depthwise convolution; None for the same.
        generator: The source of random numbers; None for PyTorch's default.
    """
    pairs, taps = int(_EXPANSION * channels), density if tap_density is None else tap_density
    return Example(
        (
            torch.ones(channels),
            torch.zeros(channels),
            sparse_weight(density, 2 * pairs, channels, 1, 1, generator=generator),
            sparse_weight(taps, 2 * pairs, 1, 3, 3, generator=generator),
            sparse_weight(density, channels, pairs, 1, 1, generator=generator),
        )
    )
