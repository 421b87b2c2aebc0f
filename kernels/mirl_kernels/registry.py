"""List the ops: tests and benchmarks go through them, so that a new op is one folder and one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mirl_kernels.core.cpu import Packed, PackedModule
from mirl_kernels.ops import (
    block,
    conv,
    conv_transpose,
    depthwise,
    gdfn,
    leff,
    linear,
    mdta,
    naf,
    pointwise,
    prompt,
    swin,
)
from mirl_kernels.ops.examples import Example


@dataclass(frozen=True)
class Op:
    """Say what an op offers.

    Attributes:
        name: Its name: that of its folder, and of the op ``mirl::name``.
        packed: Its surviving weights, for the C++ kernel. ``packed.from_weights`` takes what ``reference``
            takes after x.
        reference: Its definition in PyTorch: x and weights to the result.
        example: Random weights: takes channels of x and a density, and a ``generator`` of random numbers.
        tokens: Dimensions before the channels of an x that suits examples, where x is no image.
    """

    name: str
    packed: type[PackedModule]
    reference: Callable[..., Tensor]
    example: Callable[..., Example]
    tokens: tuple[int, ...] = (40,)

    @property
    def takes_images(self) -> bool:
        """Return whether x is (B, C, H, W); otherwise it is (..., C)."""
        return issubclass(self.packed, Packed)


OPS = {
    op.name: op
    for op in (
        Op("block", block.PackedBlock, block.block, block.example),
        Op("conv", conv.PackedConv, conv.conv, conv.example),
        Op(
            "conv_transpose",
            conv_transpose.PackedConvTranspose,
            conv_transpose.conv_transpose,
            conv_transpose.example,
        ),
        Op("depthwise", depthwise.PackedDepthwise, depthwise.depthwise, depthwise.example),
        Op("gdfn", gdfn.PackedGDFN, gdfn.gdfn, gdfn.example),
        Op("leff", leff.PackedLeFF, leff.leff, leff.example, (2, 8, 12)),
        Op("linear", linear.PackedLinear, linear.linear, linear.example),
        Op("mdta", mdta.PackedMDTA, mdta.mdta, mdta.example),
        Op("naf", naf.PackedNAF, naf.naf, naf.example),
        Op("pointwise", pointwise.PackedPointwise, pointwise.pointwise, pointwise.example),
        Op("prompt", prompt.PackedPrompt, prompt.prompt, prompt.example),
        Op("swin", swin.PackedSwin, swin.swin, swin.example, (2, 8, 12)),
    )
}
