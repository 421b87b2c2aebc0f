"""Offer the convolution; pixel (un)shuffle and a residual are part of its store."""

from mirl_kernels.ops.conv.cpu import PackedConv
from mirl_kernels.ops.conv.examples import example
from mirl_kernels.ops.conv.reference import conv

__all__ = ["PackedConv", "conv", "example"]
