"""Read photos through Pillow: from files, streams and PIL images of any mode.

`read_image` returns colour only. `read_photo` also returns what a restored photo should keep of the original:
its transparency, its EXIF and its colour profile.
"""

from __future__ import annotations

import logging
import os
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from mirl_sparse.photos.formats import READABLE
from mirl_sparse.photos.metadata import copied_exif, is_sideways, rgb_profile, to_srgb, upright
from mirl_sparse.photos.photo import ImageError, Photo, Pixels, on_white, printable_path, reason

# Python would print what Pillow logs about broken files.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def read_image(source: str | Path | IO[bytes]) -> Pixels:
    """Decode an image to upright RGB uint8 (H, W, 3), transparency laid on white.

    Args:
        source: A file, or a binary stream, which need not seek.

    Raises:
        ImageError: It cannot be read, or holds no image that can be decoded.
    """
    photo = read_photo(source)
    return on_white(photo.pixels, photo.alpha)


def read_photo(source: str | Path | IO[bytes]) -> Photo:
    """Decode a photo, with its transparency, EXIF and colour profile.

    Args:
        source: A file, or a binary stream, which need not seek.

    Raises:
        ImageError: It cannot be read, or holds no image that can be decoded.
    """
    name = printable_path(source) if isinstance(source, (str, Path)) else "standard input"
    try:
        with Path(source).open("rb") if isinstance(source, (str, Path)) else BytesIO(source.read()) as stream:
            return _decode(stream, name)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({reason(error)})") from None


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of what `read_image` returns for a file.

    PNG and TIFF, which may say at their end how they are turned, are decoded for it; of other formats the
    header is enough.

    Raises:
        ImageError: The file cannot be read, or holds no image.
    """
    try:
        with Image.open(path, formats=READABLE) as image:
            _check_single(image, printable_path(path))
            if image.format == "TIFF":
                image.load()  # turns itself; until then Pillow may say either size
            return (image.width, image.height) if is_sideways(image) else (image.height, image.width)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(printable_path(path)) from None
    except Exception as error:  # as in _decode
        raise ImageError(f"{printable_path(path)}: cannot be read as an image ({reason(error)})") from error


def to_rgb(image: Image.Image) -> Pixels:
    """Convert a PIL image of any mode to upright RGB uint8 (H, W, 3), transparency laid on white.

    Grey of more than 8 bits is scaled to 0..255: from 0..65535 in modes I;16, and in modes I and F from the
    first of 0..1 (F only), 0..255 and 0..65535 that holds every value, or else from 0..maximum.
    """
    return on_white(*_split(to_srgb(upright(image))))


def _decode(stream: IO[bytes], name: str) -> Photo:
    if stream.seekable() and not stream.seek(0, os.SEEK_END):
        raise ImageError(f"{name}: is empty; expected an image")
    try:
        with Image.open(stream, formats=READABLE) as image:
            _check_single(image, name)
            pixels, alpha = _split(to_srgb(upright(image)))
            return Photo(pixels, alpha, copied_exif(image), rgb_profile(image))
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a known format (PNG, JPEG, WebP, TIFF, BMP)") from None
    except (
        Exception
    ) as error:  # broken files make Pillow raise nearly anything, from struct.error to KeyError
        raise ImageError(f"{name}: cannot be decoded ({reason(error)})") from error


def _too_large(name: str) -> ImageError:
    return ImageError(f"{name}: has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; split it first")


def _check_single(image: Image.Image, name: str) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # what a phone adds to a JPEG: a depth map or a preview
        raise ImageError(f"{name}: holds {frames} frames or pages; expected one, split it first")


def _split(image: Image.Image) -> tuple[Pixels, Pixels | None]:
    """Return RGB (H, W, 3) and alpha (H, W), or None, of an image in any mode."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _split_wide_grey(image)
    if not image.has_transparency_data:
        return np.array(image.convert("RGB")), None
    if image.mode == "La":
        image = image.convert("LA")
    rgba = np.array(image.convert("RGBA"))
    return np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])


def _split_wide_grey(image: Image.Image) -> tuple[Pixels, Pixels | None]:
    """Return the same of grey with more than 8 bits, which Pillow's convert() would clip, not scale."""
    values = np.asarray(image)
    key = image.info.get("transparency")
    alpha = np.where(values == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
    tags = getattr(image, "tag_v2", {})  # of TIFF, whose levels Pillow leaves as they lie
    grey = _eight_bits(values, image.mode, tags.get(ExifTags.Base.BitsPerSample, (16,))[0])
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
        grey = 255 - grey
    return np.repeat(grey[..., None], 3, axis=2), alpha


def _eight_bits(values: NDArray[np.generic], mode: str, bits: int) -> Pixels:
    if mode.startswith("I;16"):
        return (values.astype(np.uint16) >> (bits - 8)).astype(np.uint8)  # as Pillow reads 16-bit colour
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(finite.max())
    full = next((full for full in ((1, 255, 65_535) if mode == "F" else (255, 65_535)) if top <= full), top)
    return np.rint(finite.clip(0, full) * (255 / full)).astype(np.uint8)
