"""Packed matrices: what is packed is read back, and tensors that are none are recognised."""

import pytest
import torch

from mirl_kernels.core.cpu import Forms, PackedMatrix, pack, pack_taps
from mirl_kernels.errors import BackendError


def sparse(density: float, rows: int, columns: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=g) * (torch.rand(rows, columns, generator=g) < density)


@pytest.mark.parametrize("forms", Forms)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (7, 130)])
def test_a_packed_matrix_is_read_back(shape, density, forms):
    weight, bias = sparse(density, *shape), torch.arange(float(shape[0]))
    matrix = PackedMatrix(pack(weight, bias, forms))
    assert matrix.is_well_formed
    assert matrix.shape == (matrix.rows, matrix.columns) == shape
    assert matrix.nnz == weight.count_nonzero()
    assert torch.equal(matrix.to_dense(), weight)
    assert torch.equal(matrix.bias, bias)
    assert matrix.taps is None


@pytest.mark.parametrize("forms", Forms)
def test_only_nearly_full_matrices_are_kept_whole(forms):
    assert not PackedMatrix(pack(sparse(0.4, 20, 20), forms=forms)).is_dense
    full = PackedMatrix(pack(torch.ones(20, 20), forms=forms))
    assert full.is_dense == (forms is not Forms.ENTRIES)
    assert full.chunks[0].has_entries == (forms is not Forms.EITHER)


def test_without_a_bias_there_is_none():
    assert PackedMatrix(pack(torch.ones(2, 3))).bias is None


def test_a_convolution_is_packed_by_groups_in_chunks_without_empty_columns():
    first, second = sparse(0.3, 4, 25), sparse(0.9, 3, 25)
    first[:, 5] = 0
    taps = torch.stack([torch.arange(25), torch.arange(25) % 3, torch.arange(25) % 2], 1).int()
    bias = torch.arange(7.0)
    matrix = PackedMatrix(pack_taps([(first, taps), (second, taps)], bias, chunk=10))
    assert matrix.is_well_formed
    used = [(part != 0).any(0) for part in (first, second)]
    expected = torch.zeros(7, sum(int(columns.sum()) for columns in used))
    middle = int(used[0].sum())
    expected[:4, :middle], expected[4:, middle:] = first[:, used[0]], second[:, used[1]]
    assert torch.equal(matrix.to_dense(), expected)
    assert torch.equal(matrix.taps, torch.cat([taps[used[0]], taps[used[1]]]))
    assert max(chunk.columns for chunk in matrix.chunks) == 10
    assert torch.equal(matrix.bias, bias)


def test_a_matrix_of_another_shape_is_refused():
    matrix = PackedMatrix(pack(torch.ones(2, 3)))
    matrix.expect(2)
    matrix.expect(2, 3)
    with pytest.raises(BackendError, match=r"packed weights have 2 rows and 3 columns; expected 4 rows$"):
        matrix.expect(4)
    with pytest.raises(BackendError, match="expected 2 rows and 5 columns"):
        matrix.expect(2, 5)


@pytest.mark.parametrize("forms", Forms)
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_a_part_of_a_packed_matrix_is_not_well_formed(density, forms):
    words = pack(sparse(density, 6, 8), torch.ones(6), forms)
    assert PackedMatrix(words).is_well_formed
    for length in range(len(words)):
        assert not PackedMatrix(words[:length]).is_well_formed


def test_other_tensors_are_not_well_formed():
    words = pack(torch.ones(2, 3))
    for other in (
        words.float(),
        words[None],
        words.long(),
        -words,
        torch.ones(9, dtype=torch.int32),
        words.to("meta"),
    ):
        assert not PackedMatrix(other).is_well_formed
