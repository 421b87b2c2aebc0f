"""Decode images of 16 bits a channel, of which Pillow keeps 8.

JPEG 2000 and JPEG XL are decoded by imagecodecs. Of PNG and TIFF, Pillow unpacks the high byte of each
sample. Told that samples lie in the other byte order, the same decoder unpacks the low byte. So two passes
give all 16 bits of any PNG and TIFF that Pillow decodes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mirl_sparse.photos.formats import INSTALL
from mirl_sparse.photos.metadata import turned, upright
from mirl_sparse.photos.photo import ImageError
from mirl_sparse.photos.scaling import divided_by_alpha, scaled

_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_GREY_ALPHA = "LA;16B"  # as PNG has it: four bytes a pixel, which can be unpacked as four channels
_RAW_MODES = tuple(f"{m};16{order}" for m in ("RGB", "RGBX", "RGBA", "RGBa") for order in _OTHER_ORDER)
_JPEG2000_SIZE = b"\xff\x4f\xff\x51"  # how the codestream begins, with the sizes


def raw_mode(image: Image.Image) -> str:
    """Return how the pixels of an image that is not loaded lie in its file; empty if nothing says so."""
    tile = getattr(image, "tile", None)
    args = tile[0].args if tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def has_sixteen_bits(image: Image.Image) -> bool:
    """Return whether an image that is not loaded has 16 bits in each of several channels."""
    return raw_mode(image) in (*_RAW_MODES, _GREY_ALPHA)


def decode_sixteen_bits(opened: Callable[[], Image.Image]) -> NDArray[np.uint16]:
    """Return the upright pixels (H, W, 3 or 4), where Pillow sees RGB or RGBA; grey with alpha (H, W, 2).

    Args:
        opened: Opens the image anew; `has_sixteen_bits` is true of it.
    """
    image = opened()
    mode = raw_mode(image)
    if mode == _GREY_ALPHA:
        octets = np.asarray(upright(_unpacked(image, "RGBA"))).astype(np.uint16)
        return octets[..., ::2] << np.uint16(8) | octets[..., 1::2]
    is_multiplied = mode.startswith("RGBa")  # Pillow would divide each of the two bytes by alpha
    mode = mode.replace("RGBa", "RGBA")
    high = np.asarray(upright(_unpacked(image, mode))).astype(np.uint16) << 8
    low = np.asarray(upright(_unpacked(opened(), mode[:-1] + _OTHER_ORDER[mode[-1]])))
    values = high | low
    if is_multiplied:
        values[..., :3] = divided_by_alpha(values[..., :3], values[..., 3])
    return values


def _unpacked(image: Image.Image, mode: str) -> Image.Image:
    """Let an image that is not loaded unpack its pixels by another raw mode."""
    assert hasattr(image, "tile")
    image.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode)
        for tile in image.tile
    ]
    return image


def decode_jpeg2000(image: Image.Image, data: bytes, name: str) -> NDArray[np.uint16] | None:
    """Return the pixels (H, W, C) of a JPEG 2000 of several channels of more than 8 bits; else None.

    Pillow would let their white overflow to black.

    Raises:
        ImageError: imagecodecs is not installed.
    """
    start = data.find(_JPEG2000_SIZE)
    if image.format != "JPEG2000" or start < 0 or data[start + 41] < 2:
        return None
    bits = max((depth & 0x7F) + 1 for depth in data[start + 42 : start + 42 + 3 * data[start + 41] : 3])
    if bits <= 8:
        return None
    if find_spec("imagecodecs") is None:
        raise ImageError(
            f"{name}: is a JPEG 2000 of {bits} bits; to read it, {INSTALL}, or save it as 16-bit PNG"
        )
    import imagecodecs

    return scaled(imagecodecs.jpeg2k_decode(data), (1 << bits) - 1, 65_535)


def decode_jpeg_xl(image: Image.Image, data: bytes) -> NDArray[np.uint16] | None:
    """Return the upright pixels (H, W, C) of a JPEG XL of several channels of 9 to 16 bits; None for others.

    Args:
        image: The image as Pillow has it, of 8 bits, from which the depth is seen: the decoder hides it.
        data: The file.
    """
    if image.format != "JXL" or image.mode not in ("LA", "RGB", "RGBA") or find_spec("imagecodecs") is None:
        return None
    import imagecodecs

    values, rounded = imagecodecs.jpegxl_decode(data), np.asarray(image).astype(np.float32)
    if values.dtype != np.uint16 or values.shape != rounded.shape:
        return None

    def difference(bits: int) -> float:
        return float(np.abs(values * np.float32(255 / ((1 << bits) - 1)) - rounded).mean())

    bits = min(range(16, 8, -1), key=difference)
    if difference(bits) > 1:  # the decoders see other colours
        return None
    return turned(scaled(values, (1 << bits) - 1, 65_535), image)
