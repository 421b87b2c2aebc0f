"""Pictures for tests of photos."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from mirl_sparse.photos import IMAGE_SUFFIXES, Job, Jobs, write_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def gradient(height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(
        np.uint8
    )


def encoded(image: Image.Image, format: str, **options: object) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    stream.seek(0)
    return stream


def exif(orientation: int = 6) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    tags[ExifTags.Base.Make] = "Maker"
    tags[ExifTags.IFD.Exif] = {ExifTags.Base.ISOSpeedRatings: 400, ExifTags.Base.ExifImageWidth: 3}
    tags[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    return tags


def plain(value: int = 10, height: int = 3, width: int = 5) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def make_files(*names: str) -> None:
    """Make files in the current folder: pictures of different grey levels, or text, as the suffix says."""
    for value, name in enumerate(names):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            write_image(path, plain(value))
        else:
            path.write_text("not an image")


def files() -> list[str]:
    """Return all files below the current folder."""
    return sorted(str(p) for p in Path().rglob("*") if not p.is_dir())


def list_jobs(inputs: list[str], output: str | None, format: str | None = None) -> list[Job]:
    """Return all jobs of a call, which may not change when it is listed again."""
    jobs = Jobs(inputs, output, format)
    assert list(jobs) == list(jobs)
    assert len(jobs) == len(list(jobs))
    return list(jobs)


def stored_tiff(values: NDArray[np.generic], **options: object) -> io.BytesIO:
    """A TIFF as tifffile writes it."""
    import tifffile

    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return io.BytesIO(stream.getvalue())


def grey_profile(curve: bytes, connection: bytes = b"XYZ ") -> bytes:
    """A colour profile of grey with a curve (ICC.1:2001-04)."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    header = b"\x02\x40\0\0mntrGRAY" + connection + bytes(12) + b"acsp" + bytes(28) + white
    size = 128 + 4 + 24 + 20 + len(curve)
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, len(curve))
    profile = (struct.pack(">I", size) + bytes(4) + header).ljust(128, b"\0") + tags
    return profile + b"XYZ " + bytes(4) + white + curve


LINEAR = grey_profile(b"curv" + bytes(4) + struct.pack(">IHxx", 1, 256))


def to_srgb(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sRGB of 0..1 for linear light (IEC 61966-2-1)."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
