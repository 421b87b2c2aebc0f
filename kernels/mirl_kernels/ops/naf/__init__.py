"""Offer NAFNet's block, both halves, as one op."""

from mirl_kernels.ops.naf.cpu import PackedNAF
from mirl_kernels.ops.naf.examples import example
from mirl_kernels.ops.naf.reference import naf

__all__ = ["PackedNAF", "example", "naf"]
