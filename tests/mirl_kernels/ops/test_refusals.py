"""Ops refuse what their kernels would read or write beside its memory."""

from contextlib import nullcontext

import pytest
import torch

from mirl_kernels.errors import BackendError
from mirl_kernels.ops.block import PackedBlock
from mirl_kernels.ops.conv import PackedConv
from mirl_kernels.ops.depthwise import PackedDepthwise
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_kernels.ops.linear import PackedLinear
from mirl_kernels.ops.mdta import PackedMDTA
from mirl_kernels.ops.naf import PackedNAF
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_kernels.ops.prompt import PackedPrompt


@pytest.mark.parametrize("shuffle", [1, 2, -2])
def test_ops_refuse_weights_of_another_layer(shuffle):
    x, weight = torch.rand(1, 8, 8, 8), torch.rand(16, 8, 1, 1)
    conv, pointwise = PackedConv(weight, shuffle=shuffle).packed, PackedPointwise(weight).packed
    linear, depthwise = (
        PackedLinear(weight[:, :, 0, 0]).packed,
        PackedDepthwise(torch.rand(8, 1, 1, 1)).packed,
    )
    r, u = max(shuffle, 1), max(-shuffle, 1)
    for outputs, right in ((16, True), (12, False), (20, False)):
        calls = [
            lambda n=outputs: torch.ops.mirl.conv(
                x, conv, 8, n * u * u // (r * r), 8 * r // u, 8 * r // u, 1, 1, shuffle, "none", 0.0
            ),
            lambda n=outputs: torch.ops.mirl.pointwise(x, pointwise, 8, n, "none", 0.0),
            lambda n=outputs: torch.ops.mirl.linear(x, linear, 8, n, "none", 0.0),
            lambda n=outputs: torch.ops.mirl.depthwise(x, depthwise, 8, n // 2, 8, 8, 1, 1, "none", 0.0),
        ]
        for call in calls:
            with nullcontext() if right else pytest.raises(BackendError, match="packed weights have"):
                call()


def test_fused_ops_refuse_weights_of_another_block():
    r = torch.rand
    x, norm = r(1, 8, 9, 9), (torch.ones(8), torch.zeros(8))

    def gdfn_of(outputs: int, hidden: int = 12) -> PackedGDFN:
        return PackedGDFN(*norm, r(24, 8, 1, 1), r(24, 1, 3, 3), r(outputs, hidden, 1, 1))

    def mdta_of(outputs: int) -> PackedMDTA:
        return PackedMDTA(*norm, r(24, 8, 1, 1), r(24, 1, 3, 3), torch.ones(2, 1, 1), r(outputs, 8, 1, 1))

    def prompt_of(outputs: int, side: int = 4) -> PackedPrompt:
        return PackedPrompt(r(3, 8), r(3), r(1, 3, 5, 4, side), r(outputs, 5, 3, 3))

    def naf_of(outputs: int) -> PackedNAF:
        shapes = (
            (24, 8, 1, 1),
            (24, 1, 3, 3),
            (12, 12, 1, 1),
            (8, 12, 1, 1),
            (24, 8, 1, 1),
            (outputs, 12, 1, 1),
        )
        return PackedNAF(
            [(*norm, 1e-6)] * 2,
            [r(shape) for shape in shapes],
            [None] * 6,
            torch.ones(8),
            torch.ones(outputs),
        )

    gdfn_right, mdta_right, prompt_right, naf_right = gdfn_of(8), mdta_of(8), prompt_of(5), naf_of(8)
    for right in (gdfn_right, mdta_right, prompt_right, naf_right, PackedBlock(mdta_right, gdfn_right)):
        right(x)
    other = PackedGDFN(torch.ones(4), torch.zeros(4), r(24, 4, 1, 1), r(24, 1, 3, 3), r(4, 12, 1, 1))
    for wrong in (
        lambda: gdfn_of(16),
        lambda: mdta_of(16),
        lambda: prompt_of(7),
        lambda: prompt_of(5, 6),
        lambda: naf_of(16),
        lambda: PackedBlock(mdta_right, other),
    ):
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            wrong()
    wide = [PackedPointwise(r(16, n, 1, 1)).packed for n in (12, 8)]
    project_in, dwconv, _, centred = gdfn_right.operands()
    qkv, taps, out, *rest = mdta_right.operands()
    matrices = naf_right.matrices()
    for call in (
        lambda: torch.ops.mirl.gdfn(x, project_in, dwconv, wide[0], centred),
        lambda: torch.ops.mirl.mdta(x, qkv, taps, wide[1], *rest),
        lambda: torch.ops.mirl.block(x, qkv, taps, wide[1], *rest, *gdfn_right.operands()),
        lambda: torch.ops.mirl.block(x, qkv, taps, out, *rest, project_in, dwconv, wide[0], centred),
        lambda: torch.ops.mirl.prompt(x, r(3, 8), r(3), r(1, 3, 4, 4, 4), prompt_right.conv3x3),
        lambda: torch.ops.mirl.naf(x, [*matrices[:5], wide[0]], [1e-6, 1e-6]),
    ):
        with pytest.raises(BackendError, match="packed weights have"):
            call()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_a_linear_layer_without_inputs_or_outputs_is_refused(shape):
    with pytest.raises(ValueError, match="one input and output or more"):
        PackedLinear(torch.rand(shape))


def test_inputs_of_another_type_or_layout_are_refused():
    op = PackedPointwise(torch.ones(2, 3, 1, 1))
    for x in (
        torch.ones(1, 3, 4, 4).double(),
        torch.ones(3, 4, 4),
        torch.ones(1, 4, 4, 3).permute(0, 3, 1, 2),
    ):
        with pytest.raises(BackendError):
            op.bind(x, torch.empty(1, 2, 4, 4))()


def test_shapes_that_do_not_fit_are_refused():
    """The kernels check nothing: a wrong call would write beside its output."""
    x, out = torch.ones(1, 4, 6, 6), torch.empty(1, 4, 6, 6)
    gdfn_args = (
        torch.ones(4),
        torch.ones(4),
        torch.ones(6, 4, 1, 1),
        torch.ones(6, 1, 3, 3),
        torch.ones(4, 3, 1, 1),
    )
    mdta_args = (
        torch.ones(4),
        torch.ones(4),
        torch.ones(12, 4, 1, 1),
        torch.ones(12, 1, 3, 3),
        torch.ones(2, 1, 1),
        torch.ones(4, 4, 1, 1),
    )
    for op in (
        PackedPointwise(torch.ones(4, 3, 1, 1)),
        PackedPointwise(torch.ones(5, 4, 1, 1)),
        PackedConv(torch.ones(4, 3, 3, 3)),
        PackedConv(torch.ones(4, 4, 3, 3), shuffle=2),
        PackedConv(torch.ones(4, 4, 3, 3), shuffle=-2),
        PackedDepthwise(torch.ones(3, 1, 3, 3)),
    ):
        with pytest.raises(BackendError, match="expected"):
            op.bind(x, out)()
    with pytest.raises(BackendError, match="multiples of 2"):
        PackedConv(torch.ones(1, 4, 3, 3), shuffle=-2).bind(x[:, :, :5], out)()
    with pytest.raises(BackendError, match="expected"):
        PackedGDFN(*gdfn_args).bind(x, out[:, :3])()
    mdta_op = PackedMDTA(*mdta_args)
    for scratch in (
        None,
        torch.empty(mdta_op.scratch_floats(len(x), *x.shape[2:]) - 1),
        torch.empty(mdta_op.scratch_floats(len(x), *x.shape[2:])).double(),
    ):
        with pytest.raises(BackendError, match="scratch"):
            mdta_op.bind(x, out, scratch)()
