"""Compare the tensors of a module with those that a kind of block has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from mirl_sparse.sparsification.layers import weight_refusal

Biases = tuple[Tensor | None, ...]


class Expected(NamedTuple):
    """Describe a tensor that a block must have, or may have."""

    name: str
    shape: tuple[int, ...]
    optional: bool = False


def get(m: nn.Module, path: str) -> Any:
    """Return what a dotted path of attributes leads to, None where one is missing."""
    value: Any = m
    for name in path.split("."):
        value = getattr(value, name, None)
    return value


def size_of(m: nn.Module, path: str, axis: int) -> int:
    """Return a tensor's size along an axis, 0 where there is no such tensor or axis."""
    tensor = get(m, path)
    return tensor.shape[axis] if isinstance(tensor, Tensor) and tensor.ndim > axis else 0


def unexpected(m: nn.Module, tensors: Iterable[Expected]) -> str | None:
    """Return what is wrong with the first tensor that is not as expected."""
    for name, shape, optional in tensors:
        value = get(m, name)
        if value is None and optional:
            continue
        if not isinstance(value, Tensor):
            return f"it has no {name}"
        if tuple(value.shape) != shape:
            return f"{name} has shape {tuple(value.shape)}; expected {shape}"
        if reason := weight_refusal(value, name):
            return reason
    return None


def conv_tensors(name: str, outputs: int, inputs: int, kernel: int = 1) -> list[Expected]:
    """Describe the weight and the bias of a convolution; a depthwise one has one input per group."""
    weight = Expected(f"{name}.weight", (outputs, inputs, kernel, kernel))
    return [weight, Expected(f"{name}.bias", (outputs,), optional=True)]


def biases_of(m: nn.Module, names: Sequence[str]) -> Biases:
    """Return the biases of layers by their names, None for a layer without one."""
    return tuple(get(m, f"{name}.bias") for name in names)


def geometry_refusal(m: nn.Module, names: Iterable[str]) -> str | None:
    """Return which 3x3 convolution moves otherwise than over each pixel, with zeros around the image."""
    for name in names:
        conv = get(m, name)
        if not isinstance(conv, nn.Conv2d):
            continue
        if conv.stride != (1, 1) or conv.dilation != (1, 1) or conv.padding_mode != "zeros":
            return (
                f"{name} has stride {conv.stride}, dilation {conv.dilation} and {conv.padding_mode} padding;"
                " expected (1, 1), (1, 1) and zeros"
            )
    return None
