"""The pointwise convolution on the CPU against its definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import cases, check, densities, noise, seeds, shapes, weights
from torch.nn.functional import leaky_relu

from mirl_kernels.core import cpu
from mirl_kernels.ops.pointwise import PackedPointwise, pointwise


@cases
@given(
    seeds,
    st.integers(1, 3),
    st.one_of(st.integers(1, 50), st.integers(90, 300)),
    st.integers(1, 50),
    shapes,
    densities,
)
def test_the_kernel_computes_the_definition(seed, batch, inputs, outputs, shape, density):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    x, w, b = (
        noise((batch, inputs, height, width), g),
        weights((outputs, inputs, 1, 1), density, g),
        noise((outputs,), g),
    )
    expected = pointwise(x.float().double(), w, b)
    check(PackedPointwise(w.float(), b.float()), expected, x.float())


def test_activations_pass_on_infinity_and_nan():
    op = PackedPointwise(torch.ones(1, 1, 1, 1))
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, -1, 2]).view(1, 1, 1, 5)
    for op.activation, op.slope, want in (
        ("relu", 0.0, x.relu()),
        ("leaky_relu", 0.1, leaky_relu(x, 0.1)),
    ):
        torch.testing.assert_close(op(x), want, equal_nan=True, rtol=0, atol=0)


def test_slices_of_channels_are_written_and_nothing_beside_them():
    """Ops read and write some channels of wider buffers: this is how the engine concatenates."""
    x, out = cpu.empty(2, 9, 6, 11).normal_(), cpu.empty(2, 8, 6, 11).fill_(7.0)
    weight = torch.randn(3, 4, 1, 1)
    PackedPointwise(weight).bind(x[:, 2:6], out[:, 1:4])()
    torch.testing.assert_close(out[:, 1:4], pointwise(x[:, 2:6], weight), atol=1e-5, rtol=1e-5)
    assert (out[:, :1] == 7).all()
    assert (out[:, 4:] == 7).all()
