"""Offer GDFN, the gated depthwise feed-forward block, with its layer norm and residual."""

from mirl_kernels.ops.gdfn.cpu import PackedGDFN
from mirl_kernels.ops.gdfn.examples import example
from mirl_kernels.ops.gdfn.liveness import live_after_taps, live_pairs, ordered_pairs
from mirl_kernels.ops.gdfn.reference import gdfn

__all__ = ["PackedGDFN", "example", "gdfn", "live_after_taps", "live_pairs", "ordered_pairs"]
