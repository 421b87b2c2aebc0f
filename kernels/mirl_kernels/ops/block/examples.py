"""Make examples of the transformer block."""

from __future__ import annotations

import torch

from mirl_kernels.ops.examples import Example
from mirl_kernels.ops.gdfn.examples import example as gdfn_example
from mirl_kernels.ops.mdta.examples import example as mdta_example


def example(
    channels: int,
    density: float,
    tap_density: float | None = None,
    generator: torch.Generator | None = None,
) -> Example:
    """Return random weights of one block: those of an MDTA and of a GDFN.

    Args:
        channels: Channels of x.
        density: Density of the 1x1 convolutions, 0 to 1.
        tap_density: Density of the depthwise convolutions; None for the same.
        generator: The source of random numbers; None for PyTorch's default.
    """
    halves = (make(channels, density, tap_density, generator) for make in (mdta_example, gdfn_example))
    return Example(tuple(half.weights for half in halves))
