"""Packed matrices: what is packed is read back."""

import pytest
import torch

from mirl_kernels.core.cpu import Forms, PackedMatrix, pack, pack_taps, packed_matrix
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
    assert matrix.shape == (matrix.rows, matrix.columns) == shape
    assert matrix.nnz == weight.count_nonzero()
    assert torch.equal(matrix.to_dense(), weight)
    assert torch.equal(matrix.bias, bias)
    assert matrix.taps is None


@pytest.mark.parametrize("forms", Forms)
def test_only_nearly_full_matrices_are_kept_whole(forms):
    assert not PackedMatrix(pack(sparse(0.4, 20, 20), forms=forms)).is_dense
    full = PackedMatrix(pack(torch.ones(20, 20), forms=forms))
    assert full.is_dense == (forms not in (Forms.ENTRIES, Forms.BFLOAT16))
    assert full.chunks[0].has_entries == (forms is not Forms.EITHER)


@pytest.fixture
def pairs_are_fast(monkeypatch):
    """Pack by pairs of rows on any processor."""
    monkeypatch.setattr(packed_matrix, "kernel_rule", lambda name: int(name == "row_pairs_are_fast"))


def pairs_of_rows(words: torch.Tensor) -> list[tuple[list[int], list[list[float]], list[list[float]]]]:
    """Return a chunk's pairs: their rows, their shared columns, and their single ones."""
    (chunk,) = PackedMatrix(words).chunks
    at, floats, pairs = chunk.row_pairs, words.view(torch.float32), []
    for _ in range(0, chunk.rows, 2):
        first, second, shared, single = words[at : at + 4].tolist()
        at += 4
        columns = []
        for _ in range(shared):
            columns.append([int(words[at]) // 256, *floats[at + 1 : at + 3].tolist()])
            at += 3
        singles = []
        for _ in range(single):
            singles.append([*(words[at : at + 2] // 256).tolist(), *floats[at + 2 : at + 4].tolist()])
            at += 4
        pairs.append(([first, second], columns, singles))
    return pairs


@pytest.mark.usefixtures("pairs_are_fast")
@pytest.mark.parametrize("density", [0.02, 0.3, 0.6])
@pytest.mark.parametrize("rows", [1, 6, 33, 101])
def test_pairs_of_rows_hold_every_entry_once(rows, density):
    weight = sparse(density, rows, 50)
    weight[0, 0] = 1
    sums, seen = torch.zeros(rows + 1, 50), []
    for pair, shared, singles in pairs_of_rows(pack(weight, forms=Forms.PAIRS)):
        seen += pair
        for column, *values in shared:
            assert weight[pair, column].tolist() == values and 0 not in values
            sums[pair, column] += torch.tensor(values)
        for *columns, first, second in singles:
            sums[pair[0], columns[0]] += first
            sums[pair[1], columns[1]] += second
    assert sorted(row for row in seen if row >= 0) == list(range(rows))
    assert seen.count(-1) == rows % 2
    assert torch.equal(sums[:rows], weight)


@pytest.mark.usefixtures("pairs_are_fast")
def test_partners_share_columns():
    halves = torch.cat([torch.eye(2)] * 20).repeat_interleave(4, 1)  # rows take turns
    pairs = pairs_of_rows(pack(halves, forms=Forms.PAIRS))
    assert len(pairs) == 20
    assert all(len(shared) == 4 and not singles for _, shared, singles in pairs)


@pytest.mark.usefixtures("pairs_are_fast")
def test_where_a_row_of_a_pair_is_shorter_it_reads_a_column_of_its_own():
    weight = torch.zeros(2, 9)
    weight[0, 3], weight[1, 5:] = 2, 1
    ((pair, shared, singles),) = pairs_of_rows(pack(weight, forms=Forms.PAIRS))
    assert not shared
    columns, values = zip(*((step[pair.index(0)], step[2 + pair.index(0)]) for step in singles), strict=True)
    assert columns == (3, 3, 3, 3)
    assert sorted(values) == [0, 0, 0, 2]


def test_without_a_bias_there_is_none():
    assert PackedMatrix(pack(torch.ones(2, 3))).bias is None


def test_a_convolution_is_packed_by_groups_in_chunks_without_empty_columns():
    first, second = sparse(0.3, 4, 25), sparse(0.9, 3, 25)
    first[:, 5] = 0
    taps = torch.stack([torch.arange(25), torch.arange(25) % 3, torch.arange(25) % 2], 1).int()
    bias = torch.arange(7.0)
    matrix = PackedMatrix(pack_taps([(first, taps), (second, taps)], bias, chunk=10))
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
