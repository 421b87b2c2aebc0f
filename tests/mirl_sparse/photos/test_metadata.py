"""Orientation, EXIF and colour profiles survive, as far as they stay true."""

from __future__ import annotations

import struct
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pictures import SRGB, encoded, gradient
from pictures import exif as make_exif
from PIL import ExifTags, Image

from mirl_sparse.photos import image_size, read_image, read_photo, write_photo
from mirl_sparse.photos.exif import (
    EXIF,
    GPS,
    INTEROP,
    MAIN,
    Directories,
    Entry,
    pack_directories,
    read_directories,
)

# Where a 2x3 image [[0, 1, 2], [3, 4, 5]] stored with an orientation belongs once upright.
UPRIGHT = {
    1: [[0, 1, 2], [3, 4, 5]],
    2: [[2, 1, 0], [5, 4, 3]],
    3: [[5, 4, 3], [2, 1, 0]],
    4: [[3, 4, 5], [0, 1, 2]],
    5: [[0, 3], [1, 4], [2, 5]],
    6: [[3, 0], [4, 1], [5, 2]],
    7: [[5, 2], [4, 1], [3, 0]],
    8: [[2, 5], [1, 4], [0, 3]],
}
ORIENTATION = ExifTags.Base.Orientation


class TestMetadata:
    @pytest.mark.parametrize("orientation", sorted(UPRIGHT))
    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_orientation_is_honoured(self, orientation: int, format: str) -> None:
        stored = np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3, 1), 3, 2)
        stored = np.dstack([stored, stored[..., 0] + 100])
        photo = read_photo(encoded(Image.fromarray(stored), format, exif=make_exif(orientation).tobytes()))
        assert photo.alpha is not None
        assert photo.pixels[..., 0].tolist() == UPRIGHT[orientation]
        assert (photo.alpha - np.uint8(100)).tolist() == UPRIGHT[orientation]

    @pytest.mark.parametrize("orientation", [1, 3, 6])
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_size_is_that_of_the_upright_image(self, tmp_path: Path, orientation: int, format: str) -> None:
        path = tmp_path / "a"
        path.write_bytes(
            encoded(Image.new("RGB", (3, 2)), format, exif=make_exif(orientation).tobytes()).read()
        )
        assert image_size(path) == read_image(path).shape[:2] == ((3, 2) if orientation == 6 else (2, 3))

    @pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
    def test_exif_and_profile_survive_from_any_format_to_any(
        self, tmp_path: Path, source: str, suffix: str
    ) -> None:
        stored = encoded(Image.fromarray(gradient()), source, exif=make_exif().tobytes(), icc_profile=SRGB)
        write_photo(tmp_path / f"a{suffix}", read_photo(stored))
        with Image.open(tmp_path / f"a{suffix}") as image:
            exif = image.getexif()
            assert image.size == (24, 32)
            assert image.info["icc_profile"] == SRGB
            assert exif[ExifTags.Base.Make] == "Maker"
            assert exif.get(ORIENTATION, 1) == 1
            assert exif.get_ifd(ExifTags.IFD.Exif) == {ExifTags.Base.ISOSpeedRatings: 400}
            assert exif.get_ifd(ExifTags.IFD.GPSInfo) == {ExifTags.GPS.GPSLatitudeRef: "N"}
            if suffix != ".tif":
                assert ExifTags.Base.StripOffsets not in exif
        assert read_image(tmp_path / f"a{suffix}").shape == (32, 24, 3)

    def test_bmp_has_no_room_for_them_and_is_written_all_the_same(self, tmp_path: Path) -> None:
        stored = encoded(Image.fromarray(gradient()), "PNG", exif=make_exif(1).tobytes(), icc_profile=SRGB)
        write_photo(tmp_path / "a.bmp", read_photo(stored))
        np.testing.assert_array_equal(read_image(tmp_path / "a.bmp"), gradient())

    def test_nothing_is_invented(self, tmp_path: Path) -> None:
        photo = read_photo(encoded(Image.new("RGB", (2, 2)), "PNG"))
        assert (photo.exif, photo.icc) == (b"", b"")
        write_photo(tmp_path / "a.png", photo)
        with Image.open(tmp_path / "a.png") as image:
            assert not set(image.info) & {"exif", "icc_profile"}

    def test_a_profile_for_other_colours_is_dropped(self) -> None:
        cmyk = SRGB[:16] + b"CMYK" + SRGB[20:]
        assert read_photo(encoded(Image.new("CMYK", (8, 8)), "JPEG", icc_profile=cmyk)).icc == b""

    @pytest.mark.parametrize(
        "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
    )
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    def test_broken_exif_does_not_cost_the_photo(self, tmp_path: Path, exif: bytes, format: str) -> None:
        path = tmp_path / "a"
        path.write_bytes(encoded(Image.fromarray(gradient()), format, exif=exif).read())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert image_size(path) == read_photo(path).pixels.shape[:2] == (24, 32)

    def test_exif_too_long_for_jpeg_is_left_out(self, tmp_path: Path) -> None:
        exif = make_exif(1)
        exif[ExifTags.Base.ImageDescription] = "x" * 70_000
        photo = read_photo(encoded(Image.fromarray(gradient()), "PNG", exif=exif))
        assert len(photo.exif) > 70_000
        write_photo(tmp_path / "a.jpg", photo)
        assert read_photo(tmp_path / "a.jpg").exif == b""


