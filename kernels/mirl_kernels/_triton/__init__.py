"""What the Triton kernels share: sparse matrices as panels, and how a tensor is handed to a kernel.

Nothing here imports triton: it is there on Linux alone, and takes seconds to load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ROWS = 16  # of a panel: the least that tensor cores multiply
COLUMNS = 16  # panels are padded to multiples of this


class Panels(nn.Module):
    """A sparse (rows, columns) matrix as panels of ROWS rows, each with the union of their live columns.

    start (G + 1,) int32: where each panel's columns begin; column (K,) int32; value (K, ROWS); row (G * ROWS,) int32: which
    row each one is, -1 for padding. K counts the padded columns of all panels, whose values are 0.
    """

    start: Tensor
    column: Tensor
    value: Tensor
    row: Tensor

    def __init__(self, rows: int, columns: int, start: Tensor, column: Tensor, value: Tensor, row: Tensor) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        for name, tensor in (("start", start), ("column", column), ("value", value), ("row", row)):
            self.register_buffer(name, tensor)

    @property
    def groups(self) -> int:
        return len(self.start) - 1

    def dense(self) -> Tensor:
        """The matrix."""
        whole = self.value.new_zeros(self.rows + 1, self.columns)
        for g in range(self.groups):
            first, last = int(self.start[g]), int(self.start[g + 1])
            rows, columns = self.row[g * ROWS : (g + 1) * ROWS], self.column[first:last]
            whole.index_put_((rows.long()[None], columns.long()[:, None]), self.value[first:last], accumulate=True)
        return whole[: self.rows]  # padding went into the last row


def cluster(live: Tensor) -> Tensor:
    """An order of the rows of a boolean matrix in which those beside each other share columns.

    Greedy: every panel starts with the fullest row that is left and takes, ROWS - 1 times, the row that adds the fewest
    columns to its union, among equals the fullest."""
    left = torch.ones(len(live), dtype=torch.bool)
    count = live.sum(1)
    order: list[int] = []
    inside = live.to(torch.float32)
    while left.any():
        union = torch.zeros(live.shape[1], dtype=torch.float32)
        for _ in range(min(ROWS, int(left.sum()))):
            added = (inside @ (1 - union)).round().long()
            cost = added * (live.shape[1] + 1) - count if order and len(order) % ROWS else -count
            cost[~left] = torch.iinfo(torch.long).max
            best = int(cost.argmin())
            order.append(best)
            left[best] = False
            union = torch.maximum(union, inside[best])
    return torch.tensor(order, dtype=torch.long)


@torch.no_grad()
def pack_panels(matrix: Tensor, dtype: torch.dtype) -> Panels:
    """The panels of a (rows, columns) matrix, its rows clustered."""
    matrix = matrix.float().cpu()
    rows, columns = matrix.shape
    order = cluster(matrix != 0)
    starts, chosen, values = [0], [], []
    padded = torch.full((-(-rows // ROWS) * ROWS,), -1, dtype=torch.int32)
    padded[:rows] = order.int()
    for group in order.split(ROWS):
        part = matrix[group]
        used = (part != 0).any(0).nonzero()[:, 0]
        missing = -len(used) % COLUMNS
        chosen.append(torch.nn.functional.pad(used, (0, missing)).int())
        values.append(torch.nn.functional.pad(part[:, used].T, (0, ROWS - len(group), 0, missing)))
        starts.append(starts[-1] + len(chosen[-1]))
    return Panels(
        rows,
        columns,
        torch.tensor(starts, dtype=torch.int32),
        torch.cat(chosen),
        torch.cat(values).to(dtype).contiguous(),
        padded,
    )


class Packed(nn.Module):
    """An op's surviving weights for the Triton kernels, for activations of ``dtype``."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def check(self, x: Tensor, y: Tensor | None, shape: Sequence[int], kinds: Sequence[torch.dtype] = ()) -> Tensor:
        """The tensor to write to, of ``shape``: ``y`` or a new one. ValueError unless x and y are (B, C, H, W) whose planes are
        contiguous and side by side, as channels of a contiguous tensor are, of the weights' dtype or one of ``kinds``."""
        y = x.new_empty(shape, dtype=self.dtype) if y is None else y
        for name, t in (("x", x), ("y", y)):
            planes = t.ndim == 4 and t.stride()[1:] == (t.shape[2] * t.shape[3], t.shape[3], 1)
            if not planes or t.dtype not in (self.dtype, *kinds):
                raise ValueError(
                    f"{name} is {t.dtype} {tuple(t.shape)} of strides {t.stride()}; expected {self.dtype} planes"
                )
        if y.shape != torch.Size(shape):
            raise ValueError(f"y is {tuple(y.shape)}; expected {tuple(shape)}")
        return y
