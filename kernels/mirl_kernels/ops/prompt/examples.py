"""Make examples of the prompt block."""

from __future__ import annotations

import torch

from mirl_kernels.ops.examples import Example, sparse_weight

_PROMPTS, _SIDE = 5, 64  # as PromptIR has them at half the resolution


def example(channels: int, density: float, generator: torch.Generator | None = None) -> Example:
    """Return random weights of a prompt block, whose prompts have two thirds of the channels.

    Args:
        channels: Channels of x.
        density: Density of the convolution, 0 to 1.
        generator: The source of random numbers; None for PyTorch's default.
    """
    prompts = 2 * channels // 3
    return Example(
        (
            torch.randn(_PROMPTS, channels, generator=generator) / channels**0.5,
            torch.zeros(_PROMPTS),
            torch.rand(1, _PROMPTS, prompts, _SIDE, _SIDE, generator=generator),
            sparse_weight(density, prompts, prompts, 3, 3, generator=generator),
        )
    )
