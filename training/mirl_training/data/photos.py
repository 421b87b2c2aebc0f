"""Read photos for training, and keep decoded ones in memory up to a budget."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mirl_sparse.photos import ImageError, image_size, read_image
from mirl_training.data.degradations import Image
from mirl_training.data.folders import DataError, Source

Pixels = NDArray[np.uint8]
_BATCH = 64  # photos that are read or checked at once


def to_unit(image: Pixels) -> Image:
    """Return an image of 256 levels (H, W, 3) as float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


class PhotoCache:
    """Read photos, and keep the first ones in memory.

    Args:
        side: Pixels that every photo must have each way.
        budget: Bytes that decoded photos may take. Photos beyond it are decoded whenever they are read.
    """

    def __init__(self, side: int, budget: float) -> None:
        self._side, self._free = side, budget
        self._decoded: dict[Path, Pixels] = {}

    def read(self, source: Source) -> tuple[Pixels | None, Pixels]:
        """Return the degraded photo (None where the source has none) and the clean one, each (H, W, 3).

        Raises:
            DataError: A photo is too small, or the two differ in size.
        """
        degraded = None if source.degraded is None else self._read(source.degraded)
        clean = self._read(source.clean)
        if degraded is not None:
            _check_equal(source, degraded.shape[:2], clean.shape[:2])
        return degraded, clean

    def fill(self, sources: Sequence[Source]) -> None:
        """Read ahead until the budget is used up; of the other photos, check the sizes.

        Raises:
            DataError: A photo is too small, or those of a pair differ in size.
        """
        with ThreadPoolExecutor(2) as pool:
            for begin in range(0, len(sources), _BATCH):
                check = self.read if self._free > 0 else self._check_sizes
                list(pool.map(check, sources[begin : begin + _BATCH]))

    def _check_sizes(self, source: Source) -> None:
        sizes = []
        for path in source:
            if path is not None:
                sizes.append(_size(path))
                self._check_side(path, sizes[-1])
        _check_equal(source, sizes[0], sizes[-1])

    def _check_side(self, path: Path, size: tuple[int, ...]) -> None:
        if min(size) < self._side:
            raise DataError(f"{path}: is {size[1]}x{size[0]}; expected at least the patch size, {self._side}")

    def _read(self, path: Path) -> Pixels:
        image = self._decoded.get(path)
        if image is None:
            image = read_image(path)
            self._check_side(path, image.shape[:2])
            if self._free > 0:
                self._free -= image.nbytes
                self._decoded[path] = image
        return image


def _size(path: Path) -> tuple[int, int]:
    """Return (height, width) of a photo, which is decoded where the header is not enough."""
    try:
        return image_size(path)
    except ImageError:
        height, width, _ = read_image(path).shape
        return height, width


def _check_equal(source: Source, degraded: tuple[int, ...], clean: tuple[int, ...]) -> None:
    if degraded != clean:
        raise DataError(
            f"{source.degraded}: is {degraded[1]}x{degraded[0]}, {source.clean} {clean[1]}x{clean[0]};"
            " expected equal sizes"
        )
