"""Depthwise convolution: on the CPU a convolution whose rows each read one channel."""

from __future__ import annotations

import torch
from torch import Tensor

from mirl_kernels.conv import PackedConv
from mirl_kernels.depthwise.reference import depthwise as reference

__all__ = ["PackedDepthwise", "reference"]


class PackedDepthwise:
    """The surviving taps of a depthwise convolution, k odd; arguments as in `reference`."""

    def __init__(self, weight: Tensor) -> None:
        channels = torch.arange(weight.shape[0])
        dense = weight.new_zeros(weight.shape[0], weight.shape[0], *weight.shape[2:])
        dense[channels, channels] = weight[:, 0]
        self._conv = PackedConv(dense)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """``out`` = the convolution of x, both (B, C, H, W); they may not share memory."""
        self._conv(x, out)
