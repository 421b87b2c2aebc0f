"""Damaged files give an image or one line, whatever is damaged in them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import tifffile
from damage import damaged
from pictures import encoded, gradient
from PIL import Image

from mirl_sparse.photos import ImageError, read_photo, write_photo
from mirl_sparse.photos.photo import Photo
from mirl_sparse.photos.png import encode_sixteen_bits

COLOUR, GREY = Image.fromarray(gradient()), Image.fromarray(gradient()[..., 0])
DEEP = gradient().astype(np.uint16) * 257


def tiff(values: np.ndarray, **options: object) -> bytes:
    stream = BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


SAMPLES = {
    "png": encoded(COLOUR, "PNG", dpi=(72, 72), icc_profile=bytes(200)).getvalue(),
    "palette png": encoded(COLOUR.quantize(8), "PNG", transparency=3).getvalue(),
    "16-bit png": encode_sixteen_bits(DEEP),
    "jpeg": encoded(COLOUR, "JPEG", xmp=b"<x/>", exif=Image.Exif().tobytes()).getvalue(),
    "grey jpeg": encoded(GREY, "JPEG").getvalue(),
    "cmyk jpeg": encoded(COLOUR.convert("CMYK"), "JPEG").getvalue(),
    "webp": encoded(COLOUR, "WEBP").getvalue(),
    "tiff": encoded(COLOUR, "TIFF", compression="tiff_lzw").getvalue(),
    "16-bit tiff": tiff(DEEP, photometric="rgb"),
    "planar tiff": tiff(DEEP.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
    "float tiff": tiff((DEEP / 65_535).astype(np.float32), photometric="rgb"),
    "bmp": encoded(COLOUR, "BMP").getvalue(),
    "gif": encoded(COLOUR.quantize(8), "GIF").getvalue(),
    "ppm": encoded(COLOUR, "PPM").getvalue(),
    "jpeg 2000": encoded(COLOUR, "JPEG2000").getvalue(),
    "avif": encoded(COLOUR, "AVIF").getvalue(),
}


def check(name: str, seeds: range) -> None:
    for seed in seeds:
        data = damaged(SAMPLES[name], np.random.default_rng(seed))
        try:
            photo = read_photo(BytesIO(data))
        except ImageError as error:
            assert "\n" not in str(error)
            continue
        assert photo.pixels.ndim == 3
        assert photo.pixels.shape[2] == 3
        if photo.pixels.size < 1 << 20:
            for format in ("PNG", "JPEG", "TIFF", "WEBP"):
                write_photo(BytesIO(), photo, format)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLES)
def test_a_damaged_file_gives_a_photo_or_one_line(name):
    check(name, range(125))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLES)
def test_many_damaged_files_give_a_photo_or_one_line(name):
    check(name, range(1000, 4000))


def test_samples_are_sound():
    for data in SAMPLES.values():
        assert isinstance(read_photo(BytesIO(data)), Photo)
