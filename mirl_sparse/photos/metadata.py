"""Read EXIF and colour profiles, and apply what they say about how a photo looks."""

from __future__ import annotations

import re
import struct
from io import BytesIO

from PIL import ExifTags, Image, ImageCms

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
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
BROKEN_EXIF = (
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
_PROFILE_SPACES = {"CMYK": b"CMYK", "L": b"GRAY"}  # the colour space of a profile, by mode of the image


def upright(image: Image.Image) -> Image.Image:
    """Load an image, and turn it as its EXIF says."""
    image.load()  # TIFF turns itself here; PNG may hold its EXIF behind the pixels
    orientation = _orientation(image)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def is_sideways(image: Image.Image) -> bool:
    """Return whether turning the image upright exchanges its height and its width."""
    return _orientation(image) in _SIDEWAYS


def _orientation(image: Image.Image) -> object:
    """Return EXIF's orientation; None if it says nothing, or nothing that can be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except BROKEN_EXIF:
        return None


def copied_exif(source: Image.Image | Image.Exif) -> bytes:
    """Return the EXIF that a restored photo keeps; empty if there is none, or none that can be read."""
    try:
        source, copy = source if isinstance(source, Image.Exif) else source.getexif(), Image.Exif()
        for tag in _COPIED_TAGS:
            if tag in source:
                copy[tag] = source[tag]
        for group in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if entries := {tag: v for tag, v in source.get_ifd(group).items() if tag not in _STALE_TAGS}:
                if ExifTags.IFD.Interop in entries:  # cameras say there that the colours are Adobe RGB
                    entries[ExifTags.IFD.Interop] = dict(source.get_ifd(ExifTags.IFD.Interop))
                copy[group] = entries
        return copy.tobytes() if len(copy) else b""
    except BROKEN_EXIF:  # a photo is worth more than its EXIF
        return b""


def copied_xmp(image: Image.Image) -> bytes:
    """Return the XMP packet of an image; empty if there is none."""
    packet = image.info.get("xmp") or b""
    return packet.encode() if isinstance(packet, str) else bytes(packet)


def upright_xmp(packet: bytes) -> bytes:
    """Return an XMP packet that says of an image that it is upright, if it says how it is turned."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", packet)


def copied_iptc(image: Image.Image) -> bytes:
    """Return the application segment 13 of a JPEG, where Photoshop and IPTC keep theirs; empty if none."""
    segments = getattr(image, "applist", [])
    return next((data for name, data in segments if name == "APP13" and data.startswith(PHOTOSHOP)), b"")


def resolution(image: Image.Image) -> tuple[float, float] | None:
    """Return the pixels per inch, across and down, that a file names; None if it names none."""
    try:
        across, down = (float(n) for n in image.info.get("dpi", ()))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return valid_resolution(across, down)


def valid_resolution(across: float, down: float) -> tuple[float, float] | None:
    """Return pixels per inch that can be meant; None for others."""
    return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None


def rgb_profile(image: Image.Image) -> bytes:
    """Return the colour profile of an RGB image; empty if there is none, or it is for other colours."""
    profile = _profile(image)
    return profile if profile[16:20] == b"RGB " else b""


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image of ink or grey to sRGB by its profile; return any other as it is."""
    profile = _profile(image)
    if profile[16:20] != _PROFILE_SPACES.get(image.mode) or "transparency" in image.info:
        return image
    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            "RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):  # a broken profile
        return image
    assert converted is not None
    return converted


def _profile(image: Image.Image) -> bytes:
    return image.info.get("icc_profile") or b""
