"""Test that a TIFF keeps its levels, transparency and metadata, whoever decodes its pixels."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import tifffile
from pictures import SRGB, gradient, stored_tiff
from PIL import ExifTags, Image

from mirl_sparse.photos import ImageError, image_size, read_photo, write_photo

DEEP = gradient().astype(np.uint16) * 257
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
IPTC = b"\x1c\x02\x78\x00\x05Title"
_BYTES = 1
_UNDEFINED = 7


def tiff(values: np.ndarray, more: tuple = (), **options: object) -> BytesIO:
    stream = BytesIO()
    tags = [(700, _BYTES, len(XMP), XMP, True), (34675, _UNDEFINED, len(SRGB), SRGB, True), *more]
    tifffile.imwrite(
        stream,
        values,
        photometric="rgb",
        description="a view",
        resolution=(300, 200),
        resolutionunit="INCH",
        extratags=tags,
        **options,
    )
    stream.seek(0)
    return stream


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (DEEP, {}),
        (gradient(), {}),
        (DEEP.transpose(2, 0, 1).copy(), {"planarconfig": "separate"}),
        ((DEEP / 65_535).astype(np.float32), {}),
    ],
    ids=["16 bits", "8 bits", "planar", "float"],
)
@pytest.mark.parametrize("iptc", [(33723, _UNDEFINED, len(IPTC), IPTC, True), None], ids=["iptc", "no iptc"])
def test_metadata_of_a_tiff_are_kept(values, options, iptc):
    photo = read_photo(tiff(values, (iptc,) if iptc else (), **options))
    np.testing.assert_array_equal(photo.in_eight_bits().pixels, gradient())
    for format in ("TIFF", "JPEG", "PNG"):
        stream = BytesIO()
        write_photo(stream, photo, format)
        stream.seek(0)
        again = read_photo(stream)
        assert again.xmp == XMP
        assert again.icc == SRGB
        assert again.dpi == pytest.approx((300, 200), abs=0.1)
        assert Image.open(stream).getexif()[ExifTags.Base.ImageDescription] == "a view"
        assert (IPTC in again.iptc) == (iptc is not None)


def test_resolution_in_centimetres_is_converted():
    stream = BytesIO()
    tifffile.imwrite(
        stream, (DEEP / 65_535).astype(np.float32), photometric="rgb", resolution=(100, 50), resolutionunit=3
    )
    stream.seek(0)
    assert read_photo(stream).dpi == pytest.approx((254, 127))


@pytest.mark.parametrize("bits", [4, 10, 12, 14])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack", "miniswhite"])
def test_odd_numbers_of_bits_reach_white(bits, photometric):
    values = np.linspace(0, (1 << bits) - 1, 24 * 32 * 3).round().astype(np.uint8 if bits < 8 else np.uint16)
    values = values.reshape(24, 32, 3) if photometric == "rgb" else values[:768].reshape(24, 32)
    photo = read_photo(stored_tiff(values, photometric=photometric, bitspersample=bits))
    light = values / ((1 << bits) - 1)
    light = 1 - light if photometric == "miniswhite" else light
    expected = light if photometric == "rgb" else np.repeat(light[..., None], 3, 2)
    top = np.iinfo(photo.pixels.dtype).max
    assert top == (255 if bits == 4 else 65_535)
    np.testing.assert_allclose(photo.pixels, expected * top, atol=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha", "unspecified"])
def test_channels_beyond_the_colours_count_as_the_file_says(dtype, layout, kind):
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    light, alpha = gradient() / 255, np.where(np.arange(32) < 8, 0.5, 1.0) * np.ones((24, 1))
    stored = np.dstack([light * alpha[..., None] if kind == "assocalpha" else light, alpha]) * top
    stored = (stored if top == 1 else stored.round()).astype(dtype)
    if layout == "separate":
        stored = np.moveaxis(stored, 2, 0).copy()
    tiff = stored_tiff(stored, photometric="rgb", planarconfig=layout, extrasamples=[kind])
    photo = read_photo(tiff).in_eight_bits()
    np.testing.assert_allclose(photo.pixels, gradient(), atol=2)
    if kind == "unspecified":
        assert photo.alpha is None
    else:
        np.testing.assert_allclose(photo.alpha, alpha * 255, atol=1)


def test_white_is_zero_says_nothing_of_alpha():
    values = np.dstack([DEEP[..., 0], np.full((24, 32), 20_000, np.uint16)])
    photo = read_photo(stored_tiff(values, photometric="miniswhite", extrasamples=["unassalpha"]))
    np.testing.assert_array_equal(photo.pixels[..., 0], 65_535 - DEEP[..., 0])
    assert (photo.alpha == 20_000).all()


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint32])
@pytest.mark.parametrize("channels", [1, 3])
def test_integers_of_other_types_reach_white(dtype, channels):
    light = np.linspace(0, 1, 24 * 32 * channels).reshape(24, 32, channels)
    values = (light * np.iinfo(dtype).max).round().astype(dtype)
    tiff = stored_tiff(values.squeeze(), photometric="rgb" if channels == 3 else "minisblack")
    photo = read_photo(tiff).in_eight_bits()
    np.testing.assert_allclose(photo.pixels, np.broadcast_to(light * 255, (24, 32, 3)), atol=2)


@pytest.mark.parametrize(("white", "highlight"), [(1, 1.6), (1, 16), (255, 300), (65_535, 70_000)])
@pytest.mark.parametrize("channels", [1, 3])
def test_bright_parts_of_floats_are_clipped(white, highlight, channels):
    values = np.linspace(0, 0.999, 24 * 32 * channels).reshape(24, 32, channels).astype(np.float32)
    values[-4:] = highlight / white
    tiff = stored_tiff((values * white).squeeze(), photometric="rgb" if channels == 3 else "minisblack")
    expected = np.broadcast_to(values.clip(0, 1) * 255, (24, 32, 3))
    np.testing.assert_allclose(read_photo(tiff).in_eight_bits().pixels, expected, atol=1)


def test_a_dark_image_of_whole_floats_stays_dark():
    values = np.random.default_rng(0).integers(0, 12, (24, 32)).astype(np.float32)
    np.testing.assert_array_equal(read_photo(stored_tiff(values)).pixels[..., 0], values)


@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_floats_around_0_are_refused(photometric):
    values = np.linspace(-1, 1, 24 * 32 * 3).reshape(24, 32, 3).astype(np.float32)
    values = values if photometric == "rgb" else values[..., 0]
    with pytest.raises(ImageError, match="holds values down to -1; expected 0 or more"):
        read_photo(stored_tiff(values.copy(), photometric=photometric))


def test_a_volume_is_refused(tmp_path):
    values = np.zeros((4, 32, 32), np.uint8)
    tiff = stored_tiff(values, volumetric=True, tile=(4, 16, 16), photometric="minisblack")
    (tmp_path / "a.tif").write_bytes(tiff.getvalue())
    with pytest.raises(ImageError, match="holds 4 slices; expected one"):
        read_photo(tiff)
    with pytest.raises(ImageError, match="holds 4 slices; expected one"):
        image_size(tmp_path / "a.tif")


def test_the_size_of_a_tiff_that_pillow_does_not_know(tmp_path):
    (tmp_path / "a.tif").write_bytes(stored_tiff(DEEP.astype(np.float32), photometric="rgb").getvalue())
    assert image_size(tmp_path / "a.tif") == (24, 32)


@pytest.mark.parametrize("more", [(), [(50706, _BYTES, 4, b"\1\4\0\0", True)]], ids=["nef", "dng"])
def test_a_camera_raw_is_not_its_thumbnail(more):
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(gradient()[::4, ::4], photometric="rgb", subfiletype=1, subifds=1, extratags=more)
        file.write(DEEP[..., 0], photometric=32803)
    with pytest.raises(ImageError, match=r"is a camera raw; develop it first \("):
        read_photo(BytesIO(stream.getvalue()))


def test_a_tiff_with_smaller_copies_is_a_photo():
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(gradient(), photometric="rgb", subifds=1)
        file.write(gradient()[::2, ::2], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_photo(BytesIO(stream.getvalue())).pixels, gradient())


def test_inks_of_16_bits_are_cut_with_a_warning():
    values = np.dstack([65_535 - DEEP, np.zeros_like(DEEP[..., 0])])
    with pytest.warns(UserWarning, match="has 16 bits of each ink; 8 of them are kept"):
        read_photo(stored_tiff(values, photometric="separated"))