def entries_of(stored: bytes, group: int = MAIN) -> dict[int, Entry]:
    return read_directories(stored).entries.get(group, {})


def main_exif(*entries: tuple[int, Entry], group: int = MAIN, order: str = "<") -> bytes:
    directories = {MAIN: {}, group: dict(entries)}
    return b"Exif\0\0" + pack_directories(Directories(order, directories))


ASCII = 2
TEXTS = ["© 2024 Jörg Müller\0".encode(), "© Müller\0".encode("latin-1"), "日本\0".encode()]


class TestExif:
    @pytest.mark.parametrize("text", TEXTS, ids=["utf-8", "latin-1", "japanese"])
    @pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("target", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_text_stays_as_it_is(self, text: bytes, source: str, target: str) -> None:
        lens = int(ExifTags.Base.LensModel)
        stored = b"Exif\0\0" + pack_directories(
            Directories("<", {MAIN: {0x8298: Entry(ASCII, text)}, EXIF: {lens: Entry(ASCII, text)}})
        )
        written = rewritten(encoded(Image.fromarray(gradient()), source, exif=stored), target)
        assert entries_of(written)[0x8298] == Entry(ASCII, text)
        assert entries_of(written, EXIF)[lens] == Entry(ASCII, text)

    def test_an_odd_value_costs_no_other(self) -> None:
        resolution, make = int(ExifTags.Base.XResolution), int(ExifTags.Base.Make)
        entries = {make: Entry(ASCII, b"Maker\0"), resolution: Entry(ASCII, b"72\0")}
        exif = main_exif(*entries.items())
        written = rewritten(encoded(Image.fromarray(gradient()), "JPEG", exif=exif), "JPEG")
        assert entries_of(written)[make] == Entry(ASCII, b"Maker\0")

    def test_a_value_outside_of_the_file_costs_no_other(self) -> None:
        make, model = (int(ExifTags.Base[name]) for name in ("Make", "Model"))
        exif = bytearray(main_exif((make, Entry(ASCII, b"A long maker\0")), (model, Entry(ASCII, b"M1\0"))))
        at = exif.index(struct.pack("<HH", make, ASCII)) + 8
        exif[at : at + 4] = b"\xff\xff\xff\x7f"
        written = rewritten(encoded(Image.fromarray(gradient()), "JPEG", exif=bytes(exif)), "JPEG")
        assert entries_of(written) == {model: Entry(ASCII, b"M1\0")}

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("target", ["JPEG", "TIFF"])
    @pytest.mark.parametrize("deep", [False, True])
    def test_nested_directories_stay_whole(self, order: str, target: str, deep: bool) -> None:
        interop = {1: Entry(ASCII, b"R03\0"), 2: Entry(7, b"0100")}
        groups = {
            MAIN: {},
            EXIF: {0x9000: Entry(7, b"0231")},
            GPS: {1: Entry(ASCII, b"N\0")},
            INTEROP: interop,
        }
        exif = b"Exif\0\0" + pack_directories(Directories(order, groups))
        photo = read_photo(encoded(Image.fromarray(gradient()), "PNG", exif=exif))
        if deep:
            photo = replace(photo, pixels=photo.pixels.astype(np.uint16) * 257)
        stream = BytesIO()
        write_photo(stream, photo, target)
        stored = exif_of(stream)
        stream.seek(0)
        for group in (EXIF, GPS, INTEROP):
            assert groups[group].items() <= entries_of(stored, group).items()
        np.testing.assert_allclose(read_image(stream).astype(int), gradient(), atol=8)

    def test_directories_that_overlap_are_no_bomb(self) -> None:
        entry = struct.pack("<HHII", 0x10F, 7, 60_000, 8)
        data = b"II*\0\x08\0\0\0" + struct.pack("<H", 5000) + entry * 5000
        assert len(read_directories(data).entries[MAIN]) <= 1
        for cut in range(0, 60):
            read_directories(data[:cut])


def exif_of(stream: BytesIO) -> bytes:
    """The EXIF of a written file; a TIFF is its own."""
    data = stream.getvalue()
    return data if data.startswith((b"II", b"MM")) else Image.open(BytesIO(data)).info["exif"]


def rewritten(stored: BytesIO, format: str) -> bytes:
    stream = BytesIO()
    write_photo(stream, read_photo(stored), format)
    return exif_of(stream)


def test_a_jpeg_without_resolution_gets_none() -> None:
    photo = read_photo(encoded(Image.fromarray(gradient()), "JPEG", exif=make_exif().tobytes()))
    assert photo.dpi is None
