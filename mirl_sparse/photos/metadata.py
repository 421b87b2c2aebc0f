"""Read EXIF and colour profiles, and apply what they say about how a photo looks."""

from __future__ import annotations

import re
import struct
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from mirl_sparse.photos.exif import EXIF, LAST_TYPE, MAIN, PREFIX, pack_directories, read_directories
from mirl_sparse.photos.profiles import grey_levels

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Quarter turns, counted as numpy does, and whether the image is mirrored then.
_TURNS: dict[object, tuple[int, bool]] = {
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width
# About the picture, not about how its bytes lie in the old file (orientation, strips, thumbnail).
_COPIED_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.XResolution,
    ExifTags.Base.YResolution,
    ExifTags.Base.ResolutionUnit,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
    ExifTags.Base.XPTitle,
    ExifTags.Base.XPComment,
    ExifTags.Base.XPAuthor,
    ExifTags.Base.XPKeywords,
    ExifTags.Base.XPSubject,
    ExifTags.Base.Rating,
)
_STALE_TAGS = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)  # wrong once the image is turned
_BROKEN_EXIF = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)[0-9]")
PHOTOSHOP = b"Photoshop 3.0\0"
_PROFILE_SPACES = {
    "CMYK": b"CMYK",
    "L": b"GRAY",
    "LA": b"GRAY",
}  # the colour space of a profile, by mode of the image


def upright(image: Image.Image) -> Image.Image:
    """Load an image, and turn it as its EXIF says."""
    image.load()  # TIFF turns itself here; PNG may hold its EXIF behind the pixels
    orientation = _orientation(image)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def turned(values: NDArray[Any], image: Image.Image) -> NDArray[Any]:
    """Turn pixels (H, W, C), which lie as in the file of an image, as its EXIF says."""
    return turned_by(values, _orientation(image))


def turned_by(values: NDArray[Any], orientation: object) -> NDArray[Any]:
    """Turn pixels (H, W, C) by an orientation of EXIF; others than 2 to 8 do nothing."""
    turns, is_mirrored = _TURNS.get(orientation, (0, False))
    values = np.rot90(values, turns)
    return np.flip(values, 1) if is_mirrored else values


def is_sideways(image: Image.Image) -> bool:
    """Return whether turning the image upright exchanges its height and its width."""
    return _orientation(image) in _SIDEWAYS


def _orientation(image: Image.Image) -> object:
    """Return EXIF's orientation; None if it says nothing, or nothing that can be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except _BROKEN_EXIF:
        return None


def copied_exif(data: bytes) -> bytes:
    """Return the EXIF that a restored photo keeps; empty if there is none, or none that can be read.

    Args:
        data: EXIF, or a whole TIFF.
    """
    source = read_directories(data)
    copies = {
        group: {tag: entry for tag, entry in entries.items() if entry.type <= LAST_TYPE}
        for group, entries in source.entries.items()
    }
    copies[MAIN] = {tag: entry for tag, entry in copies[MAIN].items() if tag in _COPIED_TAGS}
    for tag in _STALE_TAGS:
        copies.get(EXIF, {}).pop(tag, None)
    return PREFIX + pack_directories(source._replace(entries=copies)) if any(copies.values()) else b""


def stored_exif(image: Image.Image, data: bytes) -> bytes:
    """Return the EXIF of a loaded image; a TIFF, whose file ``data`` is, is its own EXIF."""
    return data if image.format == "TIFF" else bytes(image.info.get("exif") or b"")


def copied_xmp(image: Image.Image) -> bytes:
    """Return the XMP packet of an image; empty if there is none."""
    packet = image.info.get("xmp") or b""
    return packet.encode() if isinstance(packet, str) else bytes(packet)


def upright_xmp(packet: bytes) -> bytes:
    """Return an XMP packet that says of an image that it is upright, if it says how it is turned."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", packet)


def copied_iptc(image: Image.Image) -> bytes:
    """Return what Photoshop and IPTC keep in a JPEG (application segments 13), joined; empty if nothing."""
    segments = getattr(image, "applist", [])
    parts = [data for name, data in segments if name == "APP13" and data.startswith(PHOTOSHOP)]
    return PHOTOSHOP + b"".join(part.removeprefix(PHOTOSHOP) for part in parts) if parts else b""


def photoshop_of(iptc: bytes) -> bytes:
    """Return bare IPTC, or what Photoshop stores, as the segment of a JPEG that holds it; empty if empty."""
    if not iptc or iptc.startswith(PHOTOSHOP):
        return iptc
    if not iptc.startswith(b"8BIM"):
        iptc = b"8BIM\x04\x04\0\0" + len(iptc).to_bytes(4, "big") + iptc + bytes(len(iptc) % 2)
    return PHOTOSHOP + iptc


def copied_comment(image: Image.Image) -> bytes:
    """Return the comment of a JPEG; empty if there is none."""
    comment = image.info.get("comment")
    return comment if isinstance(comment, bytes) else b""


def resolution(image: Image.Image) -> tuple[float, float] | None:
    """Return the pixels per inch, across and down, that a file names; None if it names none."""
    try:
        across, down = (float(n) for n in image.info.get("dpi", ()))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return None if _is_assumed_resolution(image) else valid_resolution(across, down)


def _is_assumed_resolution(image: Image.Image) -> bool:
    """Return whether the resolution is what Pillow assumes of a JPEG whose EXIF names none."""
    if image.format not in ("JPEG", "MPO") or image.info.get("jfif_unit") in (1, 2):
        return False
    return ExifTags.Base.XResolution not in read_directories(image.info.get("exif", b"")).entries[MAIN]


def valid_resolution(across: float, down: float) -> tuple[float, float] | None:
    """Return pixels per inch that can be meant; None for others."""
    return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None


def rgb_profile(image: Image.Image) -> bytes:
    """Return the colour profile of an RGB image; empty if there is none, or it is for other colours."""
    profile = _profile(image)
    return profile if profile[16:20] == b"RGB " else b""


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image of ink, or of grey of 8 bits, to sRGB by its profile; return any other as it is.

    Transparency stays. Grey of 16 bits, which Pillow cannot convert, is for `grey_to_srgb`.
    """
    profile = _profile(image)
    if profile[16:20] != _PROFILE_SPACES.get(image.mode):
        return image
    if image.mode == "L" and "transparency" in image.info:
        image = image.convert("LA")
    try:
        if image.mode == "CMYK":
            return _converted(image, profile)
        converted = _converted_grey(image.getchannel("L"), profile)
    except (ImageCms.PyCMSError, OSError):  # a broken profile
        return image
    if image.mode == "LA":
        converted.putalpha(image.getchannel("A"))
    return converted


def _converted_grey(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert by the curve, which ImageCms follows badly in dark parts, or by ImageCms if there is none."""
    if (levels := grey_levels(profile, 256)) is None:
        return _converted(image, profile)
    return Image.merge("RGB", [image.point(np.rint(levels * 255).astype(int).tolist())] * 3)


def _converted(image: Image.Image, profile: bytes) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        "RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None
    return converted


def grey_to_srgb(values: NDArray[Any], profile: bytes) -> NDArray[Any]:
    """Convert grey, uint8 or uint16, to sRGB by the curve of its profile; without one return it as it is."""
    top = np.iinfo(values.dtype).max
    levels = grey_levels(profile, top + 1)
    return values if levels is None else np.rint(levels * top).astype(values.dtype)[values]


def _profile(image: Image.Image) -> bytes:
    return image.info.get("icc_profile") or b""
