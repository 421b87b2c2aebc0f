"""Decode images of 16 bits a channel, of which Pillow keeps 8.

Pillow unpacks the high byte of each sample. Told that samples lie in the other byte order, the same decoder
unpacks the low byte. So two passes give all 16 bits of any PNG and TIFF that Pillow decodes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mirl_sparse.photos.metadata import upright

_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_GREY_ALPHA = "LA;16B"  # as PNG has it: four bytes a pixel, which can be unpacked as four channels
_RAW_MODES = tuple(f"{mode};16{order}" for mode in ("RGB", "RGBA") for order in _OTHER_ORDER)


def raw_mode(image: Image.Image) -> str:
    """Return how the pixels of an image that is not loaded lie in its file; empty if nothing says so."""
    tile = getattr(image, "tile", None)
    args = tile[0].args if tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def has_sixteen_bits(image: Image.Image) -> bool:
    """Return whether an image that is not loaded has 16 bits in each of several channels."""
    return raw_mode(image) in (*_RAW_MODES, _GREY_ALPHA)


def decode_sixteen_bits(opened: Callable[[], Image.Image]) -> NDArray[np.uint16]:
    """Return the upright pixels (H, W, 3 or 4), where Pillow sees RGB or RGBA.

    Args:
        opened: Opens the image anew; `has_sixteen_bits` is true of it.
    """
    image = opened()
    mode = raw_mode(image)
    if mode == _GREY_ALPHA:
        bytes_of = np.asarray(upright(_unpacked(image, "RGBA"))).astype(np.uint16)
        grey, alpha = (bytes_of[..., i] << 8 | bytes_of[..., i + 1] for i in (0, 2))
        return np.stack([grey, grey, grey, alpha], axis=2)
    high = np.asarray(upright(image)).astype(np.uint16) << 8
    low = np.asarray(upright(_unpacked(opened(), mode[:-1] + _OTHER_ORDER[mode[-1]])))
    return high | low


def _unpacked(image: Image.Image, mode: str) -> Image.Image:
    """Let an image that is not loaded unpack its pixels by another raw mode."""
    assert hasattr(image, "tile")
    image.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode)
        for tile in image.tile
    ]
    return image
