"""Restore images that do not fit into memory as a whole, by overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mirl_sparse.errors import UserError

# As in core/cpu/src/photo.cpp, which restores photos without PyTorch.
OVERLAP = 64  # pixels that two neighbouring tiles share; there the result fades from one to the other
SMALLEST = 128  # side of a tile, in pixels: smaller ones would be mostly overlap


def tile_size(
    height: int, width: int, multiple: int, limit: int, needs: Callable[[int, int], int]
) -> tuple[int, int]:
    """Return the size of the largest equal tiles of an image that need no more memory than the limit.

    Args:
        height: Height of the image.
        width: Width of the image.
        multiple: Number that the sides of the image and of its tiles are multiples of.
        limit: Bytes that a tile may need.
        needs: Function that returns how many bytes a tile of (height, width) needs.

    Returns:
        (height, width) of a tile; those of the image if it needs no tiles.

    Raises:
        UserError: If even small tiles need more memory.
    """

    def part(length: int, count: int) -> int:
        return -(-(length + (count - 1) * OVERLAP) // (count * multiple)) * multiple

    down = across = 1
    while True:
        tile_height, tile_width = part(height, down), part(width, across)
        need = needs(tile_height, tile_width)
        if need <= limit:
            return tile_height, tile_width
        if max(tile_height, tile_width) <= SMALLEST:
            raise UserError(
                f"at most {limit / 1e6:,.0f} MB of memory may be used; even tiles of"
                f" {tile_height}x{tile_width} need {need / 1e6:,.0f} MB: allow that much, or give a smaller"
                " image or ticket"
            )
        if tile_height >= tile_width:
            down += 1
        else:
            across += 1


def _starts(length: int, tile: int, multiple: int) -> list[int]:
    """Return where the tiles of one axis begin: evenly, such that neighbours share OVERLAP pixels or more."""
    count = 1 if tile >= length else -(-(length - OVERLAP) // (tile - OVERLAP))
    last = length - tile
    return [round(i * last / max(1, count - 1)) // multiple * multiple for i in range(count - 1)] + [last]


def _ramp(tile: int, start: int, length: int) -> Tensor:
    """Return the weight of each row or column of a tile; it rises over the overlap, and is never zero."""
    weight = torch.ones(tile)
    rise = (torch.arange(OVERLAP) + 0.5) / OVERLAP
    if start > 0:
        weight[:OVERLAP] = rise
    if start + tile < length:
        weight[-OVERLAP:] *= rise.flip(0)
    return weight


def tiles(
    height: int, width: int, tile: tuple[int, int], multiple: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the rows, the columns, and the weights (tile height, tile width) of every tile of an image."""
    for y in _starts(height, tile[0], multiple):
        for x in _starts(width, tile[1], multiple):
            weight = _ramp(tile[0], y, height)[:, None] * _ramp(tile[1], x, width)
            yield slice(y, y + tile[0]), slice(x, x + tile[1]), weight


def restore_by_tiles(
    image: Tensor, tile: tuple[int, int], multiple: int, run: Callable[[Tensor], Tensor]
) -> Tensor:
    """Restore an image tile by tile; blend the tiles linearly where they overlap.

    Args:
        image: (B, C, H, W).
        tile: (height, width) as of `tile_size`.
        multiple: Number that the sides of image and tile are multiples of.
        run: Restores one tile, (B, C, *tile), to the same shape.

    Returns:
        A new tensor of the image's shape.
    """
    total, weights = torch.zeros_like(image), image.new_zeros(image.shape[2:])
    for rows, columns, weight in tiles(image.shape[2], image.shape[3], tile, multiple):
        weight = weight.to(image)
        total[:, :, rows, columns] += run(image[:, :, rows, columns].contiguous()) * weight
        weights[rows, columns] += weight
    return total / weights
