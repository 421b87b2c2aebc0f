"""Test how images are laid out for the kernels."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import cases, noise, seeds, shapes

from mirl_kernels.core import cpu


@cases
@given(seeds, st.integers(1, 3), st.integers(1, 50), shapes)
def test_channels_side_by_side_become_planes(seed, batch, channels, shape):
    x = noise((batch, *shape, channels), torch.Generator().manual_seed(seed)).float().permute(0, 3, 1, 2)
    assert torch.equal(cpu.with_rows(x), x)
    assert shape[1] == 1 or cpu.with_rows(x).stride(3) == 1
    assert torch.equal(cpu.with_rows(x[:, :, ::2]), x[:, :, ::2])
