"""Train by surviving weights: matrices whose values change every step, and whose zeros do not."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from ctypes import Structure, addressof, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core.cpu.layout import transposed_columns, with_rows
from mirl_kernels.core.cpu.library import Call
from mirl_kernels.core.cpu.packed_matrix import CHUNK, Forms, PackedMatrix, pack, pack_taps
from mirl_kernels.errors import BackendError

_thread = threading.local()


def workspace(floats: int) -> int:
    """Return the address of so many floats that this thread keeps from one call to the next."""
    memory: Tensor | None = getattr(_thread, "memory", None)
    if memory is None or len(memory) < floats:
        memory = _thread.memory = torch.empty(floats, dtype=torch.float32)
    return memory.data_ptr()


def fits_flat(height: int, width: int) -> bool:
    """Return whether all rows of such an image may be treated as one row: they are short and it is small."""
    return width in (1, 2, 4, 8, 16) and height * width <= 1024


def flat(batch: int, _: int, height: int, width: int) -> bool:
    """Return whether the kernels treat all rows of such an image as one row.

    This is faster if the rows are short and the batch has enough items for all threads.
    """
    return fits_flat(height, width) and batch >= 8


def laid_out(x: Tensor) -> Tensor:
    """Return x, or a copy of it, as the kernels take it."""
    return x.contiguous() if x.ndim == 4 and flat(*x.shape) else with_rows(x)


def empty(batch: int, channels: int, height: int, width: int) -> Tensor:
    """Return an uninitialised (B, C, H, W) image.

    Where it is `flat`, it is contiguous. Otherwise the channels of each of its rows lie together: where
    planes lie a power of two apart, all channels of a pixel meet in one set of the cache.
    """
    if flat(batch, channels, height, width):
        return torch.empty(batch, channels, height, width, dtype=torch.float32)
    return torch.empty(batch, height, channels, width, dtype=torch.float32).permute(0, 2, 1, 3)


class WeightArgs(Structure):
    """Describe a packed matrix and the weight that its values come from (``MirlWeight`` of abi.h)."""

    _fields_ = [
        ("packed", c_void_p),
        ("source", c_void_p),
        ("weight", c_void_p),
        ("gradient", c_void_p),
        ("clear", c_int64),
    ]


class WeightsArgs(Structure):
    """Hold the argument of the kernels ``fill`` and ``spread`` (``MirlWeights`` of abi.h)."""

    _fields_ = [("weights", c_void_p), ("count", c_int64), ("threads", c_int64)]


_EXACT = 1 << 24  # integers up to here are floats


class Pattern:
    """Pack the places of a weight's surviving values.

    Value (r, c) of the matrix comes from place ``row_at[r] + column_at[c]`` of the weight.

    Attributes:
        packed: The packed matrix; its values are to be filled in.
        bias: Its bias, (rows,), in the memory of the packed matrix, likewise; None if it has none.
        bias_at: As for the constructor.
        source: The places that its values come from (``MirlWeight`` of abi.h).
        gradient_floats: Floats that its gradients take.
        whole: How many values belong to chunks that are kept whole. Their gradients are all written.

    Args:
        alive: (rows, columns) bool: which values survive.
        row_at: (rows,) int64.
        column_at: (columns,) int64.
        taps: (columns, 3) as for `pack_taps`: the matrix is that of a convolution. None for other matrices.
        forms: How chunks are kept that are nearly full.
        bias_at: (rows,) int64: which values of a bias the matrix has; None for a matrix without one.

    Raises:
        BackendError: If the layer has too many weights to be numbered.
    """

    def __init__(
        self,
        alive: Tensor,
        row_at: Tensor,
        column_at: Tensor,
        taps: Tensor | None = None,
        forms: Forms = Forms.EITHER,
        bias_at: Tensor | None = None,
    ) -> None:
        if alive.numel() and int(row_at.max() + column_at.max()) >= _EXACT:
            raise BackendError(
                f"a layer has more than {_EXACT} weights, which the training kernels cannot number"
            )
        # The places are packed as values, one more than they are, because zeros are left out.
        numbers = (row_at[:, None] + column_at + 1).float() * alive
        if taps is None:
            selections = [torch.arange(alive.shape[1])]
            self.packed = pack(numbers, None if bias_at is None else torch.zeros(len(alive)), forms)
        else:
            selections = list(alive.any(0).nonzero()[:, 0].split(CHUNK))
            self.packed = pack_taps([(numbers, taps)], forms=forms)
        self.bias_at = bias_at
        self.bias = None if bias_at is None else PackedMatrix(self.packed).chunks[0].bias
        self.gradient_floats = self.whole = 0
        source: list[Tensor] = []
        for columns, chunk in zip(selections, PackedMatrix(self.packed).chunks, strict=True):
            if chunk.is_dense:
                pruned = (~alive[:, columns]).flatten().nonzero()[:, 0]
                source += [row_at, column_at[columns], torch.tensor([len(pruned)]), pruned]
                self.gradient_floats += chunk.rows * transposed_columns(len(columns))
                self.whole += chunk.rows * len(columns)
            else:
                source.append(chunk.values.long() - 1)
                self.gradient_floats += chunk.nnz
        self.source = torch.cat([*source, torch.zeros(1, dtype=torch.int64)]).int()

    @classmethod
    def part(
        cls,
        weight: Tensor,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        transposed: bool = False,
        forms: Forms = Forms.EITHER,
        has_bias: bool = False,
    ) -> Pattern:
        """Return the pattern of some rows and columns of a weight as a matrix.

        Args:
            weight: (O, ...) bool: which values survive.
            rows: The rows, in the matrix's order; None for all.
            columns: The columns, likewise.
            transposed: Transpose the matrix.
            forms: How chunks are kept that are nearly full.
            has_bias: Give the matrix those rows of a bias; not if it is transposed.
        """
        matrix = weight.flatten(1)
        rows = torch.arange(matrix.shape[0]) if rows is None else rows
        columns = torch.arange(matrix.shape[1]) if columns is None else columns
        alive, row_at = matrix[rows][:, columns], rows * matrix.shape[1]
        if transposed:
            return cls(alive.T, columns, row_at, forms=forms)
        return cls(alive, row_at, columns, forms=forms, bias_at=rows if has_bias else None)


class Weights:
    """Keep the weights of an op as its forward and its backward kernel read them.

    Attributes:
        forward: The packed matrices of the forward kernel.
        back: Those of the backward kernel, in the order of their weights.
        gradient_floats: Floats that the backward kernel writes.

    Args:
        forward: The patterns of the forward kernel, one for each weight.
        back: Those of the backward kernel, one for each weight or None.
    """

    def __init__(self, forward: Sequence[Pattern], back: Sequence[Pattern | None]) -> None:
        numbered = [(i, pattern) for i, pattern in enumerate(back) if pattern is not None]
        self._origins = [*range(len(forward)), *(i for i, _ in numbered)]  # the weight of each pattern
        self._patterns = [*forward, *(pattern for _, pattern in numbered)]
        packed = [pattern.packed for pattern in self._patterns]
        self.forward, self.back = packed[: len(forward)], packed[len(forward) :]
        self.gradient_floats = sum(p.gradient_floats for p in forward)
        self._filled = object()
        self._fill, self._spread = _Table(self._patterns), _Table(self._patterns[: len(forward)])

    def fill(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None] = ()) -> object:
        """Write the weights' values into all matrices.

        Args:
            weights: The weights.
            biases: Their biases; they may be left out if no matrix has one.

        Returns:
            A token for `fill_again`.
        """
        self._filled = object()
        contiguous = [plain(weight) for weight in weights]
        for item, origin in zip(self._fill.items, self._origins, strict=True):
            item.weight = contiguous[origin].data_ptr()
        self._fill.run("fill")
        for pattern, bias in zip(self._patterns, biases, strict=False):
            if pattern.bias is not None and pattern.bias_at is not None and bias is not None:
                torch.index_select(plain(bias.detach()), 0, pattern.bias_at, out=pattern.bias)
        return self._filled

    def fill_again(
        self, weights: Sequence[Tensor], filled: object, biases: Sequence[Tensor | None] = ()
    ) -> None:
        """Write the values once more if `fill` was called since.

        Args:
            weights: The weights.
            filled: What the earlier call of `fill` has returned.
            biases: As for `fill`.
        """
        if filled is not self._filled:
            self.fill(weights, biases)

    def spread(self, written: int, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of the weights; those of pruned values are zero.

        Args:
            written: Address of the `gradient_floats` that the backward kernel has written.
            weights: The weights, for their shapes.
        """
        result = [torch.empty(weight.shape, dtype=torch.float32) for weight in weights]
        for item, pattern, gradient in zip(self._spread.items, self._patterns, result, strict=False):
            item.weight, item.gradient = gradient.data_ptr(), written
            item.clear = gradient.numel() if pattern.whole < gradient.numel() else 0
            written += 4 * pattern.gradient_floats
        self._spread.run("spread")
        return result


