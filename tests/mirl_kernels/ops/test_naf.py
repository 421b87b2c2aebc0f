"""NAFNet's block on the CPU against its definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import as_float, cases, check, densities, maybe, noise, norm_tolerance, seeds, shapes, weights

from mirl_kernels.ops.naf import PackedNAF, naf


@cases
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    shapes,
    densities,
    densities,
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_the_kernel_computes_the_definition(
    seed, batch, channels, first, second, shape, density, tap_density, biased
):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    x = noise((batch, channels, height, width), g)
    sizes = [
        (2 * first, channels, 1, 1),
        (2 * first, 1, 3, 3),
        (first, first, 1, 1),
        (channels, first, 1, 1),
        (2 * second, channels, 1, 1),
        (channels, second, 1, 1),
    ]
    matrices = [weights(size, tap_density if size[2] == 3 else density, g) for size in sizes]
    biases = [maybe(size[:1], wanted, g) for size, wanted in zip(sizes, biased, strict=True)]
    norms = [(1 + 0.1 * noise((channels,), g), 0.1 * noise((channels,), g), eps) for eps in (1e-6, 1e-5)]
    scales = [noise((channels,), g), noise((channels,), g)]
    expected = naf(x.float().double(), norms, matrices, biases, *scales)
    packed = PackedNAF(
        [(*as_float(list(norm[:2])), norm[2]) for norm in norms],
        as_float(matrices),
        as_float(biases),
        *as_float(scales),
    )
    scratch = torch.full((packed.scratch_floats(batch, height, width),), float("nan"))
    between = naf(x.float().double(), norms, matrices, biases, scales[0], 0 * scales[1])
    tolerance = 2 * max(norm_tolerance(x), norm_tolerance(between))
    check(packed, expected, x.float(), scratch, tolerance=tolerance)
    out = x.float().clone()
    packed.bind(out, out, scratch)()  # in place
    torch.testing.assert_close(out, packed(x.float()), atol=0, rtol=0)
