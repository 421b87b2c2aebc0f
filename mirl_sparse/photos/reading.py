"""Read photos through Pillow: from files, streams and PIL images of any mode.

`read_image` returns colour only, in 8 bits. `read_photo` also returns what a restored photo should keep of
the original: its depth, its transparency, its metadata and its colour profile.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from mirl_sparse.photos.formats import is_lossless, readable, unknown_format
from mirl_sparse.photos.metadata import (
    copied_comment,
    copied_exif,
    copied_iptc,
    copied_xmp,
    grey_to_srgb,
    is_sideways,
    photoshop_of,
    resolution,
    rgb_profile,
    stored_exif,
    to_srgb,
    upright,
    upright_xmp,
)
from mirl_sparse.photos.netpbm import read_netpbm
from mirl_sparse.photos.photo import (
    DeepPixels,
    ImageError,
    Photo,
    Pixels,
    TooManyPixelsError,
    UnknownFormatError,
    on_white,
    printable_path,
    reason,
)
from mirl_sparse.photos.png import SIGNATURE, PngExtras, split_extras
from mirl_sparse.photos.profiles import colour_chunk, profile_of_chunks
from mirl_sparse.photos.scaling import full_scale, scaled
from mirl_sparse.photos.sixteen_bits import (
    decode_jpeg2000,
    decode_jpeg_xl,
    decode_sixteen_bits,
    has_sixteen_bits,
    raw_mode,
)
from mirl_sparse.photos.tiff import iptc_of, read_misread_tiff, read_unusual_tiff, refuse_unfit_tiff

# Python would print what Pillow logs about broken files.
logging.getLogger("PIL").addHandler(logging.NullHandler())


_BASE = ExifTags.Base
# What Pillow widens to signed integers of 32 bits, by the tags of bits and sample format.
_STORED_TYPES = {(32, 1): np.uint32, (16, 2): np.int16}


def is_image(source: Path | IO[bytes]) -> bool:
    """Return whether a file begins as an image of a readable format; nothing is decoded."""
    try:
        with Image.open(source, formats=readable()):
            return True
    except Exception:  # whatever Pillow raises about a file that is none
        return False


def read_image(source: str | Path | IO[bytes]) -> Pixels:
    """Decode an image to upright RGB uint8 (H, W, 3), transparency laid on white.

    Args:
        source: A file, or a binary stream, which need not seek.

    Raises:
        ImageError: It cannot be read, or holds no image that can be decoded.
    """
    photo = _read(source, is_deep=False).in_eight_bits()
    return on_white(photo.pixels, photo.alpha)


def read_photo(source: str | Path | IO[bytes], name: str = "standard input") -> Photo:
    """Decode a photo, with its depth, transparency, metadata and colour profile.

    Args:
        source: A file, or a binary stream, which need not seek.
        name: What messages call a stream.

    Raises:
        ImageError: It cannot be read, or holds no image that can be decoded.
    """
    return _read(source, is_deep=True, name=name)


def _read(source: str | Path | IO[bytes], is_deep: bool, name: str = "standard input") -> Photo:
    if isinstance(source, (str, Path)):
        name = printable_path(source)
    try:
        data = Path(source).read_bytes() if isinstance(source, (str, Path)) else source.read()
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({reason(error)})") from None
    if not data:
        raise ImageError(f"{name}: is empty; expected an image")
    return _decoding(name, lambda: _decode(data, name, is_deep))


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of what `read_image` returns for a file.

    PNG and TIFF, which may say at their end how they are turned, are decoded for it; of other formats the
    header is enough, unless Pillow does not know it.

    Raises:
        ImageError: The file cannot be read, or holds no image.
    """
    name = printable_path(path)

    def size() -> tuple[int, int]:
        with path.open("rb") as stream:
            is_png = stream.read(len(SIGNATURE)) == SIGNATURE
            stream.seek(0)
            try:
                image = _Opener(stream.read())() if is_png else Image.open(stream, formats=readable())
            except UnidentifiedImageError:
                return read_image(path).shape[:2]
            _check_single(image, name)
            if image.format == "TIFF":
                refuse_unfit_tiff(path.read_bytes(), name)
                image.load()  # turns itself; until then Pillow may say either size
            return (image.width, image.height) if is_sideways(image) else (image.height, image.width)

    return _decoding(name, size)