class _Table:
    """The argument of ``fill`` and ``spread``."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._patterns = patterns
        named = (WeightArgs(p.packed.data_ptr(), p.source.data_ptr()) for p in patterns)
        self.items = (WeightArgs * len(patterns))(*named)
        self._weights = WeightsArgs(addressof(self.items), len(patterns))

    def __reduce__(self) -> tuple[type[_Table], tuple[Sequence[Pattern]]]:  # a copy has memory of its own
        return _Table, (self._patterns,)

    def run(self, name: str) -> None:
        Call(name, self._weights)()


def plain(parameter: Tensor) -> Tensor:
    """Return the parameter as the kernels take it, contiguous.

    Raises:
        BackendError: If it is not float32 on the CPU.
    """
    if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
        raise BackendError(f"weight is {parameter.dtype} on {parameter.device}; expected float32 on the CPU")
    return parameter.contiguous()


def normalised(pointwise: Tensor, taps: Tensor, rows: Tensor) -> tuple[list[Pattern], list[Pattern]]:
    """Return the patterns of what MDTA and GDFN begin with: a 1x1 layer and a depthwise convolution.

    Args:
        pointwise: Mask of the 1x1 layer behind the norm, (R, C, 1, 1) bool.
        taps: Mask of the depthwise convolution, (R, 1, 3, 3) bool.
        rows: Which of the R rows are computed, in this order.

    Returns:
        The patterns of both for the forward kernel, and for the backward kernel.
    """
    forward = [Pattern.part(pointwise, rows), Pattern.part(taps, rows, forms=Forms.ENTRIES)]
    flipped = torch.arange(taps.flatten(1).shape[1]).flip(0)
    return forward, [
        Pattern.part(pointwise, rows, transposed=True),
        Pattern.part(taps, rows, flipped, forms=Forms.ENTRIES),
    ]
