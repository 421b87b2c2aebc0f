"""Offer MDTA, the transposed attention block, with its layer norm and residual."""

from mirl_kernels.ops.mdta.cpu import PackedMDTA
from mirl_kernels.ops.mdta.examples import example
from mirl_kernels.ops.mdta.liveness import live_channels, ordered_channels
from mirl_kernels.ops.mdta.reference import mdta

__all__ = ["PackedMDTA", "example", "live_channels", "mdta", "ordered_channels"]
