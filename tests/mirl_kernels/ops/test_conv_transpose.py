"""The transposed convolution on the CPU against its definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import cases, check, densities, maybe, noise, seeds, shapes, weights

from mirl_kernels.ops.conv_transpose import PackedConvTranspose, conv_transpose


@cases
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 6),
    st.integers(1, 4),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    shapes,
    densities,
    st.booleans(),
)
def test_the_kernel_computes_the_definition_for_any_geometry(
    seed, batch, groups, inputs, outputs, stride, kernel, padding, dilation, shape, density, biased
):
    g = torch.Generator().manual_seed(seed)
    more = tuple(min(1, stride - 1) for _ in kernel)
    least = [2 * p // stride + 2 for p in padding]
    x = noise((batch, groups * inputs, *map(max, shape, least)), g)
    w = weights((groups * inputs, outputs, *kernel), density, g)
    b = maybe((groups * outputs,), biased, g)
    args = stride, padding, more, dilation, groups
    expected = conv_transpose(x.float().double(), w, b, *args)
    check(PackedConvTranspose(w.float(), b if b is None else b.float(), *args), expected, x.float())
