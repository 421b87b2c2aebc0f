"""What a PNG says of its colours goes into formats that hold nothing but profiles."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pytest
from pictures import encoded, gradient
from PIL import Image, ImageCms

from mirl_sparse.photos import read_photo, write_photo
from mirl_sparse.photos.png import chunk, with_chunks
from mirl_sparse.photos.profiles import profile_of_chunks

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
