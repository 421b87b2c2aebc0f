"""Compute what a network should restore, in float64."""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

_CACHED = 2**15  # pixels of channels that caches hold


@torch.no_grad()
def expected(network: nn.Module, image: Tensor) -> Tensor:
    """Return what a network should restore: its result in float64.

    Args:
        network: Any network; it is copied, not changed.
        image: Its input, of any floating type.
    """
    with _DepthwiseByTaps():
        result: Tensor = deepcopy(network).double()(image.double())
    return result


class _DepthwiseByTaps(TorchFunctionMode):
    """Run depthwise convolutions as sums over their taps.

    In float64 PyTorch runs one convolution per channel, which would take most of a network's time.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_conv2d if func is torch.conv2d else func)(*args, **kwargs or {})


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve as `torch.conv2d` does; depthwise, without stride and dilation, by taps."""
    plain = {*_pair(stride), *_pair(dilation)} == {1} and not isinstance(padding, str)
    if groups == 1 or not groups == x.shape[1] == weight.shape[0] or not plain:
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    rows, columns = _pair(padding)
    x = nn.functional.pad(x.contiguous(), (columns, columns, rows, rows))
    height, width = (side - taps + 1 for side, taps in zip(x.shape[2:], weight.shape[2:], strict=True))
    result = x.new_zeros(*x.shape[:2], height, width)
    channels = max(1, _CACHED // (height * width))
    parts = zip(result.split(channels, 1), x.split(channels, 1), weight.split(channels), strict=True)
    for y, source, taps in parts:
        for i, j in product(*map(range, weight.shape[2:])):
            y.addcmul_(source[..., i : i + height, j : j + width], taps[:, :, i, j, None])
    return result if bias is None else result + bias[:, None, None]
