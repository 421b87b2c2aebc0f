"""Make the small ops that prices are fitted to: the kinds and sizes that restoration networks are made of."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mirl_kernels.core import cpu
from mirl_kernels.ops.conv import PackedConv
from mirl_kernels.ops.depthwise import PackedDepthwise
from mirl_kernels.ops.leff import PackedLeFF
from mirl_kernels.ops.leff import example as leff_example
from mirl_kernels.ops.linear import PackedLinear
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_kernels.ops.prompt import PackedPrompt
from mirl_kernels.ops.swin import PackedSwin
from mirl_kernels.ops.swin import example as swin_example
from mirl_kernels.registry import OPS
from mirl_sparse.performance.cost import dense_quantities

_IN_MEMORY = 1 << 20  # floats of an image that caches do not hold

# Channels, side of the image, density of the 1x1 convolutions, density of the taps.
_BLOCKS = (
    (48, 256, 0.1, 0.1),
    (48, 128, 0.1, 0.1),
    (48, 128, 0.4, 0.8),
    (96, 128, 0.2, 0.5),
    (96, 256, 0.1, 0.1),
    (96, 256, 0.3, 0.6),
    (96, 64, 0.1, 0.1),
    (192, 64, 0.1, 0.3),
    (192, 64, 0.03, 0.03),
    (384, 32, 0.1, 0.2),
    (384, 32, 0.03, 0.03),
    (48, 128, 1, 1),
    (48, 256, 0.03, 0.03),
    (96, 256, 0.03, 0.03),
    (96, 128, 0.03, 0.03),
    (192, 32, 1, 1),
)
# Much of one thing beside little of another: a block's quantities grow together, and their prices would not
# be told apart.
_HALVES = (
    (16, 256, 0.5, 0.15),
    (16, 256, 0.5, 1),
    (48, 128, 0.1, 1),
    (48, 128, 1, 0.15),
    (48, 128, 0.3, 0.15),
    (96, 64, 0.05, 1),
)
# Input channels, output channels, side of the image, side of the kernel, density.
_CONVOLUTIONS = (
    (3, 48, 256, 3, 1.0),
    (48, 24, 256, 3, 0.1),
    (96, 48, 128, 3, 0.3),
    (192, 192, 32, 3, 0.1),
    (64, 64, 128, 3, 0.05),
    (64, 64, 64, 3, 1.0),
    (96, 3, 128, 3, 0.1),
    (64, 64, 128, 3, 0.2),
    (16, 16, 64, 17, 0.1),
)
_POINTWISE = (
    (48, 48, 256, 0.1),
    (96, 96, 128, 0.2),
    (256, 256, 32, 0.1),
    (64, 128, 128, 1.0),
    (160, 96, 64, 0.05),
    (64, 64, 64, 0.1),
)
# Channels, side of the image, side of the kernel, density.
_DEPTHWISE = ((64, 128, 3, 0.1), (64, 128, 3, 0.6), (32, 128, 7, 0.3), (256, 32, 3, 0.5), (64, 256, 3, 1.0))
_TRANSPOSED = ((64, 32), (128, 64), (32, 128))  # channels, side of the image
# Tokens, inputs, outputs, density.
_LINEAR = (
    (4096, 60, 180, 0.1),
    (4096, 180, 360, 0.1),
    (1024, 360, 180, 0.1),
    (512, 768, 768, 0.1),
    (4096, 96, 96, 1.0),
    (64, 180, 180, 0.1),
)
# Channels, side of the image, density, side of a window, channels of a head.
_WINDOWS = ((60, 64, 0.1, 8, 10), (180, 64, 0.1, 8, 30), (64, 64, 0.4, 8, 32), (96, 32, 0.05, 16, 16))
# Channels, side of the image, density, density of the taps.
_LEFF = ((32, 128, 0.1, 0.3), (128, 32, 0.1, 1.0))
_PROMPTS = (
    (192, 64, 64, 0.1),
    (96, 64, 128, 0.1),
)  # channels, channels of the prompt, side of the image, density


class Sample(NamedTuple):
    """Hold one op to time.

    Attributes:
        quantities: Quantities of one call.
        run: Calls it once.
    """

    quantities: Counter[str]
    run: Callable[[], object]


def samples() -> Iterator[Sample]:
    """Yield the ops to time; each is made when it is asked for."""
    generator = torch.Generator().manual_seed(0)
    yield from _block_samples(generator)
    yield from _half_block_samples(generator)
    yield from _convolution_samples(generator)
    yield from _pointwise_samples(generator)
    yield from _depthwise_samples(generator)
    yield from _transposed_samples(generator)
    yield from _linear_samples(generator)
    yield from _window_samples(generator)
    yield from _prompt_samples(generator)


def _weights(generator: torch.Generator, density: float, *shape: int) -> Tensor:
    values = torch.randn(shape, generator=generator) / max(1.0, shape[1] * density) ** 0.5
    return values * (torch.rand(shape, generator=generator) < density)


def _packed(
    generator: torch.Generator, op: cpu.Packed, channels: int, side: int, outputs: int | None = None
) -> Sample:
    # Large images come from memory, as they do in a network.
    images = 3 if channels * side * side >= _IN_MEMORY else 1
    x = [cpu.empty(1, channels, side, side).normal_(generator=generator) for _ in range(images)]
    y = [cpu.empty(1, outputs or channels, side, side).zero_() for _ in range(images)]
    scratch = torch.empty(op.scratch_floats(1, side, side), dtype=torch.float32)
    calls = itertools.cycle([op.bind(*pair, scratch) for pair in zip(x, y, strict=True)])
    return Sample(op.quantities(1, side, side), lambda: next(calls)())


def _dense(layer: nn.Module, x: Tensor) -> Sample:
    return Sample(dense_quantities(layer, tuple(x.shape)), partial(layer, x))


def _op(name: str, channels: int, density: float, taps: float, generator: torch.Generator) -> cpu.Packed:
    op = OPS[name]
    example = op.example(channels, density, taps, generator)
    packed = op.packed.from_weights(*example.weights, **example.options)
    assert isinstance(packed, cpu.Packed)
    return packed


def _block_samples(generator: torch.Generator) -> Iterator[Sample]:
    for channels, side, density, taps in _BLOCKS:
        yield _packed(generator, _op("block", channels, density, taps, generator), channels, side)


def _half_block_samples(generator: torch.Generator) -> Iterator[Sample]:
    for name in ("mdta", "gdfn"):
        for channels, side, density, taps in _HALVES:
            yield _packed(generator, _op(name, channels, density, taps, generator), channels, side)


def _convolution_samples(generator: torch.Generator) -> Iterator[Sample]:
    for inputs, outputs, side, kernel, density in _CONVOLUTIONS:
        conv = PackedConv(_weights(generator, density, outputs, inputs, kernel, kernel))
        yield _packed(generator, conv, inputs, side, outputs)
        dense = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        yield _dense(dense, torch.randn(1, inputs, side, side, generator=generator))


def _pointwise_samples(generator: torch.Generator) -> Iterator[Sample]:
    for inputs, outputs, side, density in _POINTWISE:
        pointwise = PackedPointwise(_weights(generator, density, outputs, inputs, 1, 1))
        yield _packed(generator, pointwise, inputs, side, outputs)
        yield _dense(nn.Conv2d(inputs, outputs, 1), torch.randn(1, inputs, side, side, generator=generator))


def _depthwise_samples(generator: torch.Generator) -> Iterator[Sample]:
    for channels, side, kernel, density in _DEPTHWISE:
        depthwise = PackedDepthwise(_weights(generator, density, channels, 1, kernel, kernel))
        yield _packed(generator, depthwise, channels, side)
        dense = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        yield _dense(dense, torch.randn(1, channels, side, side, generator=generator))


def _transposed_samples(generator: torch.Generator) -> Iterator[Sample]:
    for channels, side in _TRANSPOSED:
        up = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        yield _dense(up, torch.randn(1, channels, side, side, generator=generator))


def _linear_samples(generator: torch.Generator) -> Iterator[Sample]:
    for tokens, inputs, outputs, density in _LINEAR:
        dense = nn.Linear(inputs, outputs)
        x = torch.randn(tokens, inputs, generator=generator)
        sparse = PackedLinear(_weights(generator, density, outputs, inputs))
        yield Sample(sparse.quantities(tokens), partial(sparse, x))
        yield _dense(dense, x)


def _window_samples(generator: torch.Generator) -> Iterator[Sample]:
    for channels, side, density, window, head in _WINDOWS:
        example = swin_example(channels, density, generator, window=window, head_channels=head)
        packed = PackedSwin(*example.weights, **example.options)
        x = torch.randn(1, side, side, channels, generator=generator)
        yield Sample(packed.quantities(side * side), partial(packed, x))
    for channels, side, density, taps in _LEFF:
        example = leff_example(channels, density, generator, tap_density=taps)
        leff = PackedLeFF(*example.weights)
        x = torch.randn(1, side, side, channels, generator=generator)
        yield Sample(leff.quantities(1, side, side), partial(leff, x))


def _prompt_samples(generator: torch.Generator) -> Iterator[Sample]:
    for channels, prompts, side, density in _PROMPTS:
        prompt = PackedPrompt(
            torch.randn(5, channels, generator=generator),
            torch.zeros(5),
            torch.rand(1, 5, prompts, side, side, generator=generator),
            _weights(generator, density, prompts, prompts, 3, 3),
        )
        yield _packed(generator, prompt, channels, side, prompts)
