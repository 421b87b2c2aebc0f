"""Test how images are laid out for the kernels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import cases, noise, seeds, shapes

from mirl_kernels.core import cpu
from mirl_kernels.errors import BackendError


@cases
@given(seeds, st.integers(1, 3), st.integers(1, 50), shapes)
def test_channels_side_by_side_become_planes(seed, batch, channels, shape):
    x = noise((batch, *shape, channels), torch.Generator().manual_seed(seed)).float().permute(0, 3, 1, 2)
    assert torch.equal(cpu.with_rows(x), x)
    assert shape[1] == 1 or cpu.with_rows(x).stride(3) == 1
    assert torch.equal(cpu.with_rows(x[:, :, ::2]), x[:, :, ::2])


@cases
@given(st.integers(1, 5000))
def test_rows_are_padded_to_whole_vectors_that_meet_in_no_cache_set(floats):
    stride = cpu.padded(floats)
    assert stride >= floats + 16
    assert stride % 16 == 0
    assert stride % 1024


def test_transposed_columns_are_whole_vectors():
    assert [cpu.transposed_columns(n) for n in (0, 1, 16, 17)] == [0, 16, 16, 32]


def test_a_library_without_a_rule_is_of_another_version():
    with pytest.raises(BackendError, match=r"of another version \(mirl_no_such_rule\); install"):
        cpu.kernel_rule("no_such_rule")
