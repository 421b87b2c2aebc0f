"""Depthwise convolution: on the CPU a convolution whose rows each read one channel."""

from __future__ import annotations

import torch
from torch import Tensor

from mirl_kernels.conv import PackedConv
from mirl_kernels.depthwise.reference import depthwise as reference

__all__ = ["PackedDepthwise", "reference"]


class PackedDepthwise(PackedConv):
    """The surviving taps of a depthwise convolution, weight (C, 1, k, k), k odd; arguments as in `reference`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self._inputs = len(weight)
        start, column = self._weight.tensors[:2]
        channel = torch.arange(len(weight), dtype=torch.int32).repeat_interleave(start.diff())
        column += channel * weight[0].numel()  # row c reads channel c
