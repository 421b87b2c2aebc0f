"""Read the TIFF files that Pillow misreads or does not know, and write TIFF with all that a photo holds."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from mirl_sparse.photos.exif import (
    BYTE,
    LONG,
    MAIN,
    RATIONAL,
    SHORT,
    UNDEFINED,
    Directories,
    Entry,
    pack_directories,
    read_directories,
)
from mirl_sparse.photos.formats import CAMERA_RAW, INSTALL
from mirl_sparse.photos.metadata import (
    PHOTOSHOP,
    copied_exif,
    grey_to_srgb,
    photoshop_of,
    turned_by,
    upright_xmp,
    valid_resolution,
)
from mirl_sparse.photos.photo import DeepPixels, ImageError, Photo
from mirl_sparse.photos.scaling import divided_by_alpha, full_scale, scaled

_BASE = ExifTags.Base
_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLANAR = 2
_SIGNED = 2
_UNSPECIFIED, _MULTIPLIED, _STRAIGHT = 0, 1, 2  # kinds of a channel beyond the colours
_XMP, _PHOTOSHOP, _IPTC = 700, 34377, 33723
_IMAGE_DEPTH, _SUB_DIRECTORIES, _DNG_VERSION = 32997, 330, 50706
_SENSOR_COLOURS = (32803, 34892)


def refuse_unfit_tiff(data: bytes, name: str) -> None:
    """Refuse a TIFF whose first image is not the picture: a camera raw, or the first slice of a volume.

    Raises:
        ImageError: It is one.
    """
    if not data.startswith(_SIGNATURES):
        return
    directories = read_directories(data)
    tags = directories.entries[MAIN]
    is_preview = directories.number(_BASE.NewSubfileType) & 1 and _SUB_DIRECTORIES in tags
    is_sensor = directories.number(_BASE.PhotometricInterpretation) in _SENSOR_COLOURS
    if is_preview or is_sensor or _DNG_VERSION in tags or data[8:10] == b"CR":
        raise ImageError(f"{name}: {CAMERA_RAW}")
    if (slices := directories.number(_IMAGE_DEPTH, 1)) > 1:
        raise ImageError(f"{name}: holds {slices} slices; expected one, split it first")


def read_misread_tiff(image: Image.Image, data: bytes, name: str) -> Photo | None:
    """Return the photo of a TIFF that Pillow misreads; None for all others.

    It misreads planes of more than 8 bits, planes with an alpha that is no plain one, and signed bytes.

    Raises:
        ImageError: tifffile is not installed, or cannot read it.
    """
    tags: Any = getattr(image, "tag_v2", {})
    bits, more = tags.get(_BASE.BitsPerSample, (8,)), tags.get(_BASE.ExtraSamples, ())
    is_planar = tags.get(_BASE.PlanarConfiguration) == _PLANAR and len(bits) > 1
    is_odd = max(bits) > 8 or _MULTIPLIED in more or _UNSPECIFIED in more
    is_signed = _SIGNED in tags.get(_BASE.SampleFormat, ()) and max(bits) <= 8
    return _read(data, name) if (is_planar and is_odd) or is_signed else None


def read_unusual_tiff(data: bytes, name: str) -> Photo | None:
    """Return the photo of a TIFF that Pillow does not know; None if the data are no TIFF.

    Raises:
        ImageError: tifffile is not installed, or cannot read it.
    """
    return _read(data, name) if data.startswith(_SIGNATURES) else None


def _read(data: bytes, name: str) -> Photo:
    if find_spec("tifffile") is None:
        raise ImageError(
            f"{name}: is a TIFF of an unusual layout (such as planar, or floating point); to read it,"
            f" {INSTALL}, or save it as 8 or 16 bits, interleaved"
        )
    import tifffile

    with tifffile.TiffFile(BytesIO(data)) as file:
        if len(file.pages) != 1:
            raise ImageError(f"{name}: holds {len(file.pages)} frames or pages; expected one, split it first")
        page: Any = file.pages[0]
        channels, colours = page.samplesperpixel, page.photometric.name
        if colours not in ("RGB", "MINISBLACK", "MINISWHITE") or channels > 4:
            raise ImageError(f"{name}: is a TIFF of {channels} channels, {colours}; expected grey or RGB")
        if page.imagelength * page.imagewidth > 2 * (Image.MAX_IMAGE_PIXELS or 0):
            raise Image.DecompressionBombError
        values = page.asarray()
        if page.planarconfig == _PLANAR and channels > 1:
            values = np.moveaxis(values, 0, -1)
        orientation = page.tags.get("Orientation")
        values = turned_by(values.reshape(*values.shape[:2], channels), orientation and orientation.value)
        pixels, alpha = _split(values, page, name)
    metadata = _metadata(data)
    if pixels.shape[2] == 1:
        pixels = np.repeat(grey_to_srgb(pixels, metadata.pop("profile")), 3, axis=2)
    metadata.pop("profile", None)
    return Photo(np.ascontiguousarray(pixels), alpha, lossless=True, **metadata)


def _split(values: NDArray[Any], page: Any, name: str) -> tuple[DeepPixels, DeepPixels | None]:
    """Return colours (H, W, 1 or 3) and alpha (H, W), or None, of all channels (H, W, C)."""
    top = 255 if values.dtype.itemsize == 1 else 65_535

    def fit(part: NDArray[Any]) -> DeepPixels:
        is_counted = part.dtype.kind == "u" and isinstance(page.bitspersample, int)
        return scaled(part, (1 << page.bitspersample) - 1 if is_counted else full_scale(part, name), top)

    count = 1 if values.shape[2] < 3 else 3
    pixels, more = fit(values[..., :count]), values[..., count:]
    if page.photometric.name == "MINISWHITE":
        pixels = pixels.dtype.type(top) - pixels
    kind = int(page.extrasamples[-1]) if page.extrasamples else _STRAIGHT
    if not more.size or kind == _UNSPECIFIED:
        return pixels, None
    alpha = np.ascontiguousarray(fit(more[..., -1]))
    return divided_by_alpha(pixels, alpha) if kind == _MULTIPLIED else pixels, alpha


def _metadata(data: bytes) -> dict[str, Any]:
    """Return the fields of a `Photo` that the first directory of a TIFF fills, and any ``profile``."""
    directories = read_directories(data)
    tags = {tag: entry.value for tag, entry in directories.entries[MAIN].items()}
    profile = tags.get(_BASE.InterColorProfile, b"")
    return {
        "exif": copied_exif(data),
        "icc": profile if profile[16:20] == b"RGB " else b"",
        "xmp": upright_xmp(tags.get(_XMP, b"")),
        "iptc": iptc_of(data),
        "dpi": _resolution(directories),
        "profile": profile,
    }


def _resolution(directories: Directories) -> tuple[float, float] | None:
    """Return the pixels per inch, across and down, that a directory names; None if it names none."""
    unit = {2: 1.0, 3: 2.54}.get(directories.number(_BASE.ResolutionUnit, 2))
    entries = [directories.entries[MAIN].get(tag) for tag in (_BASE.XResolution, _BASE.YResolution)]
    fractions = [
        struct.unpack(directories.order + "II", entry.value)
        for entry in entries
        if entry and entry.type == RATIONAL and len(entry.value) == 8
    ]
    if unit is None or len(fractions) < 2 or not all(below for _, below in fractions):
        return None
    across, down = (above / below * unit for above, below in fractions)
    return valid_resolution(across, down)


def iptc_of(data: bytes) -> bytes:
    """Return what Photoshop and IPTC store in a TIFF file, as the segment of a JPEG that holds it."""
    tags = read_directories(data).entries[MAIN]
    if stored := tags.get(_PHOTOSHOP):
        return PHOTOSHOP + stored.value
    kind, iptc = tags.get(_IPTC, Entry(UNDEFINED, b""))
    if kind == LONG and iptc[:1] != b"\x1c":  # as old programs write it, in words of the other byte order
        iptc = np.frombuffer(iptc, "<u4").astype(">u4").tobytes()
    return photoshop_of(iptc)


def encode_tiff(pixels: DeepPixels, photo: Photo) -> bytes:
    """Return a TIFF file of 8 or 16 bits a channel, compressed without loss.

    Args:
        pixels: (H, W, 3 or 4), RGB and, if there are four, alpha.
        photo: What belongs to the pixels: EXIF, profile, XMP, IPTC and resolution are written too.
    """
    height, width, channels = pixels.shape
    directories = read_directories(photo.exif)
    order, bits = directories.order, 8 * pixels.itemsize

    def numbers(kind: int, *values: int) -> Entry:
        return Entry(kind, struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values))

    strip = zlib.compress(pixels.astype(f"{order}u{pixels.itemsize}").tobytes(), 6)
    entries: dict[int, Entry] = {
        _BASE.ImageWidth: numbers(LONG, width),
        _BASE.ImageLength: numbers(LONG, height),
        _BASE.BitsPerSample: numbers(SHORT, *(bits,) * channels),
        _BASE.Compression: numbers(SHORT, 8),  # deflate
        _BASE.PhotometricInterpretation: numbers(SHORT, 2),  # RGB
        _BASE.StripOffsets: numbers(LONG, 0),  # is set below
        _BASE.SamplesPerPixel: numbers(SHORT, channels),
        _BASE.RowsPerStrip: numbers(LONG, height),
        _BASE.StripByteCounts: numbers(LONG, len(strip)),
        _BASE.PlanarConfiguration: numbers(SHORT, 1),
    }
    if channels == 4:
        entries[_BASE.ExtraSamples] = numbers(SHORT, _STRAIGHT)
    if photo.dpi:
        across, down = (numbers(RATIONAL, *_fraction(dpi)) for dpi in photo.dpi)
        inches = numbers(SHORT, 2)
        entries |= {_BASE.XResolution: across, _BASE.YResolution: down, _BASE.ResolutionUnit: inches}
    stored = photo.iptc.removeprefix(PHOTOSHOP)
    blobs = {
        _XMP: (BYTE, photo.xmp),
        _PHOTOSHOP: (BYTE, stored),
        _BASE.InterColorProfile: (UNDEFINED, photo.icc),
    }
    entries |= {tag: Entry(*blob) for tag, blob in blobs.items() if blob[1]}
    directories.entries[MAIN] |= {int(tag): entry for tag, entry in entries.items()}
    head = len(pack_directories(directories))
    directories.entries[MAIN][_BASE.StripOffsets] = numbers(LONG, head)
    return pack_directories(directories) + strip


def _fraction(value: float) -> tuple[int, int]:
    fraction = Fraction(value).limit_denominator(1000)
    return fraction.numerator, fraction.denominator
