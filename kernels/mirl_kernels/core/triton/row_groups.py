"""Pack sparse matrices into row groups: rows that share the union of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mirl_kernels.core.triton.packed import as_type


class GroupCost(NamedTuple):
    """Price the row groups of one height, in instructions of a thread.

    The figures are counted in the product of 128 pixels compiled for sm_80.

    Attributes:
        column: Instructions for each column.
        group: Instructions for each row group.
    """

    column: float
    group: float


# The heights that a row group may have. Taller groups load a column for more rows, few of which may use it.
# 128 rows spill registers.
HEIGHTS = {
    16: GroupCost(5.6, 202),
    32: GroupCost(3.1, 329),
    64: GroupCost(4.4, 576),
}
_ROWS_OF_TENSOR_CORES = 8  # rows of a column that an A100's multiply in the time of one such instruction


class RowGroups(nn.Module):
    """Hold a sparse matrix as groups of rows, each with the union of its live columns.

    A group has ``height`` rows. The number of columns of a group is padded to a multiple of `step`. K is the
    number of padded columns of all groups, and G the number of groups. The values of padding are 0.

    Attributes:
        start: (G + 1,) int32, where the columns of each group begin.
        column: (K,) int32, the columns.
        value: (K, height), the values.
        row: (G * height,) int32, which row of the matrix each row of a group is; -1 for padding.
        total: (G * height,) float32, the sum of each row's values.
        rows: The number of rows of the matrix.
        columns: The number of columns of the matrix.
        height: The number of rows of a group.
    """

    start: Tensor
    column: Tensor
    value: Tensor
    row: Tensor
    total: Tensor

    def __init__(
        self, shape: tuple[int, int], start: Tensor, column: Tensor, value: Tensor, row: Tensor
    ) -> None:
        super().__init__()
        (self.rows, self.columns), self.height = shape, value.shape[1]
        sums = [part.float().sum(0) for part in value.split(start.diff().tolist())]
        self.register_buffer("start", start)
        self.register_buffer("column", column)
        self.register_buffer("value", value)
        self.register_buffer("row", row)
        self.register_buffer("total", torch.cat(sums) if sums else torch.zeros(0))

    @property
    def groups(self) -> int:
        """Return the number of groups."""
        return len(self.start) - 1

    @property
    def step(self) -> int:
        """Return how many columns are multiplied at a time."""
        return _step(self.height)

    def dense(self) -> Tensor:
        """Return the matrix, (rows, columns)."""
        matrix = self.value.new_zeros(self.rows + 1, self.columns)
        for g in range(self.groups):
            first, last = int(self.start[g]), int(self.start[g + 1])
            rows, columns = self.row[g * self.height : (g + 1) * self.height], self.column[first:last]
            matrix.index_put_(
                (rows.long()[None], columns.long()[:, None]), self.value[first:last], accumulate=True
            )
        return matrix[: self.rows]  # padding went into the last row


def _step(height: int) -> int:
    return 16 if height == 16 else 32


def cluster_rows(live: np.ndarray, height: int) -> np.ndarray:
    """Return an order of the rows of a boolean matrix in which the rows of a group share columns.

    The search is greedy. Every group starts with the fullest row that is not in a group yet. It then takes
    ``height - 1`` times the row that adds the fewest columns to its union, and of equal ones the fullest.

    Args:
        live: (rows, columns) bool, where the matrix is not 0.
        height: The number of rows of a group.

    Returns:
        (rows,) int, a permutation. Each ``height`` rows in a sequence make a group.
    """
    count = live.sum(1)
    taken = np.zeros(len(live), bool)
    order: list[int] = []

    def take(row: int) -> None:
        taken[row] = True
        order.append(row)

    while len(order) < len(live):
        take(int(np.where(taken, -1, count).argmax()))
        union = live[order[-1]].copy()  # the group's columns
        added = count - live[:, union].sum(1)  # how many more columns each row would bring
        for _ in range(min(height - 1, len(live) - len(order))):
            cost = added * (live.shape[1] + 1) - count
            cost[taken] = np.iinfo(np.int64).max
            take(int(cost.argmin()))
            new = live[order[-1]] & ~union
            added -= live[:, new].sum(1)
            union |= new
    return np.array(order)


@torch.no_grad()
def pack_row_groups(
    matrix: Tensor, dtype: torch.dtype, heights: Sequence[int] = tuple(HEIGHTS), section: int = 0
) -> RowGroups:
    """Pack a matrix into row groups of the height that takes the least work, with its rows clustered.

    Args:
        matrix: (rows, columns), on any device.
        dtype: The type of the packed values.
        heights: The heights to choose from, of `HEIGHTS`.
        section: The columns that are multiplied in one step all lie in one section of so many columns. 0
            means that the whole matrix is one section.
    """
    array = matrix.float().cpu().numpy()
    heights = [h for h in heights if h == min(heights) or h < 2 * len(array)]  # taller ones are padding
    return min((_pack(array, dtype, h, section or array.shape[1]) for h in heights), key=_instructions)


def _instructions(matrix: RowGroups) -> float:
    """Return what the product takes: the instructions issued, or what tensor cores take if that is more."""
    cost, columns = HEIGHTS[matrix.height], len(matrix.column)
    return max(
        columns * cost.column + matrix.groups * cost.group, columns * matrix.height / _ROWS_OF_TENSOR_CORES
    )


def _pack(matrix: np.ndarray, dtype: torch.dtype, height: int, section: int) -> RowGroups:
    rows, columns = matrix.shape
    live = matrix != 0
    order = cluster_rows(live, height) if rows > height else np.arange(rows)
    starts, chosen, values = [0], [np.zeros(0, np.int32)], [np.zeros((0, height), np.float32)]
    for first in range(0, rows, height):
        group = order[first : first + height]
        union = live[group].any(0).nonzero()[0]
        for used in np.split(union, np.searchsorted(union, np.arange(section, columns, section))):
            # Padding repeats a column, so that it reads nothing more.
            padded = np.pad(used, (0, -len(used) % _step(height)), "edge" if len(used) else "constant")
            value = np.zeros((len(padded), height), np.float32)
            value[: len(used), : len(group)] = matrix[group[:, None], used].T
            chosen.append(padded.astype(np.int32))
            values.append(value)
        starts.append(sum(map(len, chosen)))
    row = np.full(-(-rows // height) * height, -1, np.int32)
    row[:rows] = order
    return RowGroups(
        (rows, columns),
        torch.tensor(starts, dtype=torch.int32),
        torch.from_numpy(np.concatenate(chosen)),
        as_type(torch.from_numpy(np.concatenate(values)), dtype),
        torch.from_numpy(row),
    )
