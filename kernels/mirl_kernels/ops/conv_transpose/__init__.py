"""Offer the transposed convolution.

It runs as a convolution to stride^2 times as many channels, whose store shuffles them to pixels.
"""

from mirl_kernels.ops.conv_transpose.cpu import PackedConvTranspose
from mirl_kernels.ops.conv_transpose.examples import example
from mirl_kernels.ops.conv_transpose.reference import conv_transpose

__all__ = ["PackedConvTranspose", "conv_transpose", "example"]
