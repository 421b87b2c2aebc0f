"""The convolution on the CPU against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import axes, cases, check, densities, geometry, maybe, noise, seeds, shapes, weights

from mirl_kernels.ops.conv import PackedConv, conv


@cases
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 6),
    st.sampled_from([1, 3, 5, 7]),
    st.sampled_from([1, 2, 3, -2, -3]),
    shapes,
    densities,
    st.booleans(),
)
def test_the_kernel_computes_the_definition_with_shuffle_and_residual(
    seed, batch, inputs, outputs, kernel, shuffle, shape, density, add
):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    if shuffle > 1:
        outputs *= shuffle**2
    if shuffle < -1:
        height, width = -shuffle * height, -shuffle * width
    x, w = noise((batch, inputs, height, width), g), weights((outputs, inputs, kernel, kernel), density, g)
    expected = conv(x.float().double(), w, shuffle=shuffle)
    residual = noise(tuple(expected.shape), g).float() if add else None
    expected = expected if residual is None else expected + residual.double()
    check(PackedConv(w.float(), shuffle=shuffle), expected, x.float(), None, residual)


@pytest.mark.parametrize("width", [5, 20, 64, 150])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.4])
def test_large_kernels(width, density):
    """Compare kernels of 17x17: with few weights left their rows read the ring, with more a panel."""
    g = torch.Generator().manual_seed(0)
    x, w = noise((2, 5, 24, width), g), weights((12, 5, 17, 17), density, g)
    check(PackedConv(w.float()), conv(x.float().double(), w), x.float())


@cases
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 5),
    axes,
    axes,
    shapes,
    densities,
    st.booleans(),
)
def test_the_kernel_computes_the_definition_for_any_geometry(
    seed, batch, groups, inputs, outputs, down, across, shape, density, biased
):
    kernel, stride, padding, dilation, shape = geometry(down, across, shape)
    g = torch.Generator().manual_seed(seed)
    x, w = (
        noise((batch, groups * inputs, *shape), g),
        weights((groups * outputs, inputs, *kernel), density, g),
    )
    b = maybe((groups * outputs,), biased, g)
    expected = conv(x.float().double(), w, b, stride, padding, dilation, groups)
    op = PackedConv(w.float(), b if b is None else b.float(), stride, padding, dilation, groups)
    check(op, expected, x.float())
