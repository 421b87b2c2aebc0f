"""Pack sparse matrices for the kernels, and read packed ones.

A packed matrix is one int32 tensor, so that a module keeps it as a buffer and a state dict stores it. Its
layout is ``MirlMatrix`` of abi.h: a header, a table of chunks, and what the table names by its position in
the words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from mirl_kernels.core.cpu.library import Bfloat16Unit, bfloat16_unit, kernel_rule
from mirl_kernels.errors import BackendError

CHUNK = 96  # columns whose panel fits the first-level cache
DENSE = 0.55  # the density from which a product by rows takes longer than one with the whole matrix
DENSE_PAIRS = 0.7  # the same for a product by pairs of rows
TILES = 0.15  # the density from which a product of bfloat16 numbers by AMX is faster than one by rows
VECTORS = 0.3  # the same by AVX512_BF16
PANEL = 64  # MIRL_PANEL of abi.h: floats from one channel of a pixel panel to the next
_HEADER = 5  # words: rows, columns, entries, chunks, position of the taps
_CHUNK_WORDS = 9  # words: the fields of Chunk
_ROWS_TOGETHER = 4  # rows of a whole matrix that the kernels compute at a time
_CACHE_LINE = 16  # words
_TILE_ROWS, _TILE_COLUMNS = 16, 32
_WINDOW = 32  # rows of like density among which partners are sought
_PAIR_WORDS, _SHARED_WORDS, _SINGLE_WORDS = 4, 3, 4  # words of a MirlRowPair and of its columns


_any_processor = ContextVar("any_processor", default=False)


@contextmanager
def packed_for_any_processor() -> Iterator[None]:
    """Pack matrices for all processors, not for this machine's alone, as long as the context lasts."""
    token = _any_processor.set(True)
    try:
        yield
    finally:
        _any_processor.reset(token)


class Forms(Enum):
    """Choose how a matrix is packed.

    Attributes:
        BOTH: As entries, and whole beside them if it is more than `DENSE` full.
        PAIRS: As entries, and beside them whole if it is more than `DENSE_PAIRS` full, or else by pairs of
            rows (``MirlRowPair`` of abi.h); as BOTH where the kernels do not use pairs. Rows are computed
            in another order, which suits results that stay in a cache.
        BFLOAT16: As entries, and beside them rounded to bfloat16 (``tiles`` of abi.h) if it is so full that a
            product of these is faster (`TILES`, `VECTORS`).
        EITHER: Whole alone if it is more than `DENSE` full, or else as entries alone.
        ENTRIES: As entries alone.
    """

    BOTH = "entries, and whole beside them"
    PAIRS = "entries, and pairs of rows or whole beside them"
    BFLOAT16 = "entries, and bfloat16 numbers beside them"
    EITHER = "whole alone"
    ENTRIES = "entries alone"


@dataclass(frozen=True)
class Chunk:
    """Read one chunk of a packed matrix: some rows by some columns (``MirlChunk`` of abi.h).

    Attributes:
        words: The whole packed matrix.
        first_row: The first of its rows in the matrix.
        rows: Number of rows.
        columns: Number of columns.
        start: Position of the rows + 1 places at which rows begin among the entries. Positions are 0 for what
            the chunk does not have.
        entry: Position of the entries: pairs of an offset in a panel and a float32 value.
        bias_at: Position of the bias.
        dense: Position of the whole matrix.
        row_pairs: Position of the pairs of rows.
        tiles: Position of the bfloat16 numbers.
    """

    words: Tensor
    first_row: int
    rows: int
    columns: int
    start: int
    entry: int
    bias_at: int
    dense: int
    row_pairs: int
    tiles: int

    @property
    def is_dense(self) -> bool:
        """Return whether the chunk is kept whole, for a dense product."""
        return self.dense != 0

    @property
    def has_entries(self) -> bool:
        """Return whether the chunk is kept as entries."""
        return self.start != 0

    @property
    def nnz(self) -> int:
        """Return the number of entries of a chunk that is kept as entries."""
        return int(self.words[self.start + self.rows])

    @property
    def values(self) -> Tensor:
        """Return the values of the entries, row by row: (nnz,) float32."""
        return self.words.view(torch.float32)[self.entry + 1 :][: 2 * self.nnz : 2]

    @property
    def bias(self) -> Tensor | None:
        """Return the bias, (rows,) float32, or None."""
        return self.words.view(torch.float32)[self.bias_at :][: self.rows] if self.bias_at else None

    def to_dense(self) -> Tensor:
        """Return the chunk as a (rows, columns) float32 matrix."""
        if not self.has_entries:
            padded = self.rows + -self.rows % _ROWS_TOGETHER
            whole = self.words.view(torch.float32)[self.dense :][: padded * self.columns]
            return whole.view(-1, self.columns, _ROWS_TOGETHER).transpose(1, 2).flatten(0, 1)[: self.rows]
        matrix = torch.zeros(self.rows, self.columns, dtype=torch.float32)
        counts = self.words[self.start :][: self.rows + 1].diff()
        row = torch.arange(self.rows).repeat_interleave(counts)
        column = self.words[self.entry :][: 2 * self.nnz : 2] // (4 * PANEL)
        matrix[row, column.long()] = self.values
        return matrix


