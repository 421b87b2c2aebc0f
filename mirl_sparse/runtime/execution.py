"""Run an engine on images of any size, within a limit of memory."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from mirl_sparse.runtime.engine import Engine
from mirl_sparse.runtime.memory import available_on
from mirl_sparse.runtime.padding import pad_to_multiple
from mirl_sparse.runtime.tiling import restore_by_tiles, tile_size

_IMAGE_BYTES = 60  # per pixel, beside the engine's buffers: the image, padded, and its results


def wants_gradients(*inputs: Tensor) -> bool:
    """Return whether a result of the inputs would carry gradients, of reverse or forward mode."""
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return forward_mode or (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))


def check_image(image: Tensor) -> None:
    """Raise TypeError unless an image is a tensor, ValueError unless it is (B, 3, H, W) with pixels."""
    if not isinstance(image, Tensor):
        raise TypeError(
            f"image is {type(image).__name__}; expected a tensor (B, 3, H, W), or a photo for .restore()"
        )
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
        raise ValueError(f"input of shape {tuple(image.shape)}; expected (B, 3, H, W) of 1x1 pixel or more")


def restore_image(engine: Engine, image: Tensor, max_memory: int | None) -> Tensor:
    """Restore an image as a whole, or in tiles, with a warning, if its buffers would take too much memory.

    Args:
        engine: Restores images whose sides are multiples of its ``multiple``.
        image: (B, 3, H, W) float32, H and W from 1 up.
        max_memory: Bytes of memory that may be used; by default nine tenths of what the image's device
            has left.

    Returns:
        A tensor of the same shape, not clipped. It may be a view of a larger one.

    Raises:
        UserError: If even small tiles need more memory.
    """
    height, width = image.shape[2:]
    with torch.no_grad():
        padded = pad_to_multiple(image, engine.multiple)
        return _within_memory(engine, padded, max_memory)[:, :, :height, :width]


def _allowed_bytes(device: torch.device, max_memory: int | None) -> int | None:
    if max_memory is not None:
        return max_memory
    free = available_on(device)
    return None if free is None else free * 9 // 10


def _within_memory(engine: Engine, image: Tensor, max_memory: int | None) -> Tensor:
    """Restore an image whose sides the engine takes: as a whole, batch by halves, or in tiles."""
    if engine.has_plan(image):
        return engine(image)
    batch, _, height, width = image.shape

    def needs(tile_height: int, tile_width: int) -> int:
        return engine.required_bytes(batch, tile_height, tile_width) + _IMAGE_BYTES * batch * height * width

    allowed = _allowed_bytes(image.device, max_memory)
    if allowed is None:
        return engine(image)
    cached = engine.cached_bytes
    if cached and cached + needs(height, width) > allowed:
        engine.release()  # buffers of other sizes are no reason for tiles
        allowed = _allowed_bytes(image.device, max_memory) or allowed
    if batch > 1 and needs(height, width) > allowed:
        return torch.cat([_within_memory(engine, half, max_memory) for half in image.chunk(2)])
    tile = tile_size(height, width, engine.multiple, allowed, needs)
    if tile == (height, width):
        return engine(image)
    warnings.warn(
        f"the whole image of {height}x{width} needs {needs(height, width) / 1e6:,.0f} MB of memory, more than"
        f" the {allowed / 1e6:,.0f} MB allowed: restored in tiles of {tile[0]}x{tile[1]}, whose attention and"
        " prompts see no more than the tile, so the result differs from the whole image's, most of all in"
        " haze",
        stacklevel=5,
    )
    return restore_by_tiles(image, tile, engine.multiple, engine)
