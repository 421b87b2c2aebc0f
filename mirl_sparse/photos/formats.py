"""List the image formats, and what each of them holds."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
IMAGE_SUFFIXES = frozenset(FORMATS)
KNOWN_SUFFIXES = ", ".join(sorted(FORMATS))  # as messages list them
# Read if named explicitly. A fixed list: Pillow also knows formats that start other programs, such as EPS.
READABLE = (*dict.fromkeys(FORMATS.values()), "GIF", "PPM", "JPEG2000", "AVIF")


@dataclass(frozen=True)
class Format:
    """Describe how photos are written in one format.

    Attributes:
        options: Pillow's options for saving.
        alpha: Whether the format holds transparency.
        longest_side: Largest height and width in pixels.
        exif_limit: Largest EXIF in bytes.
    """

    options: dict[str, object] = field(default_factory=dict)
    alpha: bool = False
    longest_side: int = sys.maxsize
    exif_limit: int = sys.maxsize


# libjpeg would complain on standard error about longer sides; EXIF lies in one segment of a JPEG.
# Pillow writes BMP of 32 bits, but reads its alpha as padding.
WRITTEN = {
    "PNG": Format(alpha=True),
    "JPEG": Format({"quality": 95, "subsampling": 0}, longest_side=65_500, exif_limit=65_533),
    "WEBP": Format({"quality": 95, "method": 4}, alpha=True, longest_side=16_383),
    "TIFF": Format({"compression": "tiff_deflate"}, alpha=True),
    "BMP": Format(),
}
