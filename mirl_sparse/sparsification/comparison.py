"""Make inputs for a comparison of modules, and measure how much their results differ."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

NOMINAL_SIDE = 64  # of the images that layers see, where no example input says more


def noise(*shape: int) -> Tensor:
    """Return normal noise of a shape, the same at each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def probes(layer: nn.Module) -> list[Tensor]:
    """Return arguments that a convolution, linear layer or attention layer takes."""
    shapes: list[tuple[int, ...]]
    if isinstance(layer, nn.Linear):
        shapes = [(37, layer.in_features)]
    elif isinstance(layer, nn.MultiheadAttention):
        shapes = [(9, 9, layer.embed_dim), (9, 9, layer.kdim), (9, 9, layer.vdim)]
    else:
        assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        spans = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        shapes = [(1, layer.in_channels, spans[0] + 11, spans[1] + 17)]
    return [noise(*shape) for shape in shapes]


def nominal_shape(layer: nn.Module) -> tuple[int, ...]:
    """Return the input shape of a layer for which it is chosen without an example input: of 64x64 pixels."""
    if isinstance(layer, nn.Linear):
        return NOMINAL_SIDE**2, layer.in_features
    if isinstance(layer, nn.MultiheadAttention):
        return NOMINAL_SIDE, NOMINAL_SIDE, layer.embed_dim
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    return 1, layer.in_channels, NOMINAL_SIDE, NOMINAL_SIDE


def copied(arguments: Any) -> Any:
    """Return a copy of a network's arguments: there are networks that write to them."""
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else copy.deepcopy(x), arguments)


def tensors(result: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested lists, tuples, dicts and dataclasses, as plain ones."""
    if isinstance(result, Tensor):
        yield from result.unbind() if result.is_nested else [_plain(result)]
    elif isinstance(result, dict):
        for value in result.values():
            yield from tensors(value)
    elif isinstance(result, (list, tuple)):
        for value in result:
            yield from tensors(value)
    elif is_dataclass(result) and not isinstance(result, type):
        for part in fields(result):
            yield from tensors(getattr(result, part.name))


def _plain(t: Tensor) -> Tensor:
    """Return a quantised or sparse tensor as a plain one."""
    if t.is_quantized:
        return t.dequantize()
    return t if t.layout == torch.strided else t.to_dense()


def difference(expected: Any, result: Any) -> float:
    """Return by how much two results differ, relative to the largest expected value, or to 1 if that is less.

    Args:
        expected: Tensors, in nested lists, tuples, dicts and dataclasses.
        result: The same of the other module.

    Returns:
        The largest relative difference of a pair of tensors; infinite where their number or shapes differ,
        or where one is NaN or infinite and the other is not.
    """
    pairs = list(zip_longest(tensors(expected), tensors(result)))
    if any(a is None or b is None or a.shape != b.shape for a, b in pairs):
        return math.inf
    return max((_difference(*pair) for pair in pairs), default=0.0)


def _difference(expected: Tensor, result: Tensor) -> float:
    a, b = (torch.view_as_real(t).double() if t.is_complex() else t.double() for t in (expected, result))
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()) or not torch.equal(
        a[~finite].nan_to_num(), b[~finite].nan_to_num()
    ):
        return math.inf
    a, b = a[finite], b[finite]
    return ((b - a).abs().max() / a.abs().max().clamp(1.0)).item() if a.numel() else 0.0
