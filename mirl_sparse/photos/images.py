"""Reading and writing photos: PNG, JPEG, WebP, TIFF and BMP through Pillow.

`read_image` and `write_image` know colour only. `read_photo` and `write_photo` also carry what a restored photo
should keep of the original: its transparency, its EXIF and its colour profile.
"""

from __future__ import annotations

import logging
import os
import struct
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole

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
# Read if named explicitly. A fixed list: Pillow also knows formats that start other programs, such as EPS.
_READABLE = (*dict.fromkeys(FORMATS.values()), "GIF", "PPM", "JPEG2000", "AVIF")
_SAVE_OPTIONS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95, "method": 4},
    "TIFF": {"compression": "tiff_deflate"},
}
_WITH_ALPHA = frozenset({"PNG", "WEBP", "TIFF"})  # Pillow writes 32-bit BMP but reads its alpha as padding
_LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels; libjpeg would complain on standard error by itself
_JPEG_EXIF_LIMIT = 65_533  # bytes in one JPEG segment
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What EXIF says about the picture, not about how its bytes lie in the old file (orientation, strips, thumbnail).
_EXIF_KEPT = (
    *(ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software),
    *(ExifTags.Base.XResolution, ExifTags.Base.YResolution, ExifTags.Base.ResolutionUnit),
    *(ExifTags.Base.DateTime, ExifTags.Base.Artist, ExifTags.Base.Copyright),
    *(ExifTags.Base.XPTitle, ExifTags.Base.XPComment, ExifTags.Base.XPAuthor, ExifTags.Base.XPKeywords),
    *(ExifTags.Base.XPSubject, ExifTags.Base.Rating),
)
_PROFILED = {"CMYK": b"CMYK", "L": b"GRAY"}  # what a profile of an image in such a mode is for
# Wrong once the image is turned, or an offset into the old file.
_EXIF_STALE = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight, ExifTags.IFD.Interop)
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


logging.getLogger("PIL").addHandler(
    logging.NullHandler()
)  # else Python prints what Pillow logs on broken files


class ImageError(UserError):
    """A file that cannot be read or written as an image; the message is one line for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


@dataclass(frozen=True)
class Photo:
    """An upright image, and what belongs to it.

    pixels: RGB uint8 (H, W, 3), where there is alpha not multiplied by it.
    alpha: uint8 (H, W), 255 is opaque; None if the image has no transparency.
    exif: EXIF without orientation, as Pillow takes it; empty if there is none.
    icc: RGB colour profile; empty if there is none (pixels of CMYK, and of opaque grey of 8 bits, are converted to sRGB by their own;
        that of other grey is dropped).
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None = None
    exif: bytes = b""
    icc: bytes = b""


def shown(path: str | Path) -> str:
    """A path as it can be printed in one line, even if it holds line breaks or bytes that are no UTF-8."""
    return " ".join(os.fsencode(path).decode("utf-8", "replace").splitlines())


def read_image(source: str | Path | IO[bytes]) -> NDArray[np.uint8]:
    """Decode an image to upright RGB uint8 (H, W, 3), transparency laid on white; raises ImageError."""
    photo = read_photo(source)
    return _on_white(photo.pixels, photo.alpha)


def read_photo(source: str | Path | IO[bytes]) -> Photo:
    """Decode a file or a binary stream (which need not seek); raises ImageError."""
    name = shown(source) if isinstance(source, (str, Path)) else "standard input"
    try:
        with Path(source).open("rb") if isinstance(source, (str, Path)) else BytesIO(source.read()) as stream:
            return _decode(stream, name)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({_reason(error)})") from None


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of what `read_image` makes of a file; raises ImageError. PNG and TIFF, which may say at their end how they are
    turned, are decoded for it; of others the header is enough."""
    try:
        with Image.open(path, formats=_READABLE) as image:
            _check_single(image, shown(path))
            if image.format == "TIFF":
                image.load()  # turns itself; until then Pillow may say either size
            turned = _orientation(image) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(shown(path)) from None
    except Exception as error:  # as in _decode
        raise ImageError(f"{shown(path)}: cannot be read as an image ({_reason(error)})") from error


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """A PIL image of any mode as upright RGB uint8 (H, W, 3); transparency is laid on white.

    Grey of more than 8 bits is scaled to 0..255: from 0..65535 in modes I;16, and in modes I and F from the first
    of 0..1 (F only), 0..255 and 0..65535 that holds every value, or else from 0..maximum.
    """
    return _on_white(*_split(_in_rgb(_upright(image))))


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write RGB uint8 (H, W, 3) in the format that the suffix names, whole or not at all; raises ImageError."""
    write_photo(path, Photo(image))


