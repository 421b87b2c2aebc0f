"""Predict what a layer or a network costs on this machine, without running it.

Every op tells how often it does what (`quantities`: loads, entries of sparse rows, taps, ...). A `CostModel`
has a price in seconds for each of these quantities; `mirl_sparse.performance.prices` measures them.
`sparsify` chooses layers by these prices, and a ticket search can ask what a mask would cost before it is
trained.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from torch import nn

from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.runtime.cpu import CpuEngine

_CHANNEL_BLOCK = (
    16  # PyTorch's convolutions work on blocks of channels, but for depthwise and transposed ones
)


class CostModel:
    """Predict seconds from prices.

    Attributes:
        prices: Seconds of one unit of each quantity.
        rough: Whether the machine was busy with other work when the prices were measured.
    """

    def __init__(self, prices: dict[str, float], rough: bool = False) -> None:
        self.prices, self.rough = prices, rough

    def seconds(self, quantities: Counter[str]) -> float:
        """Return what quantities cost together, in seconds."""
        return sum(self.prices[name] * count for name, count in quantities.items())

    def network(self, network: PromptIR, height: int = 256, width: int = 256, batch: int = 1) -> float:
        """Return the seconds to restore (batch, 3, height, width) with a network and its zeros."""
        return self.engine(CpuEngine(network), height, width, batch)

    def engine(self, engine: CpuEngine, height: int = 256, width: int = 256, batch: int = 1) -> float:
        """Return the seconds to restore (batch, 3, height, width) with a packed network."""
        return sum(self.seconds(op.quantities(*shape)) for op, shape in engine.calls(batch, height, width))


def dense_quantities(layer: nn.Module, shape: tuple[int, ...]) -> Counter[str]:
    """Return what PyTorch does for one call of a dense layer.

    Args:
        layer: A convolution, a linear layer, or an attention, of which only the projections count.
        shape: Shape of the input: (B, C, H, W) or (C, H, W) for convolutions, (..., features) for the others.
    """
    if isinstance(layer, nn.Linear):
        return _linear_quantities([(layer.in_features, layer.out_features)], shape)
    if isinstance(layer, nn.MultiheadAttention):
        inputs = (layer.embed_dim, layer.kdim, layer.vdim, layer.embed_dim)
        return _linear_quantities([(width, layer.embed_dim) for width in inputs], shape)
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    return _convolution_quantities(layer, shape)


def _linear_quantities(sizes: list[tuple[int, int]], shape: tuple[int, ...]) -> Counter[str]:
    """Return the quantities of linear layers of these (inputs, outputs)."""
    tokens = int(np.prod(shape[:-1]))
    return Counter(
        {
            "torch call": len(sizes),
            "torch linear mac": tokens * sum(i * o for i, o in sizes),
            "torch float": tokens * sum(i + o for i, o in sizes),
        }
    )


def _convolution_quantities(layer: nn.Conv2d | nn.ConvTranspose2d, shape: tuple[int, ...]) -> Counter[str]:
    batch, _, height, width = shape if len(shape) == 4 else (1, *shape)
    pixels, stride = batch * height * width, layer.stride[0] * layer.stride[1]
    kind = _convolution_kind(layer)
    results = pixels * stride if kind == "transposed" else pixels // stride
    applied = pixels if kind == "transposed" else results
    lanes = _CHANNEL_BLOCK if kind in ("1x1", "conv") else 1
    outputs, inputs = (
        -(-n // lanes) * lanes for n in (layer.out_channels, layer.in_channels // layer.groups)
    )
    macs = applied * outputs * inputs * layer.kernel_size[0] * layer.kernel_size[1]
    return Counter(
        {
            "torch call": 1,
            f"torch {kind} mac": macs,
            "torch float": pixels * layer.in_channels + results * layer.out_channels,
        }
    )


def _convolution_kind(layer: nn.Conv2d | nn.ConvTranspose2d) -> str:
    if isinstance(layer, nn.ConvTranspose2d):
        return "transposed"
    if layer.groups == layer.in_channels > 1:
        return "depthwise"
    return "1x1" if layer.kernel_size == (1, 1) else "conv"
