"""Write photos through Pillow as PNG, JPEG, WebP, TIFF or BMP."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from mirl_sparse.files import write_whole
from mirl_sparse.photos.formats import FORMATS, KNOWN_SUFFIXES, WRITTEN
from mirl_sparse.photos.photo import ImageError, Photo, Pixels, on_white, printable_path, reason


def write_image(path: Path, image: Pixels) -> None:
    """Write RGB uint8 (H, W, 3) in the format that the suffix names, whole or not at all.

    Raises:
        ImageError: The suffix is unknown, the image does not fit the format, or the file cannot be written.
    """
    write_photo(path, Photo(image))


def write_photo(target: Path | IO[bytes], photo: Photo, format: str | None = None) -> None:
    """Write a photo; to a file whole or not at all.

    Where the format has no transparency (JPEG, BMP), the photo is laid on white.

    Args:
        target: A file, whose folder is made if need be, or a binary stream.
        photo: What is written; EXIF and profile as far as the format holds them.
        format: One of the values of FORMATS; by default what the suffix names, and PNG on a stream.

    Raises:
        ImageError: The suffix is unknown, the photo does not fit the format, or the target cannot be written.
    """
    name = printable_path(target) if isinstance(target, Path) else "standard output"
    if format is None:
        format = _format_of(target, name) if isinstance(target, Path) else "PNG"
    height, width = photo.pixels.shape[:2]
    if max(height, width) > (limit := WRITTEN[format].longest_side):
        raise ImageError(
            f"{name}: {width}x{height} pixels are too many; {format} holds {limit} a side, choose PNG"
        )
    try:
        data = _encode(photo, format)
    except Exception as error:  # what a format or the memory cannot hold comes as nearly any exception
        raise ImageError(f"{name}: cannot be written as {format} ({reason(error)})") from error
    try:
        if isinstance(target, Path):
            write_whole(target, data)
        else:
            target.write(data)
            target.flush()
    except OSError as error:
        raise ImageError(f"{name}: cannot be written ({reason(error)})") from None


def _format_of(path: Path, name: str) -> str:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ImageError(f"{name}: suffix {suffix!r} is unknown; expected one of {KNOWN_SUFFIXES}")
    return FORMATS[suffix]


def _encode(photo: Photo, format: str) -> bytes:
    written = WRITTEN[format]
    if photo.alpha is not None and written.alpha:
        image = Image.fromarray(np.dstack([photo.pixels, photo.alpha]))
    else:
        image = Image.fromarray(on_white(photo.pixels, photo.alpha))
    options = dict(written.options)
    if photo.icc:
        options["icc_profile"] = photo.icc
    if photo.exif and len(photo.exif) <= written.exif_limit:
        options["exif"] = photo.exif
        options.pop("compression", None)  # libtiff, which compresses, cannot write EXIF's nested directories
    stream = BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()
