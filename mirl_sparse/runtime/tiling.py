"""Restoring an image by overlapping tiles, where it does not fit into memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mirl_sparse.architectures.promptir.config import MULTIPLE
from mirl_sparse.errors import UserError

OVERLAP = 64  # pixels that neighbouring tiles share, blended from one to the other
SMALLEST = 128  # side of a tile: below, most of it would be overlap


def _up(n: int) -> int:
    return -(-n // MULTIPLE) * MULTIPLE


def tile_size(height: int, width: int, limit: int, needs: Callable[[int, int], int]) -> tuple[int, int]:
    """The largest equal tiles of an image (sides multiples of 8) that need no more than ``limit`` bytes each,
    by what ``needs(height, width)`` says; the whole image where that fits. UserError when none do."""
    down = across = 1
    while True:
        tile_height = _up(-(-(height + (down - 1) * OVERLAP) // down))
        tile_width = _up(-(-(width + (across - 1) * OVERLAP) // across))
        need = needs(tile_height, tile_width)
        if need <= limit:
            return tile_height, tile_width
        if max(tile_height, tile_width) <= SMALLEST:
            raise UserError(
                f"at most {limit / 1e6:,.0f} MB of memory may be used; even tiles of {tile_height}x{tile_width} need"
                f" {need / 1e6:,.0f} MB: allow that much, or give a smaller image or ticket"
            )
        if tile_height >= tile_width:
            down += 1
        else:
            across += 1


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin, evenly, sharing OVERLAP pixels or more."""
    count = 1 if tile >= length else -(-(length - OVERLAP) // (tile - OVERLAP))
    return [
        round(i * (length - tile) / max(1, count - 1)) // MULTIPLE * MULTIPLE for i in range(count - 1)
    ] + [length - tile]


def _ramp(tile: int, start: int, length: int) -> Tensor:
    """The weight of each of a tile's rows or columns: rising over the overlap with a neighbour, never zero."""
    weight = torch.ones(tile)
    rise = (torch.arange(OVERLAP) + 0.5) / OVERLAP
    if start > 0:
        weight[:OVERLAP] = rise
    if start + tile < length:
        weight[-OVERLAP:] *= rise.flip(0)
    return weight


def tiles(height: int, width: int, tile: tuple[int, int]) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, weight of each pixel) of every tile."""
    for y in _starts(height, tile[0]):
        for x in _starts(width, tile[1]):
            weight = _ramp(tile[0], y, height)[:, None] * _ramp(tile[1], x, width)
            yield slice(y, y + tile[0]), slice(x, x + tile[1]), weight


def restore_by_tiles(image: Tensor, tile: tuple[int, int], run: Callable[[Tensor], Tensor]) -> Tensor:
    """``run`` on every tile of image (B, C, H, W), blended linearly where they overlap."""
    total, weights = torch.zeros_like(image), image.new_zeros(image.shape[2:])
    for rows, columns, weight in tiles(image.shape[2], image.shape[3], tile):
        weight = weight.to(image)
        total[:, :, rows, columns] += run(image[:, :, rows, columns].contiguous()) * weight
        weights[rows, columns] += weight
    return total / weights
