"""Depthwise convolution: on the CPU a convolution whose rows each read one channel."""

from __future__ import annotations

from torch import Tensor

from mirl_kernels.conv import PackedConv
from mirl_kernels.depthwise.reference import depthwise as reference

__all__ = ["PackedDepthwise", "reference"]


class PackedDepthwise(PackedConv):
    """The surviving taps of a depthwise convolution, weight (C, 1, k, k), k odd; arguments as in `reference`."""

    def __init__(self, weight: Tensor) -> None:
        channels, _, *kernel = weight.shape
        spread = weight.new_zeros(channels, channels, *kernel)  # row c reads channel c
        spread[range(channels), range(channels)] = weight[:, 0]
        super().__init__(spread)
