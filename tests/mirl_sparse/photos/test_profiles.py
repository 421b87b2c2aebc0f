"""Test that the colours that a PNG states become a profile in other formats."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from pictures import LINEAR, encoded, gradient, grey_profile, stored_tiff, to_srgb
from PIL import Image, ImageCms

from mirl_sparse.photos import read_photo, write_photo
from mirl_sparse.photos.formats import readable
from mirl_sparse.photos.png import chunk, encode_sixteen_bits, with_chunks
from mirl_sparse.photos.profiles import grey_levels, profile_of_chunks

P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)


def gamma(value: float) -> bytes:
    return chunk(b"gAMA", round(value * 100_000).to_bytes(4, "big"))


def chromaticities(values: tuple[float, ...]) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(v * 100_000) for v in values)))


def cicp(*codes: int) -> bytes:
    return chunk(b"cICP", bytes(codes))


def to_linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def in_srgb(profile: bytes, pixels: np.ndarray) -> np.ndarray:
    """Return what a colour-managed program shows."""
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    shown = ImageCms.profileToProfile(Image.fromarray(pixels), source, ImageCms.createProfile("sRGB"))
    assert shown is not None
    return np.asarray(shown).astype(int)


@pytest.mark.parametrize("exponent", [1.0, 1.8, 2.6])
def test_a_gamma_is_that_of_the_profile(exponent):
    pixels = gradient()
    profile = profile_of_chunks([gamma(1 / exponent)])
    linear = (pixels / 255) ** exponent
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(in_srgb(profile, pixels), np.rint(255 * expected), atol=3)


@pytest.mark.parametrize(
    "chunks", [[chromaticities(P3)], [gamma(1 / 2.2), chromaticities(P3)], [cicp(12, 13, 0, 1)]]
)
def test_primaries_are_those_of_the_profile(chunks):
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    profile = profile_of_chunks(chunks)
    np.testing.assert_allclose(in_srgb(profile, greys), greys, atol=1)  # white stays white
    # P3's matrix to sRGB, from the published primaries.
    matrix = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
    colours = np.array([[[150, 120, 100], [100, 140, 120], [120, 110, 150]]], np.uint8)
    linear = to_linear(colours / 255) @ matrix.T
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(in_srgb(profile, colours), expected, atol=1.5)


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [gamma(1 / 2.2)],
        [chromaticities(SRGB)],
        [gamma(1 / 2.2), chromaticities(SRGB)],
        [chunk(b"sRGB", b"\0"), gamma(1.0)],
        [cicp(1, 13, 0, 1)],
        [gamma(0.0)],
        [chunk(b"gAMA", b"\1"), chunk(b"cHRM", b"")],
        [chromaticities((0.0,) * 8)],
        [chromaticities((0.3,) * 8)],
    ],
)
def test_srgb_and_nonsense_give_no_profile(chunks):
    assert profile_of_chunks(chunks) == b""


def test_a_png_that_becomes_another_format_keeps_its_colours():
    stored = with_chunks(encoded(Image.fromarray(gradient()), "PNG").getvalue(), [gamma(1.0)])
    photo = read_photo(BytesIO(stored))
    for format in ("JPEG", "TIFF", "WEBP", "PNG"):
        stream = BytesIO()
        write_photo(stream, photo, format)
        stream.seek(0)
        again = Image.open(stream)
        assert ("icc_profile" in again.info) == (format != "PNG")
        assert again.info.get("gamma") == (1.0 if format == "PNG" else None)


GREYS = np.repeat(np.arange(256, dtype=np.uint8)[None], 2, 0)
DEEP_GREYS = GREYS.astype(np.uint16) * 257
GAMMA = chunk(b"gAMA", (100_000).to_bytes(4, "big"))


def linear_png(pixels: np.ndarray) -> BytesIO:
    """A PNG of (H, W, C) grey whose profile says that it is linear; so does its gamma."""
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(LINEAR))
    if pixels.dtype == np.uint16:
        return BytesIO(encode_sixteen_bits(pixels, [profile, GAMMA]))
    image = Image.fromarray(pixels.squeeze(), "LA" if pixels.shape[2] == 2 else "L")
    return BytesIO(with_chunks(encoded(image, "PNG").getvalue(), [profile, GAMMA]))


@pytest.mark.parametrize("values", [GREYS, DEEP_GREYS], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_grey_is_converted_by_its_profile_and_by_nothing_else(values, has_alpha):
    channels = [values, values] if has_alpha else [values]
    photo = read_photo(linear_png(np.stack(channels, 2)))
    top = np.iinfo(values.dtype).max
    np.testing.assert_allclose(photo.pixels[..., 1], to_srgb(values / top) * top, atol=1)
    assert photo.pixels.dtype == values.dtype
    assert photo.png.colour_space == ()
    if has_alpha:
        np.testing.assert_array_equal(photo.alpha, values)


@pytest.mark.parametrize("has_alpha", [False, True])
def test_grey_of_16_bits_in_a_tiff_is_converted_too(has_alpha):
    values = np.dstack([DEEP_GREYS, DEEP_GREYS]) if has_alpha else DEEP_GREYS
    options = {"extrasamples": ["unassalpha"]} if has_alpha else {}
    photo = read_photo(stored_tiff(values, photometric="minisblack", iccprofile=LINEAR, **options))
    np.testing.assert_allclose(photo.pixels[..., 1], to_srgb(DEEP_GREYS / 65_535) * 65_535, atol=1)


def parametric(kind: int, *numbers: float) -> bytes:
    return (
        b"para" + bytes(4) + struct.pack(f">Hxx{len(numbers)}i", kind, *(round(n * 65_536) for n in numbers))
    )


@pytest.mark.parametrize(
    "curve",
    [
        b"curv" + bytes(4) + struct.pack(">I", 0),
        b"curv" + bytes(4) + struct.pack(">IHxx", 1, 461),
        b"curv" + bytes(4) + struct.pack(">I3Hxx", 3, 0, 10_000, 65_535),
        parametric(0, 1.8),
        parametric(1, 1.8, 0.9, 0.1),
        parametric(2, 1.8, 0.8, 0.1, 0.05),
        parametric(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045),
        parametric(4, 2.4, 0.9, 0.05, 0.08, 0.04, 0.01, 0.002),
    ],
)
@pytest.mark.parametrize("connection", [b"XYZ ", b"Lab "])
def test_curves_are_those_of_the_colour_management(curve, connection):
    profile = grey_profile(curve, connection)
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    shown = ImageCms.profileToProfile(Image.fromarray(GREYS), source, target, intent, "RGB")
    assert shown is not None
    levels = grey_levels(profile, 256)
    assert levels is not None
    middle = slice(16, 240)  # ImageCms interpolates the ends coarsely
    np.testing.assert_allclose(levels[middle] * 255, np.asarray(shown)[0, middle, 1], atol=1.5)


@pytest.mark.parametrize("cut", [20, 130, 150, 180, 188])
def test_a_broken_grey_profile_changes_nothing(cut):
    assert grey_levels(LINEAR[:cut], 256) is None


def with_codes(stored: BytesIO, primaries: int, transfer: int) -> bytes:
    """Put other codes into a HEIF or AVIF."""
    data = stored.getvalue()
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_codes_of_colours_give_a_profile(format):
    if format == "HEIF":
        pytest.importorskip("pillow_heif")
    readable()  # registers the plugin
    stored = encoded(Image.fromarray(gradient()), format)
    assert read_photo(stored).icc == b""
    photo = read_photo(BytesIO(with_codes(stored, 12, 13)))
    assert photo.icc == profile_of_chunks([cicp(12, 13, 0, 1)]) != b""
    assert read_photo(BytesIO(with_codes(stored, 2, 2))).png.colour_space == ()
