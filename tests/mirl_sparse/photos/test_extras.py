"""Text, XMP, IPTC, resolution and losslessness of a photo are kept."""

import zlib
from io import BytesIO

import numpy as np
import pytest
from pictures import SRGB, encoded
from PIL import ExifTags, Image, PngImagePlugin

from mirl_sparse.photos import read_photo, write_photo

SMALL = np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def png_with(**text: str) -> BytesIO:
    info = PngImagePlugin.PngInfo()
    for key, value in text.items():
        info.add_text(key, value, zip=len(value) > 1000)
    return encoded(Image.fromarray(SMALL), "PNG", pnginfo=info)


def test_text_of_a_png_is_kept_in_a_png(tmp_path):
    write_photo(tmp_path / "a.png", read_photo(png_with(Title="Rain", Author="Zoë")))
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.text == {"Title": "Rain", "Author": "Zoë"}


def test_text_that_inflates_to_megabytes_is_no_obstacle(tmp_path):
    photo = read_photo(png_with(Comment="x" * 3_000_000))
    np.testing.assert_array_equal(photo.pixels, SMALL)
    write_photo(tmp_path / "a.png", photo)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png").pixels, SMALL)


def test_a_profile_of_megabytes_is_kept(tmp_path):
    profile = b"\0" * 16 + b"RGB " + bytes(3_000_000)
    photo = read_photo(encoded(Image.fromarray(SMALL), "PNG", icc_profile=profile))
    assert photo.icc == profile


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_the_resolution_is_kept(tmp_path, format, suffix):
    write_photo(tmp_path / f"a{suffix}", read_photo(encoded(Image.fromarray(SMALL), format, dpi=(300, 300))))
    assert read_photo(tmp_path / f"a{suffix}").dpi == pytest.approx((300, 300), rel=1e-3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_xmp_is_kept_and_says_that_the_photo_is_upright(tmp_path, format, suffix):
    photo = read_photo(encoded(Image.fromarray(SMALL), format, xmp=XMP, lossless=True))
    assert photo.pixels.shape == (20, 12, 3)
    write_photo(tmp_path / f"a{suffix}", photo)
    again = read_photo(tmp_path / f"a{suffix}")
    assert again.xmp == XMP.replace(b'"6"', b'"1"')
    assert again.pixels.shape == (20, 12, 3)


def test_iptc_is_kept_in_a_jpeg(tmp_path):
    segment = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0b\x1c\x02\x78\0\x06a note\0"
    extra = b"\xff\xed" + (len(segment) + 2).to_bytes(2, "big") + segment
    photo = read_photo(encoded(Image.fromarray(SMALL), "JPEG", extra=extra))
    assert photo.iptc == segment
    write_photo(tmp_path / "a.jpg", photo)
    assert read_photo(tmp_path / "a.jpg").iptc == segment


def test_adobe_rgb_that_exif_names_is_kept(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.ColorSpace: 65_535, ExifTags.IFD.Interop: {1: "R03"}}
    photo = read_photo(encoded(Image.fromarray(SMALL), "JPEG", exif=exif.tobytes()))
    write_photo(tmp_path / "a.jpg", photo)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.getexif().get_ifd(ExifTags.IFD.Interop)[1] == "R03"


@pytest.mark.parametrize(("options", "is_lossless"), [({"lossless": True}, True), ({"quality": 80}, False)])
def test_lossless_webp_stays_lossless(tmp_path, options, is_lossless):
    photo = read_photo(encoded(Image.fromarray(SMALL), "WEBP", **options))
    write_photo(tmp_path / "a.webp", photo)
    assert np.array_equal(read_photo(tmp_path / "a.webp").pixels, photo.pixels) == is_lossless


def test_a_profile_before_the_pixels_does_not_hide_that_webp_is_lossless():
    assert read_photo(encoded(Image.fromarray(SMALL), "WEBP", lossless=True, icc_profile=SRGB)).lossless


@pytest.mark.parametrize(("format", "is_lossless"), [("JPEG", False), ("AVIF", False), ("PNG", True)])
def test_only_what_was_lossless_becomes_lossless_webp(tmp_path, format, is_lossless):
    photo = read_photo(encoded(Image.fromarray(SMALL), format))
    write_photo(tmp_path / "a.webp", photo)
    assert np.array_equal(read_photo(tmp_path / "a.webp").pixels, photo.pixels) == is_lossless


def test_a_png_keeps_its_xmp_beside_its_text(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "Rain")
    info.add_itxt("XML:com.adobe.xmp", XMP.decode().replace('"6"', '"1"'))
    write_photo(tmp_path / "a.png", read_photo(encoded(Image.fromarray(SMALL), "PNG", pnginfo=info)))
    again = read_photo(tmp_path / "a.png")
    assert again.xmp == XMP.replace(b'"6"', b'"1"')
    assert len(again.png.text) == 1


def test_the_gamma_of_a_png_is_kept_where_it_has_no_profile(tmp_path):
    stored = BytesIO(encoded(Image.fromarray(SMALL), "PNG").getvalue())
    gamma = b"\0\0\0\x04gAMA\0\x01\x86\xa0" + (0x31E8965F).to_bytes(4, "big")
    data = stored.getvalue()
    write_photo(tmp_path / "a.png", read_photo(BytesIO(data[:33] + gamma + data[33:])))
    assert gamma in (tmp_path / "a.png").read_bytes()


def test_metadata_can_be_dropped():
    photo = read_photo(encoded(Image.fromarray(SMALL), "JPEG", xmp=XMP, dpi=(300, 300))).without_metadata()
    assert (photo.exif, photo.xmp, photo.iptc, photo.dpi) == (b"", b"", b"", None)


def whole(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def raw_profile(kind: str, data: bytes) -> bytes:
    """A profile as ImageMagick stores it."""
    digits = "\n".join(data[i : i + 36].hex() for i in range(0, len(data), 36))
    text = f"\n{kind}\n{len(data):8d}\n{digits}\n".encode()
    return whole(b"zTXt", b"Raw profile type " + kind.encode() + b"\0\0" + zlib.compress(text))


def png_around(*before: bytes, after: bytes = b"") -> BytesIO:
    """A PNG with chunks behind its header, and bytes in the place of its last chunk."""
    data = encoded(Image.fromarray(SMALL), "PNG").getvalue()
    return BytesIO(data[:33] + b"".join(before) + (data[33:-12] + after if after else data[33:]))


IPTC = b"8BIM\x04\x04\0\0\0\0\0\x0c\x1c\x02\x78\0\x07caption"
TEXT = whole(b"tEXt", b"Comment\0hello world hello")


@pytest.mark.parametrize(
    "stored",
    [png_around(TEXT[:-1] + b"\0"), png_around(after=TEXT[:-10]), png_around(after=TEXT[:10])],
    ids=["checksum", "cut text", "cut keyword"],
)
def test_damaged_text_does_not_damage_the_result(tmp_path, stored):
    write_photo(tmp_path / "a.png", read_photo(stored))
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        np.testing.assert_array_equal(np.asarray(image), SMALL)
        assert not image.text


@pytest.mark.parametrize("kind", ["iptc", "8bim"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_iptc_of_a_png_is_kept(tmp_path, kind, suffix):
    content = IPTC if kind == "8bim" else b"\x1c\x02\x78\0\x07caption"
    write_photo(tmp_path / f"a{suffix}", read_photo(png_around(raw_profile(kind, content))))
    assert b"\x1c\x02\x78\0\x07caption" in read_photo(tmp_path / f"a{suffix}").iptc


def test_a_profile_of_megabytes_in_text_is_no_obstacle():
    photo = read_photo(png_around(raw_profile("8bim", b"8BIM" + bytes(700_000))))
    np.testing.assert_array_equal(photo.pixels, SMALL)


@pytest.mark.parametrize(
    "chunk",
    [
        raw_profile("xmp", XMP),
        raw_profile("APP1", b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        whole(b"tEXt", b"XML:com.adobe.xmp\0" + XMP),
        whole(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(XMP)),
    ],
    ids=["raw profile", "segment", "tEXt", "zTXt"],
)
def test_xmp_of_a_png_is_kept_wherever_it_lies(tmp_path, chunk):
    write_photo(tmp_path / "a.png", read_photo(png_around(chunk)))
    assert read_photo(tmp_path / "a.png").xmp == XMP.replace(b'"6"', b'"1"')


def test_exif_in_the_text_of_a_png_is_kept():
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "Maker", 6
    photo = read_photo(png_around(raw_profile("exif", exif.tobytes())))
    assert photo.pixels.shape == (20, 12, 3)
    assert b"Maker" in photo.exif


def app13(data: bytes) -> bytes:
    return b"\xff\xed" + (len(data) + 2).to_bytes(2, "big") + data


def test_all_segments_of_photoshop_are_kept(tmp_path):
    parts = [b"Photoshop 3.0\0" + bytes([n]) * 60_000 for n in (1, 2, 3)]
    photo = read_photo(encoded(Image.fromarray(SMALL), "JPEG", extra=b"".join(map(app13, parts))))
    assert photo.iptc == b"Photoshop 3.0\0" + b"\1" * 60_000 + b"\2" * 60_000 + b"\3" * 60_000
    write_photo(tmp_path / "a.jpg", photo)
    assert read_photo(tmp_path / "a.jpg").iptc == photo.iptc


def test_a_turned_photo_keeps_its_iptc_and_stays_lossless(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    segment = app13(b"Photoshop 3.0\0" + IPTC)
    assert (
        IPTC in read_photo(encoded(Image.fromarray(SMALL), "JPEG", extra=segment, exif=exif.tobytes())).iptc
    )
    photo = read_photo(encoded(Image.fromarray(SMALL), "WEBP", lossless=True, exif=exif.tobytes()))
    write_photo(tmp_path / "a.webp", photo)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.webp").pixels, np.rot90(SMALL, -1))


def test_the_comment_of_a_jpeg_is_kept_in_a_jpeg(tmp_path):
    photo = read_photo(encoded(Image.fromarray(SMALL), "JPEG", comment=b"a comment"))
    write_photo(tmp_path / "a.jpg", photo)
    assert read_photo(tmp_path / "a.jpg").comment == b"a comment"
    assert photo.without_metadata().comment == b""
