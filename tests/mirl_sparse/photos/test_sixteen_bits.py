"""All 16 bits of a channel are read, restored and written."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from mirl_sparse.photos import ImageError, read_image, read_photo, write_photo
from mirl_sparse.photos.photo import Photo

GRADIENT = np.random.default_rng(0).integers(0, 65_536, (9, 14, 4)).astype(np.uint16)


def png(values: np.ndarray, *more: bytes, depth: int = 16) -> BytesIO:
    """A PNG without filters: rows of packed samples, (H, W, C)."""
    height, width, channels = values.shape
    rows = values.astype(">u2").reshape(height, -1)
    if depth < 16:
        bits = (rows[..., None] >> np.arange(depth - 1, -1, -1) & 1).reshape(height, -1).astype(bool)
        packed = np.packbits(bits, axis=1)
    else:
        packed = rows.view(np.uint8)
    body = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, depth, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    return BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(values: np.ndarray, **options: object) -> BytesIO:
    stream = BytesIO()
    tifffile.imwrite(stream, values, **options)
    return BytesIO(stream.getvalue())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_is_read_exactly(channels):
    values = GRADIENT[..., :channels]
    photo = read_photo(png(values))
    assert photo.pixels.dtype == np.uint16
    np.testing.assert_array_equal(
        photo.pixels, np.broadcast_to(values[..., : 3 if channels > 2 else 1], (9, 14, 3))
    )
    if channels in (2, 4):
        np.testing.assert_array_equal(photo.alpha, values[..., -1])
    else:
        assert photo.alpha is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"byteorder": ">"},
        {"planarconfig": "separate"},
    ],
    ids=str,
)
def test_tiff_of_16_bits_is_read_exactly(options):
    values = GRADIENT[..., :3]
    stored = values.transpose(2, 0, 1) if "planarconfig" in options else values
    photo = read_photo(tiff(np.ascontiguousarray(stored), photometric="rgb", **options))
    np.testing.assert_array_equal(photo.pixels, values)


def test_a_colour_of_16_bits_can_be_transparent():
    values = GRADIENT[..., :3]
    key = struct.pack(">HHH", *values[3, 5].tolist())
    photo = read_photo(png(values, chunk(b"tRNS", key)))
    assert photo.alpha.dtype == np.uint16
    assert photo.alpha[3, 5] == 0
    assert (photo.alpha == 65_535).sum() == photo.alpha.size - 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_grey_of_fewer_bits_can_be_transparent(depth):
    values = (np.arange(64).reshape(4, 16, 1) % (1 << depth)).astype(np.uint16)
    photo = read_photo(png(values, chunk(b"tRNS", struct.pack(">H", 1)), depth=depth))
    np.testing.assert_array_equal(photo.alpha == 0, values[..., 0] == 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    values = GRADIENT[..., :3]
    turned = read_photo(png(values, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
    eight = read_image(png(values, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
    np.testing.assert_array_equal(turned.pixels >> 8, eight)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_what_is_written_is_read_again(tmp_path, suffix, has_alpha):
    photo = Photo(GRADIENT[..., :3], GRADIENT[..., 3] if has_alpha else None, dpi=(300.0, 150.0), xmp=b"<x/>")
    write_photo(tmp_path / f"a{suffix}", photo)
    again = read_photo(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(again.pixels, photo.pixels)
    assert again.xmp == photo.xmp
    assert again.dpi == pytest.approx(photo.dpi, rel=1e-4)
    if has_alpha:
        np.testing.assert_array_equal(again.alpha, photo.alpha)
    with Image.open(tmp_path / f"a{suffix}") as seen:  # another program's view
        np.testing.assert_array_equal(np.asarray(seen)[..., 0], photo.pixels[..., 0] >> 8)


def test_a_format_of_8_bits_gets_rounded_values(tmp_path):
    write_photo(tmp_path / "a.bmp", Photo(np.full((4, 4, 3), 40_000, np.uint16)))
    assert (read_image(tmp_path / "a.bmp") == round(40_000 / 257)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_count_from_0_to_1_even_if_highlights_lie_above(dtype):
    values = np.linspace(0, 1, 300 * 3).reshape(15, 20, 3).astype(dtype)
    values[0, 0] = 1.001
    photo = read_photo(tiff(values, photometric="rgb"))
    np.testing.assert_allclose(photo.pixels, values.clip(0, 1).astype(float) * 65_535, atol=1)


def test_grey_floats_just_above_1_are_not_black():
    values = np.linspace(0, 1.0001, 300).reshape(15, 20).astype(np.float32)
    assert read_image(tiff(values)).max() == 255


def test_values_below_0_are_refused():
    with pytest.raises(ImageError, match=r"holds values down to -5; expected 0 or more"):
        read_photo(tiff(np.full((4, 4), -5, np.int16)))


@pytest.mark.parametrize(
    ("maxval", "dtype"), [(1, "u1"), (100, "u1"), (255, "u1"), (1000, ">u2"), (65_535, ">u2")]
)
def test_pgm_is_scaled_by_its_maxval(maxval, dtype):
    values = np.linspace(0, maxval, 12).round().reshape(3, 4)
    values.flat[-1] = maxval // 4
    photo = read_photo(BytesIO(b"P5 4 3 %d\n" % maxval + values.astype(dtype).tobytes()))
    top = np.iinfo(photo.pixels.dtype).max
    np.testing.assert_allclose(photo.pixels[..., 0], values * top / maxval, atol=1)


def test_a_dark_pgm_of_16_bits_stays_dark():
    photo = read_photo(BytesIO(b"P5 2 1 65535\n" + np.array([3, 200], ">u2").tobytes()))
    assert photo.pixels.max() <= 200


def test_a_planar_tiff_without_its_reader_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("mirl_sparse.photos.tiff.find_spec", lambda name: None)
    path = Path(tmp_path, "a.tif")
    path.write_bytes(
        tiff(np.zeros((3, 8, 8), np.uint16), photometric="rgb", planarconfig="separate").getvalue()
    )
    with pytest.raises(ImageError, match=r"a\.tif: is a TIFF of an unusual layout"):
        read_photo(path)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_jpeg_2000_of_more_than_8_bits_is_read_exactly(channels, bits):
    imagecodecs = pytest.importorskip("imagecodecs")
    values = (GRADIENT[..., :channels] >> (16 - bits)).astype(np.uint8 if bits == 8 else np.uint16)
    values[:4] = (1 << bits) - 1
    options = {"level": 0, "codecformat": "jp2", "reversible": True, "bitspersample": bits}
    data = imagecodecs.jpeg2k_encode(values, **options)
    photo = read_photo(BytesIO(data))
    top = 255 if bits == 8 else 65_535
    colours = values[..., : 1 if channels == 2 else 3]
    np.testing.assert_allclose(
        photo.pixels, np.broadcast_to(colours * (top / ((1 << bits) - 1)), (9, 14, 3)), atol=1
    )
    assert (photo.alpha is None) == (channels == 3)
    seen = read_image(BytesIO(data))
    assert seen.dtype == np.uint8
    assert seen[0, 0].tolist() == [255, 255, 255]


def test_jpeg_2000_of_16_bits_without_its_reader_is_refused(monkeypatch):
    imagecodecs = pytest.importorskip("imagecodecs")
    data = imagecodecs.jpeg2k_encode(GRADIENT[..., :3].copy(), level=0, codecformat="jp2")
    monkeypatch.setattr("mirl_sparse.photos.sixteen_bits.find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"is a JPEG 2000 of 16 bits; to read it, run pip install"):
        read_photo(BytesIO(data))


@pytest.mark.parametrize("bits", [10, 16])
def test_jpeg_xl_of_more_than_8_bits_is_read_exactly(bits):
    imagecodecs, _ = pytest.importorskip("imagecodecs"), pytest.importorskip("pillow_jxl")
    values = GRADIENT[..., :3] >> (16 - bits)
    photo = read_photo(BytesIO(imagecodecs.jpegxl_encode(values, lossless=True, bitspersample=bits)))
    np.testing.assert_allclose(photo.pixels, values * (65_535 / ((1 << bits) - 1)), atol=1)


@pytest.mark.parametrize("white", [1023, 65_535])
@pytest.mark.parametrize("kind", [b"P3", b"P6"])
def test_ppm_of_more_than_8_bits_is_read_exactly(white, kind):
    values = (GRADIENT[..., :3].astype(int) * white // 65_535).astype(">u2")
    body = values.tobytes() if kind == b"P6" else " # more\n".join(map(str, values.ravel())).encode()
    photo = read_photo(BytesIO(kind + b"\n# a comment\n14 9\n%d\n" % white + body))
    np.testing.assert_allclose(photo.pixels, values * (65_535 / white), atol=1)


@pytest.mark.parametrize(("kind", "channels"), [(b"Pf", 1), (b"PF", 3)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pfm_is_read_from_the_bottom_to_the_top(kind, channels, order):
    values = np.linspace(0, 1, 9 * 14 * channels).reshape(9, 14, channels)
    scale = b"-1.0" if order == "<" else b"1.0"
    photo = read_photo(BytesIO(kind + b"\n14 9\n%b\n" % scale + values[::-1].astype(f"{order}f4").tobytes()))
    np.testing.assert_allclose(photo.pixels, np.broadcast_to(values * 65_535, (9, 14, 3)), atol=1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("white", [255, 65_535])
def test_pam_is_read(channels, white):
    values = GRADIENT[..., :channels].astype(int) * white // 65_535
    head = b"P7\nWIDTH 14\nHEIGHT 9\nDEPTH %d\nMAXVAL %d\nTUPLTYPE ANY\nENDHDR\n" % (channels, white)
    photo = read_photo(BytesIO(head + values.astype("u1" if white == 255 else ">u2").tobytes()))
    np.testing.assert_array_equal(
        photo.pixels, np.broadcast_to(values[..., : 1 if channels < 3 else 3], (9, 14, 3))
    )
    assert photo.pixels.flags.writeable
    if channels in (2, 4):
        np.testing.assert_array_equal(photo.alpha, values[..., -1])
    else:
        assert photo.alpha is None


@pytest.mark.parametrize("data", [b"P6 9 9 65535\n", b"PF\n9 9\n-1\n", b"P7\nWIDTH 9\nENDHDR\n"])
def test_netpbm_that_is_cut_short_is_refused_in_one_line(data):
    with pytest.raises(ImageError):
        read_photo(BytesIO(data))


@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_keeps_16_bits_beside_any_fourth_channel(extra, compression):
    values = GRADIENT.copy()
    values[..., 3] |= 0x8000
    stored = values.copy()
    if extra == 1:
        stored[..., :3] = (values[..., :3] * (values[..., 3:] / 65_535)).round()
    photo = read_photo(tiff(stored, photometric="rgb", extrasamples=[extra], compression=compression))
    np.testing.assert_allclose(photo.pixels.astype(int), values[..., :3], atol=2 if extra == 1 else 0)
    assert photo.alpha is None if extra == 0 else (photo.alpha == values[..., 3]).all()
