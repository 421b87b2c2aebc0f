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
    height: int,
    width: int,
    multiple: int,
    limit: int,
    needs: Callable[[int, int], int],
    smallest: int = SMALLEST,
) -> tuple[int, int]:
    """Return the size of the largest equal tiles of an image that need no more memory than the limit.

    Args:
        height: Height of the image.
        width: Width of the image.
        multiple: Number that the sides of the image and of its tiles are multiples of.
        limit: Bytes that a tile may need.
        needs: Function that returns how many bytes a tile of (height, width) needs.
        smallest: Side of the smallest tiles; twice ``multiple`` or more.

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
        if max(tile_height, tile_width) <= smallest:
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
    image: Tensor, tile: tuple[int, int], multiple: int, run: Callable[[Tensor], Tensor], scale: int = 1
) -> Tensor:
    """Restore an image tile by tile; blend the tiles linearly where they overlap.

    Args:
        image: (B, C, H, W).
        tile: (height, width) as of `tile_size`.
        multiple: Number that the sides of image and tile are multiples of; tiles begin at multiples of it.
        run: Restores one tile, (B, C, *tile); the result is ``scale`` times larger.
        scale: Pixels of the result by pixels of the image, along a side.

    Returns:
        A new tensor, ``scale`` times larger than the image.
    """
    height, width = image.shape[2:]
    total: Tensor | None = None
    weights = image.new_zeros(scale * height, scale * width)
    for rows, columns, weight in tiles(height, width, tile, multiple):
        weight = weight.to(image).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        down, across = (slice(scale * s.start, scale * s.stop) for s in (rows, columns))
        restored = run(image[:, :, rows, columns].contiguous())
        if total is None:
            total = restored.new_zeros(*restored.shape[:2], *weights.shape)
        total[..., down, across] += restored * weight
        weights[down, across] += weight
    assert total is not None
    return total.div_(weights)
