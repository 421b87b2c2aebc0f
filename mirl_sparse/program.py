"""Restore photos by compiled tickets, without PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirl_kernels.core import native
from mirl_sparse.errors import UserError
from mirl_sparse.memory import available_memory

SUFFIX = ".mirl"
_SHIPPED = Path(__file__).parent / "tickets/shipped"
_ALIGNMENT = 64


def find_program(source: str | Path) -> Path | None:
    """Return the program that a path or the name of a shipped ticket means, or None if there is none."""
    path = Path(source)
    if path.suffix == SUFFIX:
        return path
    shipped = _SHIPPED / f"{source}{SUFFIX}"
    return shipped if not path.is_file() and path.name == str(source) and shipped.is_file() else None


class CompiledRestorer:
    """Restore photos by a program, as `mirl_sparse.compilation.compile_ticket` writes it.

    Args:
        file: The program.
        max_memory: Limit of the memory for buffers in bytes; by default nine tenths of what is left. Beyond
            it, photos are restored in overlapping tiles.
        threads: Threads to use; 0 for what OMP_NUM_THREADS says, or as many as there are processors.

    Raises:
        UserError: If the file cannot be read, or is no program.
        BackendError: If the C++ kernels are not there.
    """

    def __init__(self, file: str | Path, max_memory: int | None = None, threads: int = 0) -> None:
        try:
            data = np.fromfile(file, np.uint8)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
        room = np.empty(data.size + _ALIGNMENT, np.uint8)
        self._words = room[-room.ctypes.data % _ALIGNMENT :][: data.size]
        self._words[:] = data
        try:
            self._program = native.Program(self._words.ctypes.data, data.size, self._words)
        except ValueError as error:
            raise UserError(f"{file}: {error}") from None
        self.max_memory, self.threads = max_memory, threads

    def restore(
        self,
        image: NDArray[Any],
        strength: float = 1.0,
        progress: Callable[[float], object] = native.ignore,
    ) -> NDArray[Any]:
        """Restore a photo.

        Args:
            image: (H, W, 3), RGB, uint8 or uint16, of any size from 1x1.
            strength: Share of the restored photo in the result, 0 to 1; the rest is the photo as it was.
            progress: Called now and then with the share of the work that is done. What it raises stops the
                work, and is raised.

        Returns:
            An array of the same shape and type.

        Raises:
            UserError: If the image is something else, or the strength is no share.
            MemoryError: If even small tiles need more memory.
        """
        if (
            image.dtype not in (np.uint8, np.uint16)
            or image.ndim != 3
            or image.shape[2] != 3
            or not image.size
        ):
            raise UserError(
                f"image is {image.dtype} {image.shape}; expected (H, W, 3) of uint8 or uint16, RGB"
            )
        if not 0 <= strength <= 1:
            raise UserError(f"strength is {strength}; expected 0 (leave the photo as it is) to 1")
        image = np.ascontiguousarray(image)
        height, width = image.shape[:2]
        limit = self._memory_limit(height, width)
        result = np.empty_like(image)
        photo = native.Photo(
            image.ctypes.data, height, width, 3, 8 * image.itemsize, 3 * image.itemsize * width
        )
        self._program.restore(photo, result.ctypes.data, strength, self.threads, limit, progress)
        return result

    def _memory_limit(self, height: int, width: int) -> int:
        """Return how many bytes may be used; warn if the photo needs tiles for it."""
        free = available_memory()
        limit = self.max_memory
        if limit is None:
            limit = 1 << 62 if free is None else free * 9 // 10
        limit = max(1, limit)  # 0 would stand for the default
        tile = self._program.tile_size(height, width, limit)
        if tile[0] < height or tile[1] < width:
            warnings.warn(
                f"the whole image of {height}x{width} needs more than the {limit / 1e6:,.0f} MB of memory"
                f" allowed: restored in tiles of {tile[0]}x{tile[1]}, whose attention and prompts see no more"
                " than the tile, so the result differs from the whole image's, most of all in haze",
                stacklevel=3,
            )
        return limit
