"""List the image formats, and what each of them holds."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from mirl_sparse.files import not_the_file

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
KNOWN_SUFFIXES = ", ".join(sorted(FORMATS))  # as messages list them
FORMATS |= dict.fromkeys((".jpe", ".jfif", ".jif", ".pjpeg", ".pjp"), "JPEG")
IMAGE_SUFFIXES = frozenset(FORMATS)
_LOSSLESS = frozenset(("PNG", "TIFF", "BMP", "GIF", "PPM"))
_ALSO_READ = frozenset(
    (".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".apng", ".dib")
)
# A fixed list: Pillow also knows formats that start other programs, such as EPS.
_READABLE = (*dict.fromkeys(FORMATS.values()), "GIF", "PPM", "JPEG2000", "AVIF")
INSTALL = "run pip install '.[formats]' in the clone of mirl-sparse"


class _Plugin(NamedTuple):
    """Describe a format that a module adds to Pillow: its names, suffixes, and how its files begin."""

    format: str
    title: str
    suffixes: tuple[str, ...]
    signature: re.Pattern[bytes]


_PLUGINS = {
    "pillow_heif": _Plugin(
        "HEIF",
        "HEIC",
        (".heic", ".heif"),
        re.compile(rb".{4}ftyp(?:heic|heix|hevc|heim|heis|mif1|msf1)", re.DOTALL),
    ),
    "pillow_jxl": _Plugin("JXL", "JPEG XL", (".jxl",), re.compile(rb"\xff\n|\0\0\0\x0cJXL ")),
}


@cache
def readable() -> tuple[str, ...]:
    """Return the names of the formats that Pillow reads here; those of installed plugins are among them."""
    for module in _installed():
        plugin = import_module(module)
        if module == "pillow_heif":
            plugin.register_heif_opener()
    return (*_READABLE, *(_PLUGINS[module].format for module in _installed()))


@cache
def readable_suffixes() -> frozenset[str]:
    """Return the suffixes of all files that can be read here; those of installed plugins are among them."""
    return IMAGE_SUFFIXES.union(_ALSO_READ, *(_PLUGINS[module].suffixes for module in _installed()))


def missing_plugin(suffix: str) -> bool:
    """Return whether files of a suffix could be read if the extra ``formats`` were installed.

    Args:
        suffix: The suffix, in lower case.
    """
    return (
        any(suffix in plugin.suffixes for plugin in _PLUGINS.values()) and suffix not in readable_suffixes()
    )


def _installed() -> list[str]:
    return [module for module in _PLUGINS if find_spec(module)]


def is_lossless(data: bytes, format: str | None) -> bool:
    """Return whether a file stores its pixels without loss, as far as its format tells."""
    if format != "WEBP":
        return format in _LOSSLESS
    at = 12  # behind RIFF, its size, WEBP; then chunks: kind, size, data of an even length
    while at + 8 <= len(data) and data[at : at + 4] not in (b"VP8L", b"VP8 "):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return data[at : at + 4] == b"VP8L"


def unknown_format(data: bytes) -> str:
    """Return what to say of a file that no reader takes."""
    if reason := not_the_file(data[:64]):
        return reason
    for module, plugin in _PLUGINS.items():
        if plugin.signature.match(data):
            if module in _installed():
                return f"begins like {plugin.title}, but {module} cannot read it; it may be damaged"
            return f"is {plugin.title}; to read it, {INSTALL}"
    return "not an image in a known format (PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000, AVIF)"


@dataclass(frozen=True)
class Format:
    """Describe how photos are written in one format.

    Attributes:
        options: Pillow's options for saving.
        alpha: Whether the format holds transparency.
        longest_side: Largest height and width in pixels.
        segment_limit: Largest EXIF, and largest XMP, in bytes.
        sixteen_bits: Whether the format holds 16 bits a channel.
    """

    options: dict[str, object] = field(default_factory=dict)
    alpha: bool = False
    longest_side: int = sys.maxsize
    segment_limit: int = sys.maxsize
    sixteen_bits: bool = False


# libjpeg would complain on standard error about longer sides; EXIF and XMP lie in one segment of a JPEG each.
# Pillow writes BMP of 32 bits, but reads its alpha as padding.
WRITTEN = {
    "PNG": Format(alpha=True, sixteen_bits=True),
    "JPEG": Format({"quality": 95, "subsampling": 0}, longest_side=65_500, segment_limit=65_500),
    "WEBP": Format({"quality": 95, "method": 4}, alpha=True, longest_side=16_383),
    "TIFF": Format({"compression": "tiff_deflate"}, alpha=True, sixteen_bits=True),
    "BMP": Format(),
}
