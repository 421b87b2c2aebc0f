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
_LOSSLESS = frozenset(("PNG", "TIFF", "BMP", "DIB", "GIF", "PPM"))
_ALSO_READ = frozenset(
    (".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".apng", ".dib", ".pfm", ".pam")
)
# A fixed list: Pillow also knows formats that start other programs, such as EPS.
_READABLE = (*dict.fromkeys(FORMATS.values()), "GIF", "PPM", "DIB", "JPEG2000", "AVIF")
INSTALL = "run pip install '.[formats]' in the clone of mirl-sparse"
CAMERA_RAW = "is a camera raw; develop it first (with the program of the camera, darktable, RawTherapee)"
_CONVERT = "which is not read here; convert it to PNG or TIFF"
# What files of other formats begin with, and what is said of them.
_REFUSED = (
    (rb"FUJIFILMCCD-RAW|IIU\0|IIR[OS]|MMOR|FOVb|\0MRM|.{4}ftypcrx", CAMERA_RAW),
    (rb".{4}ftypavi[fs]", "begins like AVIF, but cannot be read; it may be damaged"),
    (rb".{4}ftyp", "is a video (MP4, MOV or alike); save one of its frames as PNG"),
    (rb"8BPS", f"is a document of Photoshop (PSD), {_CONVERT}"),
    (rb"qoif", f"is QOI, {_CONVERT}"),
    (rb"#\?(?:RADIANCE|RGBE)", f"is Radiance HDR, {_CONVERT}"),
    (rb"v/1\x01", f"is OpenEXR, {_CONVERT}"),
    (rb"II\xbc", f"is JPEG XR, {_CONVERT}"),
    (rb"\0\0[\1\2]\0", f"is an icon (ICO, CUR), {_CONVERT}"),
    (rb"%PDF", f"is PDF, {_CONVERT}"),
    (rb"\s*<svg", f"is SVG, {_CONVERT}"),
)


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
    if kind := _unusual_jpeg(data):
        return f"is {kind}, {_CONVERT}"
    for signature, answer in _REFUSED:
        if re.match(signature, data[:64], re.DOTALL):
            return answer
    return "not an image in a known format (PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000, AVIF)"


def _unusual_jpeg(data: bytes) -> str:
    """Return the name of a kind of JPEG that Pillow does not know; empty for all other files."""
    at = 2 if data.startswith(b"\xff\xd8\xff") else len(data)
    while at + 5 <= len(data) and data[at] == 0xFF:
        marker, bits = data[at + 1], data[at + 4]
        if marker == 0xF7:
            return "JPEG-LS"
        if marker in (0xC3, 0xC7, 0xCB, 0xCF):
            return f"lossless JPEG of {bits} bits"
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return f"JPEG of {bits} bits" if bits != 8 else ""
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return ""


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
# Pillow writes BMP of 32 bits, but neither it nor most programs read its alpha.
WRITTEN = {
    "PNG": Format(alpha=True, sixteen_bits=True),
    "JPEG": Format({"quality": 95, "subsampling": 0}, longest_side=65_500, segment_limit=65_500),
    "WEBP": Format({"quality": 95, "method": 4}, alpha=True, longest_side=16_383),
    "TIFF": Format(alpha=True, sixteen_bits=True),
    "BMP": Format(),
}
