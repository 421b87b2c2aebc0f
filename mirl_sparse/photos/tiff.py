"""Read the TIFF files that Pillow misreads or does not know, and write 16 bits a channel, which it cannot."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin

from mirl_sparse.photos.metadata import (
    BROKEN_EXIF,
    PHOTOSHOP,
    copied_exif,
    upright_xmp,
    valid_resolution,
)
from mirl_sparse.photos.photo import ImageError, Photo

_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLANAR = 2
_XMP = 700
_PHOTOSHOP, _IPTC = 34377, 33723
_TURNS = {3: (2, False), 6: (3, False), 8: (1, False), 2: (0, True), 4: (2, True), 5: (3, True), 7: (1, True)}
_NEARLY_ALL = 0.99  # of an image's values: highlights of an HDR image may lie above


def read_planar_tiff(image: Image.Image, data: bytes, name: str) -> Photo | None:
    """Return the photo of a planar TIFF of more than 8 bits, which Pillow misreads; None for all others.

    Raises:
        ImageError: tifffile is not installed, or cannot read it.
    """
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(ExifTags.Base.BitsPerSample, (8,))
    if tags.get(ExifTags.Base.PlanarConfiguration) != _PLANAR or max(bits) <= 8 or len(bits) == 1:
        return None
    return _read(data, name)


def read_unusual_tiff(data: bytes, name: str) -> Photo | None:
    """Return the photo of a TIFF that Pillow does not know; None if the data are no TIFF.

    Raises:
        ImageError: tifffile is not installed, or cannot read it.
    """
    return _read(data, name) if data.startswith(_SIGNATURES) else None


def _read(data: bytes, name: str) -> Photo:
    if find_spec("tifffile") is None:
        raise ImageError(
            f"{name}: is a TIFF of an unusual layout (planar, or floating point); to read it, run"
            " pip install '.[formats]' in the clone of mirl-sparse, or save it as 8 or 16 bits, interleaved"
        )
    import tifffile

    with tifffile.TiffFile(BytesIO(data)) as file:
        if len(file.pages) != 1:
            raise ImageError(f"{name}: holds {len(file.pages)} frames or pages; expected one, split it first")
        page: Any = file.pages[0]
        channels = page.samplesperpixel
        if page.photometric.name not in ("RGB", "MINISBLACK", "MINISWHITE") or channels > 4:
            raise ImageError(
                f"{name}: is a TIFF of {channels} channels, {page.photometric.name}; expected grey or RGB"
            )
        if page.imagelength * page.imagewidth > 2 * (Image.MAX_IMAGE_PIXELS or 0):
            raise Image.DecompressionBombError
        values = page.asarray()
        if page.planarconfig == _PLANAR and channels > 1:
            values = np.moveaxis(values, 0, -1)
        if page.photometric.name == "MINISWHITE":
            values = np.iinfo(values.dtype).max - values
        values = _upright(values.reshape(*values.shape[:2], channels), page.tags.get("Orientation"))
    wide = _in_sixteen_bits(values, name)
    colours, has_alpha = (wide, False) if channels in (1, 3) else (wide[..., :-1], True)
    pixels = np.repeat(colours, 3, axis=2) if colours.shape[2] == 1 else np.ascontiguousarray(colours)
    alpha = np.ascontiguousarray(wide[..., -1]) if has_alpha else None
    return Photo(pixels, alpha, lossless=True, **_metadata(data))


def _metadata(data: bytes) -> dict[str, Any]:
    """Return the fields of a `Photo` that the first directory of a TIFF fills."""
    try:
        directory = Image.Exif()
        directory.load(b"Exif\0\0" + data)
        tags: dict[int, Any] = dict(directory)
    except BROKEN_EXIF:
        return {}
    unit = {2: 1.0, 3: 2.54}.get(tags.get(ExifTags.Base.ResolutionUnit, 2))
    density = [tags.get(tag, 0) for tag in (ExifTags.Base.XResolution, ExifTags.Base.YResolution)]
    profile = bytes(tags.get(ExifTags.Base.InterColorProfile) or b"")
    return {
        "exif": copied_exif(directory),
        "icc": profile if profile[16:20] == b"RGB " else b"",
        "xmp": upright_xmp(bytes(tags.get(_XMP) or b"")),
        "iptc": iptc_of(tags),
        "dpi": valid_resolution(*(float(d) * unit for d in density)) if unit and all(density) else None,
    }


def iptc_of(tags: Mapping[int, Any]) -> bytes:
    """Return what Photoshop and IPTC store in the tags of a TIFF, as the segment of a JPEG that holds it."""
    stored, iptc = tags.get(_PHOTOSHOP), tags.get(_IPTC)
    if isinstance(stored, bytes) and stored:
        return PHOTOSHOP + stored
    if isinstance(iptc, tuple):  # of longs, as old programs write it
        iptc = b"".join(int(n).to_bytes(4, "little") for n in iptc)
    if not isinstance(iptc, bytes) or not iptc:
        return b""
    return PHOTOSHOP + b"8BIM\x04\x04\0\0" + len(iptc).to_bytes(4, "big") + iptc + bytes(len(iptc) % 2)


def tags_of(photo: Photo) -> dict[int, bytes]:
    """Return the tags of a TIFF for a photo's XMP and IPTC."""
    tags = {_XMP: photo.xmp, _PHOTOSHOP: photo.iptc.removeprefix(PHOTOSHOP)}
    return {tag: value for tag, value in tags.items() if value}