def _decoding(name: str, decode: Callable[[], Any]) -> Any:
    """Return what ``decode`` returns; report whatever a broken file makes it raise in one line."""
    try:
        return decode()
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except Image.DecompressionBombError:
        largest = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise TooManyPixelsError(f"{name}: has more than {largest:,} pixels; split it first") from None
    except Exception as error:  # Pillow raises nearly anything, from struct.error to KeyError
        raise ImageError(f"{name}: cannot be decoded ({reason(error)})") from error


def to_rgb(image: Image.Image) -> Pixels:
    """Convert a PIL image of any mode to upright RGB uint8 (H, W, 3), transparency laid on white.

    Grey of more than 8 bits is scaled to 0..255: from 0..65535 in modes I;16, and in modes I and F as
    `full_scale` says.

    Raises:
        ImageError: It holds values below 0.
    """
    pixels, alpha = _split(to_srgb(upright(image)), "the image", is_deep=False)
    return on_white(pixels, alpha)


class _Opener:
    """Open the image in a file's bytes, as often as it is called."""

    def __init__(self, data: bytes) -> None:
        self.extras = PngExtras()
        if data.startswith(SIGNATURE):
            data, self.extras = split_extras(data)
        self._data = data

    def __call__(self) -> Image.Image:
        image = Image.open(BytesIO(self._data), formats=readable())
        if self.extras.icc:
            image.info["icc_profile"] = self.extras.icc
        _scale_transparent_grey(image)
        return image


def _scale_transparent_grey(image: Image.Image) -> None:
    """Scale the grey that a PNG calls transparent as Pillow scales its pixels, of fewer than 8 bits."""
    key, scale = image.info.get("transparency"), {"L;2": 85, "L;4": 17}.get(raw_mode(image))
    if isinstance(key, int) and scale is not None and key * scale <= 255:
        image.info["transparency"] = key * scale


def _decode(data: bytes, name: str, is_deep: bool) -> Photo:
    refuse_unfit_tiff(data, name)
    if (photo := read_netpbm(data, name)) is not None:
        return photo
    opener = _Opener(data)
    try:
        image = opener()
    except UnidentifiedImageError:
        if (photo := read_unusual_tiff(data, name)) is not None:
            return photo
        raise UnknownFormatError(f"{name}: {unknown_format(data)}") from None
    _check_single(image, name)
    if (photo := read_misread_tiff(image, data, name)) is not None:
        return photo
    split = _split_deep(image, opener, data, name, is_deep)
    turned = upright(image)
    pixels, alpha = split or _split(to_srgb(turned), name, is_deep)
    extras, icc = opener.extras, rgb_profile(image)
    if extras.icc:  # the profile counts, not what a PNG says beside it
        extras = extras._replace(colour_space=())
    elif image.format in ("AVIF", "HEIF"):
        extras = extras._replace(colour_space=colour_chunk(data))
        icc = profile_of_chunks(extras.colour_space)
    is_tiff = image.format == "TIFF"
    return Photo(
        pixels,
        alpha,
        exif=copied_exif(stored_exif(image, data)),
        icc=icc,
        xmp=upright_xmp(extras.xmp or copied_xmp(image)),
        iptc=copied_iptc(image) or (iptc_of(data) if is_tiff else photoshop_of(extras.iptc)),
        comment=copied_comment(image),
        dpi=resolution(image),
        png=extras,
        lossless=is_lossless(data, image.format),
    )


