"""Offer the block of Swin transformers, attention within windows and feed-forward layer, as one op."""

from mirl_kernels.ops.swin.cpu import PackedSwin
from mirl_kernels.ops.swin.examples import example
from mirl_kernels.ops.swin.reference import do_not_attend, swin

__all__ = ["PackedSwin", "do_not_attend", "example", "swin"]
