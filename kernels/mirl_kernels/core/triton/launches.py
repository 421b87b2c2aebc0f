"""Launch Triton kernels in the tile that suits the GPU, or record the launches instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mirl_kernels.core.triton.context import bound
from mirl_kernels.core.triton.hazards import hazards_of
from mirl_kernels.core.triton.tuner import Tile, active_tuner, cheapest
from mirl_kernels.core.triton.workspace import Workspace
from mirl_kernels.errors import BackendError

Grid = Callable[[dict[str, int]], tuple[int, int, int]]  # made of a tile's sizes
DEPENDENT = "PDL"  # the constant of kernels that says whether they begin while the one before ends
OUT_OF_RESOURCES = 1 << 30  # counts as so many spilled registers
MISCOMPILED = 1 << 31  # counts as more than that
_spilled: dict[Any, int] = {}  # by device, key of the compiled kernel and tile
_launched: set[Any] = set()  # device, key of the compiled kernel, and tile where one is named


@dataclass(frozen=True)
class Launch:
    """Describe one launch of a kernel.

    Attributes:
        kernel: The kernel, as `triton.jit` returns it.
        grid: The number of programs along three axes.
        arguments: The arguments by name, constants included.
        tile: The tile that the launch is made in.
        alternatives: Launches that do the same in other tiles, best first, for GPUs on which the registers of
            a thread would spill in this one.
    """

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    tile: Tile
    alternatives: tuple[Launch, ...] = ()

    def options(self, amd: bool) -> dict[str, int | bool]:
        """Return the options for Triton's compiler; see `Tile.options`."""
        return self.tile.options(amd, bool(self.arguments.get(DEPENDENT)))


_recorded: ContextVar[list[Launch] | None] = ContextVar("recorded", default=None)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """List the launches inside the `with` block instead of making them.

    Tensors may be on the device "meta", since nothing is computed.

    Yields:
        The list, which grows with every launch.
    """
    launches: list[Launch] = []
    with bound(_recorded, launches):
        yield launches


def launch(
    workspace: Workspace, kernel: Any, grid: Grid, *arguments: Any, tiles: Sequence[Tile], **constants: Any
) -> None:
    """Launch a Triton kernel on the current device.

    The tile is the one that the workspace names for this kernel. Without one, it is the first of ``tiles``
    that fits this GPU and spills no registers there, or the one that spills least. Tiles that the compiler
    gets wrong (`hazards`) are not used.

    Args:
        workspace: The workspace of the op.
        kernel: The kernel, as `triton.jit` returns it.
        grid: Returns the number of programs along three axes for the sizes of a tile.
        *arguments: The kernel's arguments, in its order.
        tiles: The tiles to choose from, best first.
        **constants: The kernel's constants, except DEPENDENT and those that a tile sets.

    Raises:
        BackendError: If the kernel does not compile for the GPU, fits it in no tile or is miscompiled in all,
            or if a graph is recorded before the kernel was loaded.
    """
    if DEPENDENT in kernel.arg_names:
        constants[DEPENDENT] = workspace.dependent
    call = _Call(kernel, grid, arguments, constants)
    if (launches := _recorded.get()) is not None:
        launches.append(call.described(tiles))
        return
    from triton.errors import TritonError

    key = call.key()
    tile = workspace.tiles.get(key)
    known = arguments[0].device, key, tile and (*tile.sizes.items(), *tile[1:])
    if known not in _launched and _is_capturing(arguments[0]):
        raise BackendError(
            f"a CUDA graph is recorded, but {kernel.__name__} has not run for this input yet and cannot be"
            " loaded now: call once with an input of this size before you record"
        )
    try:
        if tuner := active_tuner():
            tuner.compare(key, (t for t in tiles if not call.spills(key, t)), call.run)
        if tile is None or tile not in tiles:  # it may come from another version
            tile = cheapest(tiles, lambda t: call.spills(key, t))
            if call.spills(key, tile) >= MISCOMPILED:
                raise BackendError(
                    f"{kernel.__name__} is miscompiled for this GPU in every tile: the ptxas of this Triton"
                    " is too old; let TRITON_PTXAS_PATH name the ptxas of CUDA 13.3 or newer"
                )
        call.run(tile)
        _launched.add(known)
    except TritonError as error:
        reason = " ".join(str(error).split())[:200]
        raise BackendError(
            f"{kernel.__name__} does not run on this GPU ({type(error).__name__}: {reason})"
        ) from error


def _is_capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True)
class _Call:
    """A launch whose tile is still open."""

    kernel: Any
    grid: Grid
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    def described(self, tiles: Sequence[Tile]) -> Launch:
        """Return the launch in the first tile, with the other tiles as alternatives."""
        names = [n for n in self.kernel.arg_names if n not in self.constants and n not in tiles[0].sizes]
        named = dict(zip(names, self.arguments, strict=True)) | self.constants
        first, *others = (Launch(self.kernel, self.grid(t.sizes), named | t.sizes, t) for t in tiles)
        return replace(first, alternatives=tuple(others))

    def key(self) -> str:
        """Return what Triton compiles the kernel anew for, apart from the tile."""
        return f"{self.kernel.__name__} {self.constants} {[_specialisation(a) for a in self.arguments]}"

    def run(self, tile: Tile) -> None:
        self.kernel[self.grid(tile.sizes)](*self.arguments, **self._keywords(tile))

    def spills(self, key: str, tile: Tile) -> int:
        """Return how much a thread spills in a tile; each combination is compiled once."""
        full_key = self.arguments[0].device, key, *tile.sizes.items(), *tile[1:]
        if full_key not in _spilled:
            _spilled[full_key] = self._compiled_spills(tile)
        return _spilled[full_key]

    def _compiled_spills(self, tile: Tile) -> int:
        """Return the local memory of a thread, as the driver counts it, or more if the kernel is useless."""
        compiled = self.kernel.warmup(*self.arguments, grid=self.grid(tile.sizes), **self._keywords(tile))
        if compiled is None:  # in the interpreter
            return 0
        from triton.runtime.errors import OutOfResources

        try:
            compiled._init_handles()  # the driver counts when it loads the kernel
        except OutOfResources:
            return OUT_OF_RESOURCES
        return MISCOMPILED if hazards_of(compiled) else int(compiled.n_spills)

    def _keywords(self, tile: Tile) -> dict[str, Any]:
        options = tile.options(torch.version.hip is not None, bool(self.constants.get(DEPENDENT)))
        return {**self.constants, **tile.sizes, **options}


def _specialisation(argument: Any) -> Any:
    """Return the properties of an argument that Triton compiles a kernel anew for."""
    if isinstance(argument, Tensor):
        return str(argument.dtype), argument.data_ptr() % 16 == 0
    return (argument == 1, argument % 16 == 0) if isinstance(argument, int) else None
