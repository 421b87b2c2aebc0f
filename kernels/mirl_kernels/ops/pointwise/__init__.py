"""Offer the pointwise (1x1) convolution."""

from mirl_kernels.ops.pointwise.cpu import PackedPointwise
from mirl_kernels.ops.pointwise.examples import example
from mirl_kernels.ops.pointwise.reference import pointwise

__all__ = ["PackedPointwise", "example", "pointwise"]
