"""The prompt block on the CPU against its definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import cases, check, densities, noise, seeds, shapes, weights

from mirl_kernels.ops.prompt import PackedPrompt, prompt


@cases
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 6),
    st.integers(1, 10),
    st.integers(1, 9),
    shapes,
    densities,
)
def test_the_kernel_computes_the_definition(seed, batch, channels, count, prompts, side, shape, density):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    x = noise((batch, channels, height, width), g)
    args = [
        weights((count, channels), density, g),
        noise((count,), g),
        noise((1, count, prompts, side, side), g),
        weights((prompts, prompts, 3, 3), density, g),
    ]
    packed = PackedPrompt(*(a.float() for a in args))
    scratch = torch.full((packed.scratch_floats(len(x), *x.shape[2:]),), float("nan"))
    check(packed, prompt(x.float().double(), *args), x.float(), scratch)
