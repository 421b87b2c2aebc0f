"""Offer LeFF, Uformer's locally enhanced feed-forward layer, as one op."""

from mirl_kernels.ops.leff.cpu import PackedLeFF
from mirl_kernels.ops.leff.examples import example
from mirl_kernels.ops.leff.reference import leff

__all__ = ["PackedLeFF", "example", "leff"]