class PackedMatrix:
    """Read a packed matrix by name.

    Examples:
        >>> matrix = PackedMatrix(pack(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])))
        >>> matrix.shape, matrix.nnz, matrix.is_dense
        ((2, 3), 2, False)

    Args:
        words: The packed matrix, int32, as `pack` and `pack_taps` make it.
    """

    __slots__ = ("words",)

    def __init__(self, words: Tensor) -> None:
        self.words = words

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return int(self.words[0])

    @property
    def columns(self) -> int:
        """Return the number of columns."""
        return int(self.words[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Return the numbers of rows and columns."""
        rows, columns = self.words[:2].tolist()
        return rows, columns

    @property
    def nnz(self) -> int:
        """Return the number of entries that are not zero, whichever way they are kept."""
        return int(self.words[2])

    @property
    def chunks(self) -> list[Chunk]:
        """Return the chunks, in the order of their rows."""
        table = self.words[_HEADER : _HEADER + _CHUNK_WORDS * int(self.words[3])].view(-1, _CHUNK_WORDS)
        return [Chunk(self.words, *fields) for fields in table.tolist()]

    @property
    def taps(self) -> Tensor | None:
        """Return what the columns of a convolution's matrix read, or None for other matrices.

        Returns:
            (columns, 3) int32: channel, and distance in rows and in columns (``MirlTap`` of abi.h).
        """
        at = int(self.words[4])
        return self.words[at : at + 3 * self.columns].view(-1, 3) if at else None

    @property
    def bias(self) -> Tensor | None:
        """Return the bias, (rows,) float32, or None if no chunk has one."""
        parts = [(chunk.first_row, chunk.bias) for chunk in self.chunks]
        if all(part is None for _, part in parts):
            return None
        bias = torch.zeros(self.rows, dtype=torch.float32)
        for first, part in parts:
            if part is not None:
                bias[first : first + len(part)] += part
        return bias

    @property
    def is_dense(self) -> bool:
        """Return whether all chunks are kept whole."""
        chunks = self.chunks
        return bool(chunks) and all(chunk.is_dense for chunk in chunks)

    def to_dense(self) -> Tensor:
        """Return the matrix as (rows, columns) float32.

        The columns of a convolution's matrix are those of its chunks, one chunk after the other.
        """
        matrix, column = torch.zeros(self.shape, dtype=torch.float32), 0
        for chunk in self.chunks:
            if self.taps is None:
                column = 0
            matrix[chunk.first_row :][: chunk.rows, column : column + chunk.columns] = chunk.to_dense()
            column += chunk.columns
        return matrix

    def expect(self, rows: int, columns: int | None = None) -> None:
        """Check the shape, because a kernel with the wrong matrix writes beyond its image.

        Args:
            rows: How many rows the matrix must have.
            columns: How many columns it must have; None for any number.

        Raises:
            BackendError: If the shape is another one.
        """
        shape = self.shape
        if shape[0] != rows or columns not in (None, shape[1]):
            wanted = f"{rows} rows" if columns is None else f"{rows} rows and {columns} columns"
            raise BackendError(
                f"packed weights have {shape[0]} rows and {shape[1]} columns; expected {wanted}"
            )


class _Part(NamedTuple):
    """Hold what one chunk is packed from: a matrix, the row that it begins at, and a bias."""

    first_row: int
    matrix: Tensor
    bias: Tensor | None


class _Writer:
    """Collects the words behind the table of chunks."""

    def __init__(self, chunks: int) -> None:
        self.words: list[Tensor] = []
        self._end = _HEADER + _CHUNK_WORDS * chunks

    def add(self, part: Tensor | None, alignment: int = 1) -> int:
        """Append a tensor's memory at a multiple of so many words; return its position, 0 for None."""
        if part is None:
            return 0
        gap = -self._end % alignment
        self.words += [torch.zeros(gap, dtype=torch.int32), part.contiguous().view(torch.int32).flatten()]
        start = self._end + gap
        self._end = start + self.words[-1].numel()
        return start


def _entries(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (rows + 1,) places at which rows begin among the entries, and the (nnz, 2) entries."""
    row, column = matrix.nonzero(as_tuple=True)
    start = torch.zeros(len(matrix) + 1, dtype=torch.int32)
    start[1:] = torch.bincount(row, minlength=len(matrix)).cumsum(0)
    values = matrix[row, column].float().contiguous().view(torch.int32)
    return start, torch.stack([_offset(column), values], 1)


def _partners(alive: Tensor) -> Tensor:
    """Return rows in pairs that share many columns and have like numbers of them.

    Args:
        alive: (R, C) float32, 1 where a row has an entry.

    Returns:
        (R / 2, 2) int64, rounded up; an odd row's partner is R.
    """
    order = alive.sum(1).argsort(descending=True, stable=True)
    order = torch.nn.functional.pad(order, (0, -len(order) % _WINDOW), value=len(alive)).view(-1, _WINDOW)
    rows = torch.nn.functional.pad(alive, (0, 0, 0, 1))[order]
    counts = rows.sum(2).where(order < len(alive), -1e6)  # what is no row comes last
    # With AVX-512 a shared column takes about 4 cycles, two single ones 5. Two rows of a and b columns, s of
    # them shared, take 4 s + 5 (max(a, b) - s) cycles: the fewest where s - 2.5 |a - b| is greatest.
    score = rows @ rows.mT - 2.5 * (counts[:, :, None] - counts[:, None, :]).abs()
    score -= torch.eye(_WINDOW) * 1e9
    pairs, index = [], torch.arange(len(order))
    for _ in range(_WINDOW // 2):
        best = score.flatten(1).argmax(1)
        pair = torch.stack([best // _WINDOW, best % _WINDOW], 1)
        pairs.append(order.gather(1, pair))
        for row in pair.T:
            score[index, row, :] = score[index, :, row] = -1e9
    chosen = torch.cat(pairs).sort(1).values
    return chosen[chosen[:, 0] < len(alive)]


def _in_pairs(matrix: Tensor) -> Tensor:
    """Return the matrix as the product by pairs of rows reads it (``MirlRowPair`` of abi.h)."""
    rows = len(matrix)
    padded = torch.nn.functional.pad(matrix.float(), (0, 0, 0, 1))  # an empty row behind the others
    pairs = _partners((matrix != 0).float())
    alive = (padded != 0)[pairs]  # (pairs, 2, C)
    shared = alive.all(1)
    singles = alive & ~shared[:, None]
    counts = torch.stack([shared.sum(1), singles.sum(2).amax(1)], 1)

    size = _PAIR_WORDS + counts @ torch.tensor([_SHARED_WORDS, _SINGLE_WORDS])
    start = size.cumsum(0) - size
    words = torch.zeros(int(size.sum()), dtype=torch.int32)
    head = torch.cat([pairs.where(pairs < rows, -1), counts], 1)
    words[start[:, None] + torch.arange(_PAIR_WORDS)] = head.int()
    values = padded.view(torch.int32)
    start += _PAIR_WORDS
    pair, column = shared.nonzero(as_tuple=True)
    at = start[pair] + _SHARED_WORDS * _ranks(counts[:, 0])
    words[at] = _offset(column)
    for side in range(2):
        words[at + 1 + side] = values[pairs[pair, side], column]
    start += _SHARED_WORDS * counts[:, 0]
    pair = torch.arange(len(pairs)).repeat_interleave(counts[:, 1])
    at = start[pair] + _SINGLE_WORDS * _ranks(counts[:, 1])
    for side in range(2):
        # Where a row has fewer columns, one of its own: 0 times a NaN is one.
        words[at + side] = _offset(alive[pair, side].int().argmax(1))
        own, column = singles[:, side].nonzero(as_tuple=True)
        to = start[own] + _SINGLE_WORDS * _ranks(singles[:, side].sum(1))
        words[to + side] = _offset(column)
        words[to + 2 + side] = values[pairs[own, side], column]
    return words


def _ranks(counts: Tensor) -> Tensor:
    """Return 0, 1, ... for each count in turn."""
    return torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)


def _offset(column: Tensor) -> Tensor:
    """Return where a column's channel begins in a panel, in bytes."""
    return (column * (4 * PANEL)).int()


def _whole(matrix: Tensor) -> Tensor:
    """Return the matrix as the dense product reads it: four rows at a time, column by column."""
    padded = torch.nn.functional.pad(matrix.float(), (0, 0, 0, -len(matrix) % _ROWS_TOGETHER))
    return padded.view(-1, _ROWS_TOGETHER, matrix.shape[1]).transpose(1, 2)


def _in_tiles(matrix: Tensor) -> Tensor:
    """Return a matrix as products of bfloat16 numbers read it: padded with zeros to whole tiles."""
    padding = (0, -matrix.shape[1] % _TILE_COLUMNS, 0, -len(matrix) % _TILE_ROWS)
    return torch.nn.functional.pad(matrix.float(), padding).bfloat16()


def _is_in_tiles(forms: Forms, density: float) -> bool:
    """Return whether a matrix of such a density is kept in bfloat16."""
    if forms is not Forms.BFLOAT16:
        return False
    least = TILES if bfloat16_unit() is Bfloat16Unit.TILES else VECTORS
    return density > least


def _assemble(
    parts: list[_Part], rows: int, columns: int, taps: Tensor | None = None, forms: Forms = Forms.BOTH
) -> Tensor:
    """Write a MirlMatrix of abi.h."""
    writer, table, nnz = _Writer(len(parts)), [], 0
    for first_row, matrix, bias in parts:
        start, entry = _entries(matrix)
        density = len(entry) / max(1, matrix.numel())
        tiles = _in_tiles(matrix) if _is_in_tiles(forms, density) else None
        uses_pairs = _any_processor.get() or kernel_rule("row_pairs_are_fast") != 0
        by_pairs = forms is Forms.PAIRS and uses_pairs and density <= DENSE_PAIRS and len(entry) > 0
        full = density > DENSE and (not by_pairs or _any_processor.get())
        is_dense = forms not in (Forms.ENTRIES, Forms.BFLOAT16) and full
        entries = (None, None) if is_dense and forms is Forms.EITHER else (start, entry)
        stored = (
            *entries,
            None if bias is None else bias.float(),
            _whole(matrix) if is_dense else None,
            _in_pairs(matrix) if by_pairs else None,
        )
        table += [first_row, *matrix.shape, *map(writer.add, stored), writer.add(tiles, _CACHE_LINE)]
        nnz += len(entry)
    header = [rows, columns, nnz, len(parts), writer.add(taps)]
    return torch.cat([torch.tensor(header + table, dtype=torch.int32), *writer.words])


@torch.no_grad()
def pack(matrix: Tensor, bias: Tensor | None = None, forms: Forms = Forms.BOTH) -> Tensor:
    """Pack a matrix as one chunk.

    Args:
        matrix: (rows, columns) weights.
        bias: (rows,) what the kernels add to each row's result.
        forms: How the matrix is kept.

    Returns:
        The packed matrix, int32; `PackedMatrix` reads it.
    """
    rows, columns = matrix.shape
    return _assemble([_Part(0, matrix, bias)], rows, columns, forms=forms)


@torch.no_grad()
def pack_taps(
    groups: Sequence[tuple[Tensor, Tensor]],
    bias: Tensor | None = None,
    chunk: int | None = CHUNK,
    forms: Forms = Forms.BOTH,
) -> Tensor:
    """Pack the matrix of a convolution.

    Args:
        groups: For each group of output channels in turn a (rows, columns) matrix and what its columns read,
            (columns, 3) int32: channel, and distance in rows and columns.
        bias: (rows of all groups,) what the kernels add to each row's result.
        chunk: Columns of zeros are left out, and the others cut into chunks of at most so many. With None
            nothing is left out or cut.
        forms: How the chunks are kept.

    Returns:
        The packed matrix, int32; `PackedMatrix` reads it.
    """
    parts, taps, row = [], [], 0
    for matrix, tap in groups:
        selections = [torch.arange(matrix.shape[1])]
        if chunk:
            used = (matrix != 0).any(0).nonzero()[:, 0]
            selections = list(used.split(chunk))
        for i, columns in enumerate(selections):
            offset = None if bias is None or i else bias[row : row + len(matrix)]
            parts.append(_Part(row, matrix[:, columns], offset))
            taps.append(tap[columns])
        row += len(matrix)
    return _assemble(parts, row, sum(map(len, taps)), torch.cat(taps).int(), forms)


def to_bfloat16(packed: Tensor) -> Tensor:
    """Return a packed matrix as `Forms.BFLOAT16` packs it, or as it is if none of it becomes bfloat16."""
    matrix = PackedMatrix(packed)
    parts = [_Part(chunk.first_row, chunk.to_dense(), chunk.bias) for chunk in matrix.chunks]
    rounded = _assemble(parts, *matrix.shape, matrix.taps, Forms.BFLOAT16)
    return rounded if any(chunk.tiles for chunk in PackedMatrix(rounded).chunks) else packed


class Layer(NamedTuple):
    """Hold the weight of a layer and its bias.

    Attributes:
        weight: The weight; of a norm, its gain.
        bias: The bias, or None.
    """

    weight: Tensor
    bias: Tensor | None


@torch.no_grad()
def pack_normalised(norm: Layer, pointwise: Layer, taps: Layer, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Pack what MDTA and GDFN begin with: a layer norm, a 1x1 layer and a depthwise 3x3 convolution.

    The norm's gain and bias are folded into the 1x1 layer, which is exact because its result is padded later.

    Args:
        norm: Gain and bias, (C,) each.
        pointwise: The 1x1 layer: (R, C) and (R,).
        taps: The depthwise convolution: (R, 9) and (R,).
        rows: Which of the R rows are packed, in this order.

    Returns:
        The packed matrices of the 1x1 layer and of the taps.
    """
    weight, bias = pointwise
    offset = weight.new_zeros(len(weight)) if bias is None else bias
    if norm.bias is not None:
        offset = offset + weight @ norm.bias
    packed = pack(weight[rows] * norm.weight, offset[rows], Forms.PAIRS)
    tap_bias = None if taps.bias is None else taps.bias[rows]
    return packed, pack(taps.weight[rows], tap_bias, Forms.ENTRIES)


def address(packed: Tensor) -> int:
    """Return where the kernels find a packed matrix, or a list of channels.

    Raises:
        BackendError: If it was moved from the CPU, cast, or is not contiguous.
    """
    if packed.device.type != "cpu" or packed.dtype != torch.int32 or not packed.is_contiguous():
        raise BackendError(f"packed weights are {packed.dtype} on {packed.device}; expected int32 on the CPU")
    return packed.data_ptr()


def layer_addresses(layer: Layer | None) -> tuple[int | None, int | None]:
    """Return where the weight and the bias of a layer begin, or None for what there is not."""
    if layer is None:
        return None, None
    return layer.weight.data_ptr(), None if layer.bias is None else layer.bias.data_ptr()


def whole_chunks(packed: Tensor) -> tuple[int, int]:
    """Return how many chunks of a packed matrix are kept whole, and how many chunks there are."""
    chunks = PackedMatrix(packed).chunks
    return sum(chunk.is_dense for chunk in chunks), len(chunks)
