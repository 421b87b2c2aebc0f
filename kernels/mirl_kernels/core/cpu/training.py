"""What the ops share in training: weights whose values change every step, and whose zeros do not."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from ctypes import Structure, addressof, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Forms
from mirl_kernels.errors import BackendError

_own = threading.local()


def workspace(floats: int) -> int:
    """Where so many floats of memory are that this thread keeps from one call to the next."""
    kept: Tensor | None = getattr(_own, "memory", None)
    if kept is None or len(kept) < floats:
        kept = _own.memory = torch.empty(floats, dtype=torch.float32)
    return kept.data_ptr()


def flat(batch: int, _: int, height: int, width: int) -> bool:
    """Whether images of this shape had better have all rows as one: short ones, and items enough to share out."""
    return width in (1, 2, 4, 8, 16) and height * width <= 1024 and batch >= 8


def laid_out(x: Tensor) -> Tensor:
    """x, or a copy of it, as the kernels take it."""
    return x.contiguous() if x.ndim == 4 and flat(*x.shape) else cpu.with_rows(x)


def empty(batch: int, channels: int, height: int, width: int) -> Tensor:
    """An uninitialised (B, C, H, W) image. The channels of each of its rows lie together (where planes lie a power of two
    apart, all channels of a pixel meet in one set of the cache), unless all rows do."""
    if flat(batch, channels, height, width):
        return torch.empty(batch, channels, height, width, dtype=torch.float32)
    return torch.empty(batch, height, channels, width, dtype=torch.float32).permute(0, 2, 1, 3)


class _Weight(Structure):
    _fields_ = [
        ("packed", c_void_p),
        ("source", c_void_p),
        ("weight", c_void_p),
        ("gradient", c_void_p),
        ("clear", c_int64),
    ]


class _Weights(Structure):
    _fields_ = [("weights", c_void_p), ("count", c_int64), ("threads", c_int64)]


_EXACT = 1 << 24  # integers up to here are floats


class Pattern:
    """A packed matrix whose values come from a weight: value (r, c) from place ``row_at[r] + column_at[c]`` of it where
    ``alive`` (rows, columns), bool, says so. ``taps`` (columns, 3), as for `cpu.pack_taps`, make it that of a convolution."""

    def __init__(self, alive: Tensor, row_at: Tensor, column_at: Tensor, taps: Tensor | None = None,
                 forms: Forms = Forms.EITHER) -> None:  # fmt: skip
        if alive.numel() and int(row_at.max() + column_at.max()) >= _EXACT:
            raise BackendError(
                f"a layer has more than {_EXACT} weights, which the training kernels cannot number"
            )
        numbers = (row_at[:, None] + column_at + 1).float() * alive
        if taps is None:
            chunks = [torch.arange(alive.shape[1])]
            self.packed = cpu.pack(numbers, forms=forms)
        else:
            chunks = list(alive.any(0).nonzero()[:, 0].split(cpu.CHUNK))
            self.packed = cpu.pack_taps([(numbers, taps)], forms=forms)
        floats, source = self.packed.view(torch.float32), []
        self.gradient_floats = self.whole = (
            0  # floats that its gradients take, and values that are among them anyway
        )
        for columns, chunk in zip(
            chunks, self.packed[5 : 5 + 7 * len(chunks)].view(-1, 7).tolist(), strict=True
        ):
            _, rows, _, start, entry, _, dense = chunk
            if dense:
                pruned = (~alive[:, columns]).flatten().nonzero()[:, 0]
                source += [row_at, column_at[columns], torch.tensor([len(pruned)]), pruned]
                self.gradient_floats += rows * cpu.turned(len(columns))
                self.whole += rows * len(columns)
            else:
                count = int(self.packed[start + rows])
                source.append(floats[entry + 1 :][: 2 * count : 2].long() - 1)
                self.gradient_floats += count
        self.source = torch.cat([*source, torch.zeros(1, dtype=torch.int64)]).int()

    @classmethod
    def part(cls, weight: Tensor, rows: Tensor | None = None, columns: Tensor | None = None, transposed: bool = False,
             forms: Forms = Forms.EITHER) -> Pattern:  # fmt: skip
        """Some rows and columns of a weight, (O, ...) bool, as a matrix."""
        matrix = weight.flatten(1)
        rows, columns = (
            torch.arange(n) if given is None else given
            for n, given in zip(matrix.shape, (rows, columns), strict=True)
        )
        alive, row_at = matrix[rows][:, columns], rows * matrix.shape[1]
        return (
            cls(alive.T, columns, row_at, forms=forms)
            if transposed
            else cls(alive, row_at, columns, forms=forms)
        )


class Weights:
    """The weights of an op, as its forward and its backward kernel read them: each a matrix for either."""

    def __init__(self, forward: Sequence[Pattern], back: Sequence[Pattern]) -> None:
        self._patterns = [*forward, *back]
        self.forward, self.back = [p.packed for p in forward], [p.packed for p in back]
        self.gradient_floats = sum(p.gradient_floats for p in forward)
        self._filled = object()
        self._fill, self._spread = _Table(self._patterns), _Table(self._patterns[: len(forward)])

    def fill(self, weights: Sequence[Tensor]) -> object:
        """Write the weights' values into all matrices; returns what tells `fill_again` so."""
        self._filled = object()
        contiguous = [plain(weight) for weight in weights]
        for item, weight in zip(self._fill.items, 2 * contiguous, strict=True):
            item.weight = weight.data_ptr()
        self._fill.run("fill")
        return self._filled

    def fill_again(self, weights: Sequence[Tensor], filled: object) -> None:
        """Write them where another call was in between."""
        if filled is not self._filled:
            self.fill(weights)

    def spread(self, written: int, weights: Sequence[Tensor]) -> list[Tensor]:
        """The weights' gradients, pruned ones zero, from what the backward kernel wrote there, `gradient_floats`."""
        result = [torch.empty(weight.shape, dtype=torch.float32) for weight in weights]
        for item, pattern, gradient in zip(self._spread.items, self._patterns, result, strict=False):
            item.weight, item.gradient = gradient.data_ptr(), written
            item.clear = gradient.numel() if pattern.whole < gradient.numel() else 0
            written += 4 * pattern.gradient_floats
        self._spread.run("spread")
        return result


