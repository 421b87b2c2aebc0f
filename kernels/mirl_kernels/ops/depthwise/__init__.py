"""Offer the depthwise convolution."""

from mirl_kernels.ops.depthwise.cpu import PackedDepthwise
from mirl_kernels.ops.depthwise.examples import example
from mirl_kernels.ops.depthwise.reference import depthwise

__all__ = ["PackedDepthwise", "depthwise", "example"]