def _split_deep(
    image: Image.Image, opener: _Opener, data: bytes, name: str, is_deep: bool
) -> tuple[DeepPixels, DeepPixels | None] | None:
    """Return upright RGB and alpha, or None, of images whose 16 bits Pillow does not decode; else None."""
    wide = decode_jpeg2000(image, data, name)
    if wide is None and is_deep:
        if has_sixteen_bits(image):
            wide = decode_sixteen_bits(opener)
        elif raw_mode(image).startswith("CMYK;16"):
            warnings.warn(f"{name}: has 16 bits of each ink; 8 of them are kept", stacklevel=2)
        else:
            wide = decode_jpeg_xl(image, data)
    if wide is None:
        return None
    count = 1 if wide.shape[2] < 3 else 3
    colours, alpha = np.ascontiguousarray(wide[..., :count]), None
    if wide.shape[2] > count:
        alpha = np.ascontiguousarray(wide[..., count])
    elif isinstance(key := image.info.get("transparency"), tuple):  # one colour of a PNG is transparent
        alpha = np.where((colours == key).all(axis=2), 0, 65_535).astype(np.uint16)
    if count == 1:
        colours = np.repeat(grey_to_srgb(colours, image.info.get("icc_profile") or b""), 3, axis=2)
    return colours, alpha


def _check_single(image: Image.Image, name: str) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # what a phone adds to a JPEG: a depth map or a preview
        raise ImageError(f"{name}: holds {frames} frames or pages; expected one, split it first")


def _split(image: Image.Image, name: str, is_deep: bool) -> tuple[Any, Any]:
    """Return RGB (H, W, 3) and alpha (H, W), or None, of an image in any mode."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _split_wide_grey(image, name, is_deep)
    if not image.has_transparency_data:
        return np.array(image.convert("RGB")), None
    if image.mode == "La":
        image = image.convert("LA")
    rgba = np.array(image.convert("RGBA"))
    colours, alpha = np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])
    if image.format in ("BMP", "DIB") and not alpha.any():  # most programs write 0 for "unused"
        return colours, None
    return colours, alpha


def _split_wide_grey(image: Image.Image, name: str, is_deep: bool) -> tuple[Any, Any]:
    """Return the same of grey with more than 8 bits, which Pillow's convert() would clip, not scale."""
    tags = getattr(image, "tag_v2", {})  # of TIFF, whose levels Pillow leaves as they lie
    bits, kind = (tags.get(tag, (0,))[0] for tag in (_BASE.BitsPerSample, _BASE.SampleFormat))
    values = np.asarray(image)
    values = values.astype(_STORED_TYPES.get((bits, kind or 1), values.dtype))
    key = image.info.get("transparency")
    grey = _scaled_grey(image, values, name, 65_535 if is_deep else 255)
    opaque = np.iinfo(grey.dtype).max
    alpha = np.where(values == key, 0, opaque).astype(grey.dtype) if isinstance(key, int) else None
    if tags.get(_BASE.PhotometricInterpretation) == 0:  # white is zero
        grey = opaque - grey
    grey = grey_to_srgb(grey, image.info.get("icc_profile") or b"")
    return np.repeat(grey[..., None], 3, axis=2), alpha


def _scaled_grey(image: Image.Image, values: NDArray[Any], name: str, top: int) -> NDArray[Any]:
    """Return grey as uint8, or as uint16 if ``top`` is 65535 and the image has more than 8 bits."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(_BASE.BitsPerSample, (16,))[0]
        wide = values.astype(np.uint32)
        if top == 255:
            return (wide >> (bits - 8)).astype(np.uint8)  # as Pillow reads 16-bit colour
        return (wide * 65_535 // ((1 << bits) - 1)).astype(np.uint16)
    if values.dtype == np.uint32:
        full = float(2**32 - 1)
    else:
        full = 65_535 if image.format == "PPM" and image.mode == "I" else full_scale(values, name)
    return scaled(values, full, top if full != 255 else 255)
