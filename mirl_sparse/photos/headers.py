"""Read what the header of a photo says, before any pixel is decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO

from PIL import ExifTags, Image, UnidentifiedImageError

from mirl_sparse.photos.exif import read_directories
from mirl_sparse.photos.formats import FORMATS, readable, unknown_format
from mirl_sparse.photos.jpeg_xl import jpeg_xl_size
from mirl_sparse.photos.netpbm import netpbm_size
from mirl_sparse.photos.photo import ImageError, TooManyPixelsError, UnknownFormatError, reason
from mirl_sparse.photos.png import SIGNATURE

_BASE = ExifTags.Base
_CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000, which its container may contradict


@dataclass(frozen=True)
class Header:
    """Say how large a photo is, and how its result is written.

    Attributes:
        height: Rows, before the photo is turned upright.
        width: Pixels of a row.
        format: The format of the photo if it can be written, else PNG; one of the values of FORMATS.
    """

    height: int
    width: int
    format: str

    @property
    def pixels(self) -> int:
        """Return the number of pixels."""
        return self.height * self.width


def read_header(data: bytes, name: str) -> Header:
    """Return what the header of a photo says; what it costs does not depend on the number of pixels.

    Args:
        data: The file.
        name: Its name, for messages.

    Raises:
        UnknownFormatError: It is no image of a readable format.
        TooManyPixelsError: It has more pixels than Pillow decodes.
        ImageError: It is damaged.
    """
    if not data:
        raise ImageError(f"{name}: is empty; expected an image")
    if data.startswith(SIGNATURE) and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return Header(height, width, "PNG")
    if size := netpbm_size(data) or jpeg_xl_size(data):
        return Header(*size, "PNG")
    try:
        with Image.open(BytesIO(data), formats=readable()) as image:
            width, height = image.size
            format = {"MPO": "JPEG"}.get(image.format or "", image.format)
    except UnidentifiedImageError:
        return _unusual_tiff(data, name)
    except Image.DecompressionBombError:
        largest = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise TooManyPixelsError(f"{name}: has more than {largest:,} pixels; split it first") from None
    except Exception as error:  # Pillow raises nearly anything
        raise ImageError(f"{name}: cannot be decoded ({reason(error)})") from error
    if (start := data.find(_CODESTREAM)) >= 0 and format == "JPEG2000":
        size_field = data[start + 8 : start + 16].ljust(8, b"\0")
        width, height = map(max, (width, height), struct.unpack(">II", size_field))
    return Header(height, width, format if format and format in FORMATS.values() else "PNG")


def _unusual_tiff(data: bytes, name: str) -> Header:
    """Return the header of a TIFF that Pillow does not know; it may be one that tifffile reads."""
    directories = read_directories(data)
    height, width = map(directories.number, (_BASE.ImageLength, _BASE.ImageWidth))
    if not height or not width:
        raise UnknownFormatError(f"{name}: {unknown_format(data)}")
    return Header(height, width, "TIFF")
