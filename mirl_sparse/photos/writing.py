"""Write photos through Pillow as PNG, JPEG, WebP, TIFF or BMP."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from mirl_sparse.files import write_whole
from mirl_sparse.photos.formats import FORMATS, KNOWN_SUFFIXES, WRITTEN
from mirl_sparse.photos.metadata import PHOTOSHOP
from mirl_sparse.photos.photo import ImageError, Photo, Pixels, on_white, printable_path, reason
from mirl_sparse.photos.png import chunk, encode_sixteen_bits, iptc_chunk, with_chunks, xmp_chunk
from mirl_sparse.photos.profiles import profile_of_chunks
from mirl_sparse.photos.tiff import encode_tiff


def write_image(path: Path, image: Pixels) -> None:
    """Write RGB uint8 (H, W, 3) in the format that the suffix names, whole or not at all.

    Raises:
        ImageError: The suffix is unknown, the image does not fit the format, or the file cannot be written.
    """
    write_photo(path, Photo(image))


def write_photo(
    target: Path | IO[bytes], photo: Photo, format: str | None = None, name: str = "standard output"
) -> None:
    """Write a photo; to a file whole or not at all.

    Where the format has no transparency (JPEG, BMP), the photo is laid on white, with a warning; where it has
    no 16 bits a channel (all but PNG and TIFF), it is rounded to 8.

    Args:
        target: A file, whose folder is made if need be, or a binary stream.
        photo: What is written; metadata and profile as far as the format holds them.
        format: One of the values of FORMATS; by default what the suffix names, and PNG on a stream.
        name: What messages call a stream.

    Raises:
        ImageError: The suffix is unknown, the photo does not fit the format, or the target cannot be written.
    """
    name = printable_path(target) if isinstance(target, Path) else name
    if format is None:
        format = _format_of(target, name) if isinstance(target, Path) else "PNG"
    data = encode_photo(photo, format, name)
    try:
        if isinstance(target, Path):
            write_whole(target, data)
        else:
            target.write(data)
            target.flush()
    except OSError as error:
        raise ImageError(f"{name}: cannot be written ({reason(error)})") from None


def encode_photo(photo: Photo, format: str, name: str) -> bytes:
    """Return the file of a photo, as `write_photo` writes it.

    Args:
        photo: What is written.
        format: One of the values of FORMATS.
        name: What messages call the file.

    Raises:
        ImageError: The photo does not fit the format.
    """
    height, width = photo.pixels.shape[:2]
    if max(height, width) > (limit := WRITTEN[format].longest_side):
        raise ImageError(
            f"{name}: {width}x{height} pixels are too many; {format} holds {limit} a side, choose PNG"
        )
    if (
        photo.alpha is not None
        and not WRITTEN[format].alpha
        and photo.alpha.min() < np.iinfo(photo.alpha.dtype).max
    ):
        warnings.warn(f"{name}: {format} holds no transparency; the photo is laid on white", stacklevel=2)
    try:
        return _encode(photo, format)
    except Exception as error:  # what a format or the memory cannot hold comes as nearly any exception
        raise ImageError(f"{name}: cannot be written as {format} ({reason(error)})") from error


def _format_of(path: Path, name: str) -> str:
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ImageError(f"{name}: suffix {suffix!r} is unknown; expected one of {KNOWN_SUFFIXES}")
    return FORMATS[suffix]


def _encode(photo: Photo, format: str) -> bytes:
    written = WRITTEN[format]
    if not (photo.pixels.dtype == np.uint16 and written.sixteen_bits):
        photo = photo.in_eight_bits()
    if photo.alpha is None:
        pixels = photo.pixels
    elif written.alpha:
        pixels = np.dstack([photo.pixels, photo.alpha])
    else:
        pixels = on_white(photo.pixels, photo.alpha)
    if format == "TIFF":
        return encode_tiff(pixels, replace(photo, icc=_profile(photo, format)))
    if pixels.dtype == np.uint16:
        return encode_sixteen_bits(pixels, [*_binary_chunks(photo), *_png_chunks(photo)])
    options = dict(written.options) | _metadata_options(photo, format)
    if format == "WEBP" and photo.lossless:
        options |= {"lossless": True, "exact": True}  # exact: with the colours of transparent pixels
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return with_chunks(stream.getvalue(), _png_chunks(photo)) if format == "PNG" else stream.getvalue()


def _metadata_options(photo: Photo, format: str) -> dict[str, object]:
    """Return what Pillow is to write beside the pixels, as far as the format holds it."""
    limit, options = WRITTEN[format].segment_limit, dict[str, object]()
    if icc := _profile(photo, format):
        options["icc_profile"] = icc
    if photo.exif and len(photo.exif) <= limit:
        options["exif"] = photo.exif
    if photo.dpi and format != "WEBP":
        options["dpi"] = photo.dpi
    if photo.xmp and len(photo.xmp) <= limit and format in ("JPEG", "WEBP"):
        options["xmp"] = photo.xmp
    if format == "JPEG":
        options["extra"] = _photoshop_segments(photo.iptc, limit - len(PHOTOSHOP))
        if photo.comment and len(photo.comment) <= limit:
            options["comment"] = photo.comment
    return options


def _photoshop_segments(iptc: bytes, size: int) -> bytes:
    """Return the segments of a JPEG that hold what Photoshop and IPTC store, ``size`` bytes each."""
    stored = iptc.removeprefix(PHOTOSHOP)
    parts = [PHOTOSHOP + stored[at : at + size] for at in range(0, len(stored), size)]
    return b"".join(b"\xff\xed" + (len(part) + 2).to_bytes(2, "big") + part for part in parts)


def _profile(photo: Photo, format: str) -> bytes:
    """Return the colour profile that a format is to hold; PNG keeps its chunks."""
    return photo.icc or (b"" if format == "PNG" else profile_of_chunks(photo.png.colour_space))


def _png_chunks(photo: Photo) -> list[bytes]:
    """Return what a PNG says of its colours where it has no profile, and its text."""
    xmp = (xmp_chunk(photo.xmp),) if photo.xmp else ()
    iptc = (iptc_chunk(photo.iptc.removeprefix(PHOTOSHOP)),) if photo.iptc else ()
    return [*(() if photo.icc else photo.png.colour_space), *photo.png.text, *xmp, *iptc]


def _binary_chunks(photo: Photo) -> Iterator[bytes]:
    if photo.icc:
        yield chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(photo.icc))
    if photo.dpi:
        across, down = (round(dpi / 0.0254).to_bytes(4, "big") for dpi in photo.dpi)
        yield chunk(b"pHYs", across + down + b"\1")  # per metre
    if photo.exif:
        yield chunk(b"eXIf", photo.exif.removeprefix(b"Exif\0\0"))