def write_photo(target: Path | IO[bytes], photo: Photo, format: str | None = None) -> None:
    """Write a photo, to a file whole or not at all; its folder is made if need be. Raises ImageError.

    format: one of FORMATS' values; by default what the suffix names, and PNG on a stream. Where it has no
    transparency (JPEG, BMP), the photo is laid on white.
    """
    name = shown(target) if isinstance(target, Path) else "standard output"
    if format is None:
        suffix = target.suffix.lower() if isinstance(target, Path) else ".png"
        if suffix not in FORMATS:
            raise ImageError(
                f"{name}: suffix {suffix!r} is unknown; expected one of {', '.join(sorted(FORMATS))}"
            )
        format = FORMATS[suffix]
    height, width = photo.pixels.shape[:2]
    if max(height, width) > (limit := _LONGEST_SIDE.get(format, sys.maxsize)):
        raise ImageError(
            f"{name}: {width}x{height} pixels are too many; {format} holds {limit} a side, choose PNG"
        )
    try:
        data = _encode(photo, format)
    except Exception as error:  # what a format or the memory cannot hold comes as nearly any exception
        raise ImageError(f"{name}: cannot be written as {format} ({_reason(error)})") from error
    try:
        if isinstance(target, Path):
            write_whole(target, data)
        else:
            target.write(data)
            target.flush()
    except OSError as error:
        raise ImageError(f"{name}: cannot be written ({_reason(error)})") from None


def _decode(stream: IO[bytes], name: str) -> Photo:
    if stream.seekable() and not stream.seek(0, os.SEEK_END):
        raise ImageError(f"{name}: is empty; expected an image")
    try:
        with Image.open(stream, formats=_READABLE) as image:
            _check_single(image, name)
            pixels, alpha = _split(_in_rgb(_upright(image)))
            icc = image.info.get("icc_profile") or b""
            return Photo(pixels, alpha, _exif(image), icc if icc[16:20] == b"RGB " else b"")
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a known format (PNG, JPEG, WebP, TIFF, BMP)") from None
    except (
        Exception
    ) as error:  # broken files make Pillow raise nearly anything, from struct.error to KeyError
        raise ImageError(f"{name}: cannot be decoded ({_reason(error)})") from error


def _too_large(name: str) -> ImageError:
    return ImageError(f"{name}: has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; split it first")


def _check_single(image: Image.Image, name: str) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # what a phone adds to a JPEG: a depth map or a preview
        raise ImageError(f"{name}: holds {frames} frames or pages; expected one, split it first")


def _exif(image: Image.Image) -> bytes:
    try:
        found, kept = image.getexif(), Image.Exif()
        for tag in _EXIF_KEPT:
            if tag in found:
                kept[tag] = found[tag]
        for group in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if entries := {tag: v for tag, v in found.get_ifd(group).items() if tag not in _EXIF_STALE}:
                kept[group] = entries
        return kept.tobytes() if len(kept) else b""
    except _BROKEN_EXIF:  # a photo is worth more than its EXIF
        return b""


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # TIFF turns itself here; PNG may hold its EXIF behind the pixels
    orientation = _orientation(image)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> object:
    """What EXIF says about how the pixels are turned; None if it says nothing, or nothing that can be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except _BROKEN_EXIF:
        return None


def _in_rgb(image: Image.Image) -> Image.Image:
    """An image of ink or grey whose profile says what that looks like, in sRGB; any other as it is."""
    profile = image.info.get("icc_profile") or b""
    if profile[16:20] != _PROFILED.get(image.mode) or "transparency" in image.info:
        return image
    try:
        converted = ImageCms.profileToProfile(
            image, ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB", flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
    except (ImageCms.PyCMSError, OSError):  # a broken profile
        return image
    assert converted is not None
    return converted


def _split(image: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """RGB (H, W, 3) and alpha (H, W), or None, of an image in any mode."""
    if image.mode in ("I", "F") or image.mode.startswith(
        "I;16"
    ):  # Pillow's convert() would clip these, not scale
        values = np.asarray(image)
        key = image.info.get("transparency")
        alpha = np.where(values == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
        tags = getattr(image, "tag_v2", {})  # of TIFF, whose levels Pillow leaves as they lie
        grey = _eight_bits(values, image.mode, tags.get(ExifTags.Base.BitsPerSample, (16,))[0])
        if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
            grey = 255 - grey
        return np.repeat(grey[..., None], 3, axis=2), alpha
    if not image.has_transparency_data:
        return np.array(image.convert("RGB")), None
    if image.mode == "La":
        image = image.convert("LA")
    rgba = np.array(image.convert("RGBA"))
    return np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])


def _eight_bits(values: NDArray[np.generic], mode: str, bits: int) -> NDArray[np.uint8]:
    if mode.startswith("I;16"):
        return (values.astype(np.uint16) >> (bits - 8)).astype(np.uint8)  # as Pillow reads 16-bit colour
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(finite.max())
    full = next((full for full in ((1, 255, 65_535) if mode == "F" else (255, 65_535)) if top <= full), top)
    return np.rint(finite.clip(0, full) * (255 / full)).astype(np.uint8)


def _on_white(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    if alpha is None:
        return pixels
    cover = alpha[..., None].astype(np.uint16)
    return ((pixels * cover + 255 * (255 - cover) + 127) // 255).astype(
        np.uint8
    )  # at most 65152: no overflow


def _encode(photo: Photo, format: str) -> bytes:
    if photo.alpha is not None and format in _WITH_ALPHA:
        image = Image.fromarray(np.dstack([photo.pixels, photo.alpha]))
    else:
        image = Image.fromarray(_on_white(photo.pixels, photo.alpha))
    options = dict(_SAVE_OPTIONS.get(format, {}))
    if photo.icc:
        options["icc_profile"] = photo.icc
    if photo.exif and (format != "JPEG" or len(photo.exif) <= _JPEG_EXIF_LIMIT):
        options["exif"] = photo.exif
        options.pop("compression", None)  # libtiff, which compresses, cannot write EXIF's nested directories
    stream = BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
