"""The header says what the decoded photo has."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mirl_sparse.photos import ImageError, UnknownFormatError, read_header, read_photo
from mirl_sparse.photos.formats import readable
from mirl_sparse.photos.jpeg_xl import jpeg_xl_size

SIZES = [(1, 1), (8, 16), (24, 24), (60, 80), (300, 517), (270, 480), (9, 1000)]


def encoded(size, format, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("format", "result"),
    [
        ("PNG", "PNG"),
        ("JPEG", "JPEG"),
        ("MPO", "JPEG"),
        ("WEBP", "WEBP"),
        ("TIFF", "TIFF"),
        ("BMP", "BMP"),
        ("GIF", "PNG"),
        ("PPM", "PNG"),
        ("JPEG2000", "PNG"),
        ("AVIF", "PNG"),
        ("JXL", "PNG"),
        ("HEIF", "PNG"),
    ],
)
def test_the_size_is_that_of_the_photo(size, format, result):
    if format not in (*readable(), "MPO"):
        pytest.skip(f"{format} needs the extra formats")
    data = encoded(size, format)
    header = read_header(data, "photo")
    assert (header.height, header.width) == read_photo(BytesIO(data)).pixels.shape[:2]
    assert header.format == result


@pytest.mark.parametrize(
    "data",
    [
        b"P6 3 2 65535\n" + bytes(36),
        b"P3 3 2 1000\n" + b"1 " * 18,
        b"Pf 3 2 -1\n" + bytes(24),
        b"P7\nWIDTH 3\nHEIGHT 2\nDEPTH 4\nMAXVAL 255\nENDHDR\n" + bytes(24),
    ],
)
def test_netpbm_is_understood_without_pillow(data):
    header = read_header(data, "photo")
    assert (header.height, header.width, header.pixels) == (2, 3, 6)
    assert read_photo(BytesIO(data)).pixels.shape[:2] == (2, 3)


def test_a_turned_photo_has_as_many_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded((20, 30), "JPEG", exif=exif)
    assert read_photo(BytesIO(data)).pixels.shape[:2] == (30, 20)
    assert read_header(data, "photo").pixels == 600


def test_a_tiff_that_only_tifffile_reads_is_one():
    tifffile = pytest.importorskip("tifffile")
    stream = BytesIO()
    tifffile.imwrite(stream, np.zeros((20, 30, 3), np.float64), photometric="rgb")
    header = read_header(stream.getvalue(), "photo")
    assert (header.height, header.width, header.format) == (20, 30, "TIFF")


def test_the_size_of_a_jpeg_xl_is_found_in_its_container():
    codestream = b"\xff\n" + (0 | 0 << 1 | 99 << 3 | 1 << 12).to_bytes(4, "little")  # 100 high, as wide
    box = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x14ftypjxl \0\0\0\0jxl "
    assert jpeg_xl_size(codestream) == (100, 100)
    assert jpeg_xl_size(box + b"\0\0\0\0jxlc" + codestream) == (100, 100)
    assert jpeg_xl_size(box + b"\0\0\0\x12jxlp\0\0\0\0" + codestream) == (100, 100)
    large = b"\0\0\0\1jxlc" + (16 + len(codestream)).to_bytes(8, "big")
    assert jpeg_xl_size(box + large + codestream) == (100, 100)
    for broken in (box, box + b"\0\0\0\3abcd", box + b"\0\0\0\0abcd" + codestream, b"\xff", b""):
        assert jpeg_xl_size(broken) is None


def test_nothing_is_decoded(monkeypatch):
    files = [encoded((20, 30), format) for format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "JPEG2000")]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    for data in files:
        assert read_header(data, "photo").pixels == 600


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", ImageError, "a.png: is empty"),
        (b"words", UnknownFormatError, "a.png: not an image in a known format"),
        (b"qoif" + bytes(20), UnknownFormatError, "is QOI"),
    ],
)
def test_what_is_none_is_said(data, error, words):
    with pytest.raises(error, match=words):
        read_header(data, "a.png")
