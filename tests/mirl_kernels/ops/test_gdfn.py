"""GDFN on the CPU against its definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import as_float, cases, check, densities, maybe, noise, norm_tolerance, seeds, shapes, weights

from mirl_kernels.ops.gdfn import PackedGDFN, gdfn


@cases
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 40),
    shapes,
    densities,
    densities,
    st.booleans(),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_the_kernel_computes_the_definition(
    seed, batch, channels, hidden, shape, density, tap_density, centred, biased
):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    x = noise((batch, channels, height, width), g)
    biases = [
        maybe((n,), wanted, g) for n, wanted in zip((2 * hidden, 2 * hidden, channels), biased, strict=True)
    ]
    args = [
        1 + 0.1 * noise((channels,), g),
        0.1 * noise((channels,), g) if centred else None,
        weights((2 * hidden, channels, 1, 1), density, g),
        weights((2 * hidden, 1, 3, 3), tap_density, g),
        weights((channels, hidden, 1, 1), density, g),
        biases,
    ]
    expected = gdfn(x.float().double(), *args)
    check(PackedGDFN(*as_float(args)), expected, x.float(), tolerance=norm_tolerance(x))


def test_the_layer_norm_keeps_its_digits_far_from_zero():
    """E[x^2] - E[x]^2 would lose them all: 1000^2 has none left for a variance of 1."""
    g = torch.Generator().manual_seed(4)
    x = (1000 + noise((1, 16, 8, 8), g)).float()
    args = [
        torch.ones(16),
        torch.zeros(16),
        weights((12, 16, 1, 1), 1.0, g),
        weights((12, 1, 3, 3), 1.0, g),
        weights((16, 6, 1, 1), 1.0, g),
    ]
    out = torch.empty_like(x)
    PackedGDFN(*(a.float() for a in args)).bind(x, out)()
    expected = gdfn(x.double(), *(a.double() for a in args)) - x.double()
    torch.testing.assert_close(
        out.double() - x.double(), expected, atol=2e-3 * expected.abs().max().item(), rtol=0
    )
