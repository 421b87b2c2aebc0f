"""What the Triton kernels share: sparse matrices as panels, how a tensor is handed to a kernel, and how it is launched.

Nothing here imports triton: it is there on Linux alone, and takes seconds to load.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mirl_kernels.errors import BackendError

# Rows that a panel may have, and what a column of it and the panel itself cost then: instructions of a thread, as they are counted
# in the product of 128 pixels compiled for sm_80. Taller panels load a column for more rows, few of which may use it.
HEIGHTS = {16: (5.6, 202), 32: (3.1, 329), 64: (4.4, 576)}  # 128 rows spill registers
TENSOR_CORES = 8  # rows of a column that an A100's multiply in the time of one such instruction


class Tile(NamedTuple):
    """What a program of a kernel takes upon itself: the constants that say how much, its warps, and whether they load the factors of
    the next products meanwhile, which NVIDIA's can. AMD's compiler does it in registers, at twice the instructions: not there."""

    sizes: dict[str, int]
    warps: int
    pipelined: bool = True

    def options(self, amd: bool) -> dict[str, int | bool]:
        """Triton's, for the compiler."""
        stages = 3 if self.pipelined and not amd else 1
        return {
            "num_warps": self.warps,
            "num_stages": stages,
            "enable_fp_fusion": True,
        }  # default until Triton 3.10


@dataclass(frozen=True)
class Launch:
    """A kernel's launch: its grid, its arguments by name, constants among them, and its tile; ``others`` are launches that do the same in
    other tiles, for where a thread's registers would spill, the next best first."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    tile: Tile
    others: tuple[Launch, ...] = ()


@dataclass(frozen=True)
class Work:
    """What a launch does. ``read`` and ``written`` are bytes of distinct addresses, ``fetched`` those read, summed over the programs,
    each of which finds what it has touched before in its own cache, but for factors of products, copied past it; ``macs`` are
    multiply-adds on tensor cores, padding included; ``trips`` how often the body of each loop of the kernel runs, in the order of
    the source, over all programs. ``hidden`` are those bytes, of the read or the written ones, that are hidden channels' or the
    sums' of Gram matrices, which one launch leaves to the next and of which either takes ``buffer`` bytes at most."""

    read: int
    written: int
    fetched: int
    macs: int
    trips: tuple[int, ...]
    hidden: int = 0
    buffer: int = 0


_counted: dict[Any, Callable[[Launch], Work]] = {}


def counts(kernel: Any) -> Callable[[Callable[[Launch], Work]], Callable[[Launch], Work]]:
    """Declares what says how much a launch of the kernel does."""

    def declare(function: Callable[[Launch], Work]) -> Callable[[Launch], Work]:
        _counted[kernel] = function
        return function

    return declare


def work(launch: Launch) -> Work:
    """How much a launch does."""
    return _counted[launch.kernel](launch)


def size(*tensors: Tensor | None) -> int:
    """Bytes of the tensors."""
    return sum(t.numel() * t.itemsize for t in tensors if t is not None)


@lru_cache(maxsize=4096)
def _touched(
    pattern: tuple[tuple[int, int], ...],
    size: tuple[int, int],
    output: tuple[int, int],
    stride: tuple[int, int],
) -> int:
    touched = torch.zeros(size, dtype=torch.bool)
    for down, right in pattern:
        rows, columns = (
            torch.arange(n) * s + d for n, s, d in zip(output, stride, (down, right), strict=True)
        )
        rows, columns = rows[(rows >= 0) & (rows < size[0])], columns[(columns >= 0) & (columns < size[1])]
        touched[rows[:, None], columns] = True
    return int(touched.sum())


def touched(patterns: Iterable[Iterable[tuple[int, int]]], size: tuple[int, int], output: tuple[int, int],
            stride: tuple[int, int] = (1, 1)) -> int:  # fmt: skip
    """How many elements of channels of ``size`` are read for output pixels by patterns of (down, right) from each, one pattern
    per channel."""
    return sum(_touched(tuple(sorted(set(pattern))), size, output, stride) for pattern in patterns)


_recorded: ContextVar[list[Launch] | None] = ContextVar("recorded", default=None)


