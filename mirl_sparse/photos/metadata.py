"""Read EXIF and colour profiles, and apply what they say about how a photo looks."""

from __future__ import annotations

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
# Wrong once the image is turned, or an offset into the old file.
_STALE_TAGS = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight, ExifTags.IFD.Interop)
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
    except _BROKEN_EXIF:
        return None


def copied_exif(image: Image.Image) -> bytes:
    """Return the EXIF that a restored photo keeps; empty if there is none, or none that can be read."""
    try:
        source, copy = image.getexif(), Image.Exif()
        for tag in _COPIED_TAGS:
            if tag in source:
                copy[tag] = source[tag]
        for group in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if entries := {tag: v for tag, v in source.get_ifd(group).items() if tag not in _STALE_TAGS}:
                copy[group] = entries
        return copy.tobytes() if len(copy) else b""
    except _BROKEN_EXIF:  # a photo is worth more than its EXIF
        return b""


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
