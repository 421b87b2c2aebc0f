"""The transformer block on the CPU against its definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import (
    as_float,
    attention_tolerance,
    cases,
    check,
    densities,
    maybe,
    noise,
    norm_tolerance,
    seeds,
    shapes,
    weights,
)

from mirl_kernels.core import cpu
from mirl_kernels.ops.block import PackedBlock, block
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_kernels.ops.mdta import PackedMDTA, mdta


@cases
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 16),
    st.integers(1, 30),
    shapes,
    densities,
    densities,
    st.booleans(),
    st.booleans(),
)
def test_the_kernel_computes_the_definition(
    seed, batch, heads, per_head, hidden, shape, density, tap_density, centred, biased
):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    channels = heads * per_head
    x = noise((batch, channels, height, width), g)

    def half(rows: int, out: int, *more) -> list:
        biases = [maybe((n,), biased, g) for n in (rows, rows, channels)]
        return [
            1 + 0.1 * noise((channels,), g),
            0.1 * noise((channels,), g) if centred else None,
            weights((rows, channels, 1, 1), density, g),
            weights((rows, 1, 3, 3), tap_density, g),
            *more,
            weights((channels, out, 1, 1), density, g),
            biases,
        ]

    attention = half(3 * channels, channels, 1 + 0.3 * noise((heads, 1, 1), g))
    feed_forward = half(2 * hidden, hidden)
    packed = PackedBlock(PackedMDTA(*as_float(attention)), PackedGDFN(*as_float(feed_forward)))
    scratch = torch.full((packed.scratch_floats(len(x), *x.shape[2:]),), float("nan"))
    between = mdta(x.float().double(), *attention)
    # What the first half rounds off is of the size of its largest values. Where a pixel's channels are nearly
    # alike, the second norm magnifies that.
    rounding = torch.finfo(torch.float32).eps / 2 * between.abs().max()
    magnified = (rounding / (between.var(1, correction=0) + 1e-5).sqrt().min()).item()
    tolerance = 2 * max(
        attention_tolerance(x, biased, block, attention, feed_forward), norm_tolerance(between), magnified
    )
    expected = block(x.float().double(), attention, feed_forward)
    check(packed, expected, x.float(), scratch, tolerance=tolerance)
    out = cpu.empty(*x.shape).copy_(x)
    packed.bind(out, out, scratch)()  # in place
    torch.testing.assert_close(
        out.double(), expected, atol=tolerance * max(1.0, expected.abs().max().item()), rtol=0
    )
