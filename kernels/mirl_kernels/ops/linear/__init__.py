"""Offer the linear layer, of tokens."""

from mirl_kernels.ops.linear.cpu import PackedLinear
from mirl_kernels.ops.linear.examples import example
from mirl_kernels.ops.linear.reference import linear

__all__ = ["PackedLinear", "example", "linear"]
