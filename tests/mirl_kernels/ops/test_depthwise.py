"""The depthwise convolution on the CPU against its definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import axes, cases, check, densities, geometry, maybe, noise, seeds, shapes, weights

from mirl_kernels.ops.depthwise import PackedDepthwise, depthwise


@cases
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 3),
    axes,
    axes,
    shapes,
    densities,
    st.booleans(),
)
def test_the_kernel_computes_the_definition_for_any_geometry(
    seed, batch, channels, multiplier, down, across, shape, density, biased
):
    kernel, stride, padding, dilation, shape = geometry(down, across, shape)
    g = torch.Generator().manual_seed(seed)
    x, w = noise((batch, channels, *shape), g), weights((channels * multiplier, 1, *kernel), density, g)
    b = maybe((channels * multiplier,), biased, g)
    expected = depthwise(x.float().double(), w, b, stride, padding, dilation)
    op = PackedDepthwise(w.float(), b if b is None else b.float(), stride, padding, dilation, channels)
    check(op, expected, x.float())