class _Table:
    """The argument of ``fill`` and ``spread``: MirlWeights of abi.h."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._patterns = patterns
        named = (_Weight(p.packed.data_ptr(), p.source.data_ptr()) for p in patterns)
        self.items = (_Weight * len(patterns))(*named)
        self._weights = _Weights(addressof(self.items), len(patterns))

    def __reduce__(self) -> tuple[type[_Table], tuple[Sequence[Pattern]]]:  # a copy has memory of its own
        return _Table, (self._patterns,)

    def run(self, name: str) -> None:
        cpu.Call(name, self._weights)()


def plain(parameter: Tensor) -> Tensor:
    """The parameter as the kernels take it, contiguous; BackendError unless it is float32 on the CPU."""
    if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
        raise BackendError(f"weight is {parameter.dtype} on {parameter.device}; expected float32 on the CPU")
    return parameter.contiguous()


def normalised(pointwise: Tensor, taps: Tensor, rows: Tensor) -> tuple[list[Pattern], list[Pattern]]:
    """How MDTA and GDFN begin, ``rows`` of it, for both kernels: the 1x1 layer behind the norm, and the taps of its
    depthwise convolution."""
    forward = [Pattern.part(pointwise, rows), Pattern.part(taps, rows, forms=Forms.ENTRIES)]
    flipped = torch.arange(taps.flatten(1).shape[1]).flip(0)
    return forward, [
        Pattern.part(pointwise, rows, transposed=True),
        Pattern.part(taps, rows, flipped, forms=Forms.ENTRIES),
    ]
