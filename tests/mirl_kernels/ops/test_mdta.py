"""MDTA on the CPU against its definition."""

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
    seeds,
    shapes,
    weights,
)

from mirl_kernels.ops.mdta import PackedMDTA, mdta


@cases
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 24),
    shapes,
    densities,
    densities,
    st.booleans(),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_the_kernel_computes_the_definition(
    seed, batch, heads, per_head, shape, density, tap_density, centred, biased
):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    channels = heads * per_head
    x = noise((batch, channels, height, width), g)
    biases = [
        maybe((n,), wanted, g)
        for n, wanted in zip((3 * channels, 3 * channels, channels), biased, strict=True)
    ]
    args = [
        1 + 0.1 * noise((channels,), g),
        0.1 * noise((channels,), g) if centred else None,
        weights((3 * channels, channels, 1, 1), density, g),
        weights((3 * channels, 1, 3, 3), tap_density, g),
        1 + 0.3 * noise((heads, 1, 1), g),
        weights((channels, channels, 1, 1), density, g),
        biases,
    ]
    packed = PackedMDTA(*as_float(args))
    scratch = torch.full((packed.scratch_floats(len(x), *x.shape[2:]),), float("nan"))
    check(
        packed,
        mdta(x.float().double(), *args),
        x.float(),
        scratch,
        tolerance=attention_tolerance(x, any(biased), mdta, *args),
    )


def test_dead_queries_and_keys_still_count_in_the_softmax():
    """Their logit is 0, so a live v paired with a dead k keeps its weight exp(0) = 1."""
    g = torch.Generator().manual_seed(3)
    channels = 8
    x = noise((1, channels, 9, 11), g)
    for dead in (
        range(8),
        range(3),
        range(8, 16),
        range(10, 13),
        (0, 9, 18),
        range(16),
        range(16, 20),
        range(16, 24),
    ):
        qkv = weights((3 * channels, channels, 1, 1), 1.0, g)
        qkv[list(dead)] = 0
        args = [
            torch.ones(channels),
            torch.zeros(channels),
            qkv,
            weights((3 * channels, 1, 3, 3), 1.0, g),
            torch.tensor([1.5, 0.7]).view(2, 1, 1),
            weights((channels, channels, 1, 1), 1.0, g),
        ]
        packed = PackedMDTA(*(a.float() for a in args))
        assert sum(map(len, packed.live)) <= 3 * channels - len(dead)
        expected = mdta(x.float().double(), *(a.double() for a in args))
        check(
            packed,
            expected,
            x.float(),
            torch.full((packed.scratch_floats(len(x), *x.shape[2:]),), float("nan")),
        )