def _upright(values: NDArray[Any], orientation: Any) -> NDArray[Any]:
    turns, is_mirrored = _TURNS.get(orientation.value if orientation else 1, (0, False))
    turned = np.rot90(values, turns)
    return np.flip(turned, 1) if is_mirrored else turned


def _in_sixteen_bits(values: NDArray[Any], name: str) -> NDArray[np.uint16]:
    if values.dtype.kind not in "fu" and values.min() < 0:
        raise ImageError(f"{name}: holds values down to {values.min()}; expected 0 or more, add an offset")
    is_float = values.dtype.kind == "f"
    full = np.iinfo(values.dtype).max if values.dtype.kind == "u" else full_scale(values, is_float)
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=full, neginf=0.0)
    return np.rint(finite.clip(0, full) * (65_535 / full)).astype(np.uint16)


def full_scale(values: NDArray[Any], is_float: bool) -> float:
    """Return what counts as white where a file does not say: 1 (floats alone), 255, 65535, or the largest.

    It is the first of these that nearly all values reach at most; those above are clipped.
    """
    finite = values[np.isfinite(values)] if is_float else values
    if not finite.size:
        return 1
    most = float(np.quantile(finite, _NEARLY_ALL))
    usual = ((1.0,) if is_float else ()) + (255.0, 65_535.0)
    return next((full for full in usual if most <= full), float(finite.max()))


def encode_tiff(pixels: NDArray[np.uint16], photo: Photo) -> bytes:
    """Return a TIFF file of 16 bits a channel, compressed without loss.

    Args:
        pixels: (H, W, 3 or 4), RGB and, if there are four, alpha.
        photo: What belongs to the pixels: EXIF, profile, XMP and resolution are written too.
    """
    height, width, channels = pixels.shape
    strip = zlib.compress(pixels.astype("<u2").tobytes(), 6)
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    if photo.exif:
        exif = Image.Exif()
        exif.load(photo.exif)
        for tag, value in exif.items():
            directory[tag] = exif.get_ifd(tag) if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) else value
    base = ExifTags.Base
    for tag, value in (
        (base.ImageWidth, width),
        (base.ImageLength, height),
        (base.BitsPerSample, (16,) * channels),
        (base.Compression, 8),  # deflate
        (base.PhotometricInterpretation, 2),  # RGB
        (base.SamplesPerPixel, channels),
        (base.RowsPerStrip, height),
        (base.StripByteCounts, len(strip)),
        (base.PlanarConfiguration, 1),
        (base.StripOffsets, 0),  # behind the directory
    ):
        directory[tag] = value
    if channels == 4:
        directory[base.ExtraSamples] = 2  # alpha that the colours are not multiplied by
    if photo.icc:
        directory[base.InterColorProfile] = photo.icc
    for tag, value in tags_of(photo).items():
        directory[tag] = value
    if photo.dpi:
        directory[base.ResolutionUnit] = 2  # inches
        directory[base.XResolution], directory[base.YResolution] = photo.dpi
    stream = BytesIO()
    directory.save(stream)
    return stream.getvalue() + strip
