"""Read photos through Pillow: from files, streams and PIL images of any mode.

`read_image` returns colour only, in 8 bits. `read_photo` also returns what a restored photo should keep of
the original: its depth, its transparency, its metadata and its colour profile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from mirl_sparse.photos.formats import is_lossless, readable, unknown_format
from mirl_sparse.photos.metadata import (
    copied_exif,
    copied_iptc,
    copied_xmp,
    is_sideways,
    resolution,
    rgb_profile,
    to_srgb,
    upright,
    upright_xmp,
)
from mirl_sparse.photos.photo import (
    DeepPixels,
    ImageError,
    Photo,
    Pixels,
    on_white,
    printable_path,
    reason,
)
from mirl_sparse.photos.png import SIGNATURE, PngExtras, split_extras
from mirl_sparse.photos.sixteen_bits import decode_sixteen_bits, has_sixteen_bits, raw_mode
from mirl_sparse.photos.tiff import full_scale, iptc_of, read_planar_tiff, read_unusual_tiff

# Python would print what Pillow logs about broken files.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def is_image(path: Path) -> bool:
    """Return whether a file begins as an image of a readable format; nothing is decoded."""
    try:
        with Image.open(path, formats=readable()):
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
    photo = _read(source, is_deep=False)
    return on_white(photo.pixels, photo.alpha)


def read_photo(source: str | Path | IO[bytes]) -> Photo:
    """Decode a photo, with its depth, transparency, metadata and colour profile.

    Args:
        source: A file, or a binary stream, which need not seek.

    Raises:
        ImageError: It cannot be read, or holds no image that can be decoded.
    """
    return _read(source, is_deep=True)


def _read(source: str | Path | IO[bytes], is_deep: bool) -> Photo:
    name = printable_path(source) if isinstance(source, (str, Path)) else "standard input"
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
    header is enough.

    Raises:
        ImageError: The file cannot be read, or holds no image.
    """
    name = printable_path(path)

    def size() -> tuple[int, int]:
        with path.open("rb") as stream:
            is_png = stream.read(len(SIGNATURE)) == SIGNATURE
            stream.seek(0)
            image = _Opener(stream.read())() if is_png else Image.open(stream, formats=readable())
            _check_single(image, name)
            if image.format == "TIFF":
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
        raise ImageError(f"{name}: has more than {largest:,} pixels; split it first") from None
    except Exception as error:  # Pillow raises nearly anything, from struct.error to KeyError
        raise ImageError(f"{name}: cannot be decoded ({reason(error)})") from error


def to_rgb(image: Image.Image) -> Pixels:
    """Convert a PIL image of any mode to upright RGB uint8 (H, W, 3), transparency laid on white.

    Grey of more than 8 bits is scaled to 0..255: from 0..65535 in modes I;16, and in modes I and F from the
    first of 0..1 (F only), 0..255 and 0..65535 that holds nearly every value, or else from 0..maximum.

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
    opener = _Opener(data)
    try:
        image = opener()
    except UnidentifiedImageError:
        if (photo := read_unusual_tiff(data, name)) is not None:
            return photo
        raise ImageError(f"{name}: {unknown_format(data)}") from None
    _check_single(image, name)
    if (photo := read_planar_tiff(image, data, name)) is not None:
        return photo
    pixels, alpha = _split_sixteen_bits(opener) if is_deep and has_sixteen_bits(image) else (None, None)
    image = upright(image)
    if pixels is None:
        pixels, alpha = _split(to_srgb(image), name, is_deep)
    return Photo(
        pixels,
        alpha,
        exif=copied_exif(image),
        icc=rgb_profile(image),
        xmp=upright_xmp(opener.extras.xmp or copied_xmp(image)),
        iptc=copied_iptc(image) or iptc_of(getattr(image, "tag_v2", {})),
        dpi=resolution(image),
        png=opener.extras,
        lossless=is_lossless(data, image.format),
    )


def _split_sixteen_bits(opener: _Opener) -> tuple[DeepPixels, DeepPixels | None]:
    values = decode_sixteen_bits(opener)
    key = opener().info.get("transparency")
    if values.shape[2] == 4:
        return np.ascontiguousarray(values[..., :3]), np.ascontiguousarray(values[..., 3])
    if isinstance(key, tuple):  # one colour of a PNG is transparent
        return values, np.where((values == key).all(axis=2), 0, 65_535).astype(np.uint16)
    return values, None


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
    return np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])


def _split_wide_grey(image: Image.Image, name: str, is_deep: bool) -> tuple[Any, Any]:
    """Return the same of grey with more than 8 bits, which Pillow's convert() would clip, not scale."""
    values = np.asarray(image)
    if image.mode == "I" and values.min() < 0:
        raise ImageError(f"{name}: holds values down to {values.min()}; expected 0 or more, add an offset")
    key = image.info.get("transparency")
    grey = _scaled_grey(image, values, 65_535 if is_deep else 255)
    opaque = np.iinfo(grey.dtype).max
    alpha = np.where(values == key, 0, opaque).astype(grey.dtype) if isinstance(key, int) else None
    tags = getattr(image, "tag_v2", {})  # of TIFF, whose levels Pillow leaves as they lie
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
        grey = opaque - grey
    return np.repeat(grey[..., None], 3, axis=2), alpha


def _scaled_grey(image: Image.Image, values: NDArray[np.generic], top: int) -> NDArray[Any]:
    """Return grey as uint8, or as uint16 if ``top`` is 65535 and the image has more than 8 bits."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
        wide = values.astype(np.uint32)
        if top == 255:
            return (wide >> (bits - 8)).astype(np.uint8)  # as Pillow reads 16-bit colour
        return (wide * 65_535 // ((1 << bits) - 1)).astype(np.uint16)
    full = 65_535 if image.format == "PPM" else full_scale(values, image.mode == "F")
    scale = top if full != 255 else 255
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=full, neginf=0.0)
    return np.rint(finite.clip(0, full) * (scale / full)).astype(np.uint8 if scale == 255 else np.uint16)
