"""Offer Restormer's transformer block, MDTA and GDFN, as one op."""

from mirl_kernels.ops.block.cpu import PackedBlock
from mirl_kernels.ops.block.examples import example
from mirl_kernels.ops.block.reference import block

__all__ = ["PackedBlock", "block", "example"]