@contextmanager
def _during(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Launches are listed, not made, so that tensors may be on the device "meta"."""
    launches: list[Launch] = []
    with _during(_recorded, launches):
        yield launches


_Grid = Callable[[dict[str, int]], tuple[int, int, int]]
_spilled: dict[Any, int] = {}  # by device, and what was compiled in which tile


def launch(kernel: Any, grid: _Grid, *arguments: Any, tiles: Sequence[Tile], **constants: Any) -> None:
    """Launch a Triton kernel on the arguments, in its order, and constants, in the tile that the workspace was given for it, or else in
    the first of ``tiles`` that fits this GPU and spills no registers there, or the one that spills least; ``grid`` is made of
    the tile's sizes. The GPU is the current device; BackendError where the kernel does not compile for it, or none fits."""
    if (launches := _recorded.get()) is not None:
        names = [n for n in kernel.arg_names if n not in constants and n not in tiles[0].sizes]
        named = dict(zip(names, arguments, strict=True)) | constants
        first, *others = (Launch(kernel, grid(t.sizes), named | t.sizes, t) for t in tiles)
        launches.append(replace(first, others=tuple(others)))
        return
    from triton.errors import TritonError

    amd = torch.version.hip is not None

    def run(tile: Tile) -> None:
        kernel[grid(tile.sizes)](*arguments, **constants, **tile.sizes, **tile.options(amd))

    def spills(tile: Tile) -> int:
        """Local memory of a thread, as the driver counts it."""
        key = arguments[0].device, compiled, *tile.sizes.items(), *tile[1:]
        if key not in _spilled:
            _spilled[key] = counted(tile)
        return _spilled[key]

    def counted(tile: Tile) -> int:
        made = kernel.warmup(
            *arguments, grid=grid(tile.sizes), **constants, **tile.sizes, **tile.options(amd)
        )
        if made is None:  # in the interpreter
            return 0
        from triton.runtime.errors import OutOfResources

        try:
            made._init_handles()  # loads it, which tells
        except OutOfResources:
            return 1 << 30
        return int(made.n_spills)

    compiled = f"{kernel.__name__} {constants} {[_special(a) for a in arguments]}"
    workspace = _workspace.get()
    tile = None if workspace is None else workspace.tiles.get(compiled)
    try:
        if tuner := _tuner.get():
            tuner.compare(compiled, (t for t in tiles if not spills(t)), run)
        if tile is None or tile not in tiles:  # it may be of another version
            tile = least(tiles, spills)
        run(tile)
    except TritonError as error:
        reason = " ".join(str(error).split())[:200]
        raise BackendError(
            f"{kernel.__name__} does not run on this GPU ({type(error).__name__}: {reason})"
        ) from error


def _special(argument: Any) -> Any:
    """What Triton compiles a kernel anew for."""
    if isinstance(argument, Tensor):
        return str(argument.dtype), argument.data_ptr() % 16 == 0
    return (argument == 1, argument % 16 == 0) if isinstance(argument, int) else None


@dataclass
class Tuner:
    """Times what is launched meanwhile in every tile that does not spill, by ``seconds`` of a call, as long as there is time
    (``until``, of time.monotonic)."""

    seconds: Callable[[Callable[[], Any]], float]
    until: float
    taken: dict[str, list[tuple[float, Tile]]] = field(
        default_factory=dict
    )  # by all launches of a kernel compiled so

    def compare(self, compiled: str, tiles: Iterable[Tile], run: Callable[[Tile], None]) -> None:
        """One launch in each of the ``tiles``, which are looked at only as long as there is time."""
        if time.monotonic() > self.until:
            return
        before = self.taken.get(compiled) or [(0.0, tile) for tile in tiles]
        if len(before) < 2:
            return
        self.taken[compiled] = [(spent + self.seconds(partial(run, tile)), tile) for spent, tile in before]

    @property
    def fastest(self) -> dict[str, Tile]:
        """By how a kernel is compiled; of equal times the first."""
        return {compiled: min(taken, key=itemgetter(0))[1] for compiled, taken in self.taken.items()}

    def at_work(self) -> AbstractContextManager[None]:
        """What is launched meanwhile is timed, several times, and then run."""
        return _during(_tuner, self)


_tuner: ContextVar[Tuner | None] = ContextVar("tuner", default=None)


_T = TypeVar("_T")


def least(choices: Iterable[_T], cost: Callable[[_T], int]) -> _T:
    """The first that costs nothing, or the one of least cost."""
    costs = []
    for choice in choices:
        costs.append((cost(choice), choice))
        if not costs[-1][0]:
            break
    return min(costs, key=itemgetter(0))[1]


@dataclass
class Workspace:
    """What the ops need again at the next image of a size, how many bytes of hidden channels the GPU's second-level cache
    can be trusted to keep from one launch to the next, how many processors it has, and the tiles that a `Tuner` found fastest."""

    cached: int = 8 << 20
    processors: int = 108
    tiles: Mapping[str, Tile] = field(default_factory=dict)
    tensors: dict[Any, Tensor] = field(default_factory=dict)

    def used(self) -> AbstractContextManager[None]:
        """By the ops called meanwhile."""
        return _during(_workspace, self)


_workspace: ContextVar[Workspace | None] = ContextVar("workspace", default=None)


def turns(programs: int) -> int:
    """How many programs of a launch the busiest processor has."""
    return -(-programs // processors())


def processors() -> int:
    """Of the workspace's GPU."""
    return (_workspace.get() or Workspace()).processors


def kept(
    key: Any, make: Callable[[], Tensor], enough: Callable[[Tensor], bool] = lambda found: True
) -> Tensor:
    """The workspace's tensor of that key, made anew if there is none, or not enough of it; without a workspace, a new one."""
    workspace = _workspace.get()
    if workspace is None:
        return make()
    tensors = workspace.tensors
    if key in tensors and not enough(tensors[key]):
        del tensors[key]  # before there is memory for another
    if key not in tensors:
        tensors[key] = make()
    return tensors[key]


PAD = 8  # zeros between two rows of hidden channels, so that rows start where vectors may
MOST = 1 << 30  # bytes of hidden channels of a strip, where a cache is too small for them
_LEAST = 16  # rows of a strip, lest the two around it cost much


class Strip(NamedTuple):
    """So many rows of an image from the first on."""

    first: int
    rows: int


def strips(x: Tensor, channels: int, dtype: torch.dtype) -> list[Strip]:
    """Those that x (B, C, H, W) is to be worked on in, one after the other, so that so many hidden channels of one stay in the GPU's
    cache; of even rows, which makes planes that vectors fit in, but for the last."""
    batch, _, height, width = x.shape
    row, cached = (
        max(1, batch * channels * (width + PAD) * dtype.itemsize),
        (_workspace.get() or Workspace()).cached,
    )
    most = cached // row - 2
    if most < min(height + height % 2, _LEAST):
        most = max(_LEAST, MOST // row - 2)
    parts = -(-height // (most - most % 2))
    rows = -(-height // (2 * parts)) * 2
    return [Strip(first, min(rows, height - first)) for first in range(0, height, rows)]


def hidden(x: Tensor, channels: int, dtype: torch.dtype) -> tuple[Tensor, list[Strip]]:
    """Memory for the hidden channels of a strip of x (B, C, H, W), the same for all `strips`, and these.

    (B, channels, plane): pixel (i, j) of a strip is at (i + 1) * (W + PAD) + PAD + j, below the row above the strip and above the one
    behind it. Outside the image are zeros, for the taps; what lies between two rows must stay zero."""
    batch, width, pitch, found = len(x), x.shape[3], x.shape[3] + PAD, strips(x, channels, dtype)
    rows = found[0].rows + found[0].rows % 2
    size = batch * channels * (rows + 2) * pitch
    flat = kept(
        (batch, width, dtype),  # of the pitch: zeros stay where they are whatever the strips
        lambda: torch.zeros(size + PAD, dtype=dtype, device=x.device),
        lambda found: len(found) >= size + PAD,
    )
    return flat[:size].view(batch, channels, (rows + 2) * pitch), found


class Panels(nn.Module):
    """A sparse (rows, columns) matrix as panels of ``height`` rows, each with the union of their live columns.

    start (G + 1,) int32: where each panel's columns begin; column (K,) int32; value (K, height); row (G * height,) int32: which
    row each one is, -1 for padding; total (G * height,) float32: the sum of each row's values. K counts the padded columns of
    all panels, whose values are 0.
    """

    start: Tensor
    column: Tensor
    value: Tensor
    row: Tensor
    total: Tensor

    def __init__(
        self, rows: int, columns: int, start: Tensor, column: Tensor, value: Tensor, row: Tensor
    ) -> None:
        super().__init__()
        self.rows, self.columns, self.height = rows, columns, value.shape[1]
        sums = [part.float().sum(0) for part in value.split(start.diff().tolist())]
        total = torch.cat(sums) if sums else torch.zeros(0)
        for name, tensor in (
            ("start", start),
            ("column", column),
            ("value", value),
            ("row", row),
            ("total", total),
        ):
            self.register_buffer(name, tensor)

    @property
    def groups(self) -> int:
        return len(self.start) - 1

    @property
    def step(self) -> int:
        """Columns that are multiplied at a time; panels are padded to its multiples."""
        return _step(self.height)

    def dense(self) -> Tensor:
        """The matrix."""
        whole = self.value.new_zeros(self.rows + 1, self.columns)
        for g in range(self.groups):
            first, last = int(self.start[g]), int(self.start[g + 1])
            rows, columns = self.row[g * self.height : (g + 1) * self.height], self.column[first:last]
            whole.index_put_(
                (rows.long()[None], columns.long()[:, None]), self.value[first:last], accumulate=True
            )
        return whole[: self.rows]  # padding went into the last row


def _step(height: int) -> int:
    return 16 if height == 16 else 32


def cluster(live: np.ndarray, height: int) -> np.ndarray:
    """An order of the rows of a boolean matrix in which those of a panel of ``height`` rows share columns.

    Greedy: every panel starts with the fullest row that is left and takes, height - 1 times, the row that adds the fewest
    columns to its union, among equals the fullest."""
    count = live.sum(1)
    taken = np.zeros(len(live), bool)
    order: list[int] = []

    def take(row: int) -> None:
        taken[row] = True
        order.append(row)

    while len(order) < len(live):
        take(int(np.where(taken, -1, count).argmax()))
        union = live[order[-1]].copy()  # the panel's columns
        added = count - live[:, union].sum(1)  # how many more each row would bring
        for _ in range(min(height - 1, len(live) - len(order))):
            cost = added * (live.shape[1] + 1) - count
            cost[taken] = np.iinfo(np.int64).max
            take(int(cost.argmin()))
            new = live[order[-1]] & ~union
            added -= live[:, new].sum(1)
            union |= new
    return np.array(order)


@torch.no_grad()
def pack_panels(
    matrix: Tensor, dtype: torch.dtype, heights: Sequence[int] = tuple(HEIGHTS), part: int = 0
) -> Panels:
    """The panels of a (rows, columns) matrix, its rows clustered, of the height that takes the least work. The columns of a step
    are of one ``part`` of that many."""
    array = matrix.float().cpu().numpy()
    heights = [h for h in heights if h == min(heights) or h < 2 * len(array)]  # taller ones are padding
    return min((_panels(array, dtype, h, part or array.shape[1]) for h in heights), key=_clocks)


def _clocks(panels: Panels) -> float:
    """What the product takes, in instructions: those issued, or what tensor cores take if that is more."""
    column, panel = HEIGHTS[panels.height]
    columns = len(panels.column)
    return max(columns * column + panels.groups * panel, columns * panels.height / TENSOR_CORES)


def _panels(matrix: np.ndarray, dtype: torch.dtype, height: int, part: int) -> Panels:
    rows, columns = matrix.shape
    live = matrix != 0
    order = cluster(live, height) if rows > height else np.arange(rows)
    starts, chosen, values = [0], [np.zeros(0, np.int32)], [np.zeros((0, height), np.float32)]
    for first in range(0, rows, height):
        group = order[first : first + height]
        used = live[group].any(0).nonzero()[0]
        for own in np.split(used, np.searchsorted(used, np.arange(part, columns, part))):
            padded = np.pad(own, (0, -len(own) % _step(height)), "edge" if len(own) else "constant")
            value = np.zeros((len(padded), height), np.float32)
            value[: len(own), : len(group)] = matrix[group[:, None], own].T
            chosen.append(padded.astype(np.int32))  # padding reads nothing more
            values.append(value)
        starts.append(sum(map(len, chosen)))
    row = np.full(-(-rows // height) * height, -1, np.int32)
    row[:rows] = order
    return Panels(
        rows,
        columns,
        torch.tensor(starts, dtype=torch.int32),
        torch.from_numpy(np.concatenate(chosen)),
        torch.from_numpy(np.concatenate(values)).to(dtype),
        torch.from_numpy(row),
    )


class Packed(nn.Module):
    """An op's surviving weights for the Triton kernels, for activations of ``dtype``."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def check(
        self,
        x: Tensor,
        channels: int,
        y: Tensor | None,
        shape: Sequence[int],
        kinds: Sequence[torch.dtype] = (),
        residual: Tensor | None = None,
    ) -> Tensor:
        """The tensor to write to, of ``shape``: ``y`` or a new one. ValueError unless x, of so many ``channels``, y and a ``residual`` of its
        shape are (B, C, H, W), not empty, whose planes are contiguous and side by side, as channels of a contiguous tensor are,
        of the weights' dtype or one of ``kinds``."""
        y = x.new_empty(shape, dtype=self.dtype) if y is None else y
        for name, t in (("x", x), ("y", y), ("residual", residual)):
            if t is None:
                continue
            planes = t.ndim == 4 and t.numel() > 0 and t[0].is_contiguous()
            if not planes or t.dtype not in (self.dtype, *kinds):
                raise ValueError(
                    f"{name} is {t.dtype} {tuple(t.shape)} of strides {t.stride()}; expected {self.dtype} planes"
                )
            wanted = (*x.shape[:1], channels, *x.shape[2:]) if t is x else tuple(shape)
            if t.shape != wanted:
                raise ValueError(f"{name} is {tuple(t.shape)}; expected {wanted}")
        return y
