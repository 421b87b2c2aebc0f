"""Work on images in strips, so that the hidden channels of one strip stay in the GPU's cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mirl_kernels.core.triton.workspace import Workspace

PAD = 8  # zeros between two rows of hidden channels, so that every row starts where vectors may
MAX_HIDDEN_BYTES = 1 << 30  # of a strip's hidden channels, where the cache is too small for any
_TILE = 128  # pixels of a program of most kernels
MIN_STRIP_ROWS = 16  # fewer would cost much, since the rows above and below each strip are computed twice


class Strip(NamedTuple):
    """Name some rows of an image.

    Attributes:
        first: The first row.
        rows: The number of rows.
    """

    first: int
    rows: int


def split_into_strips(x: Tensor, channels: int, dtype: torch.dtype, workspace: Workspace) -> list[Strip]:
    """Return the strips in which an image is to be worked on, one after the other.

    The hidden channels of one strip stay in the cache of the GPU. All strips but the last have the same, even
    number of rows, so that vectors fit into their planes. There may be more strips than the cache asks for,
    where the programs of each then share the processors more evenly.

    Args:
        x: Images, (B, C, H, W).
        channels: The number of hidden channels.
        dtype: The type of the hidden channels.
        workspace: Describes the GPU.
    """
    batch, _, height, width = x.shape
    row = max(1, batch * channels * (width + PAD) * dtype.itemsize)  # bytes of a row of hidden channels
    rows = workspace.cached // row - 2
    if rows < min(height + height % 2, MIN_STRIP_ROWS):
        rows = max(MIN_STRIP_ROWS, MAX_HIDDEN_BYTES // row - 2)
    least = -(-height // (rows - rows % 2))

    def rows_of(count: int) -> int:
        return -(-height // (2 * count)) * 2

    def takes(count: int) -> int:
        tiles = (-(-batch * (rows_of(count) + above) * width // _TILE) for above in (0, 2))
        return count * sum(map(workspace.waves, tiles))

    counts = [count for count in range(least + 1, 2 * least) if rows_of(count) >= MIN_STRIP_ROWS]
    rows = rows_of(min([least, *counts], key=takes) if least > 1 else 1)
    return [Strip(first, min(rows, height - first)) for first in range(0, height, rows)]


def hidden_planes(
    x: Tensor, channels: int, dtype: torch.dtype, workspace: Workspace
) -> tuple[Tensor, list[Strip]]:
    """Return memory for the hidden channels of one strip, and the strips, which all use the same memory.

    Pixel (i, j) of a strip is at ``(i + 1) * (W + PAD) + PAD + j`` of a plane. The row above the strip comes
    before its first row, and the row below the strip after its last. The planes are zero outside the image,
    as depthwise taps need it. The elements between two rows must stay zero.

    Args:
        x: Images, (B, C, H, W).
        channels: The number of hidden channels.
        dtype: The type of the hidden channels.
        workspace: Keeps the memory.

    Returns:
        The planes, (B, channels, plane), and the strips of `split_into_strips`.
    """
    batch, width, strips = len(x), x.shape[3], split_into_strips(x, channels, dtype, workspace)
    pitch = width + PAD
    rows = strips[0].rows + strips[0].rows % 2
    size = batch * channels * (rows + 2) * pitch
    flat = workspace.tensor(
        (batch, width, dtype),  # images of one pitch have their zeros at the same places, whatever the strips
        lambda: torch.zeros(size + PAD, dtype=dtype, device=x.device),
        lambda tensor: len(tensor) >= size + PAD,
    )
    return flat[:size].view(batch, channels, (rows + 2) * pitch), strips
