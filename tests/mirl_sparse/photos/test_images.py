from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole
from mirl_sparse.photos.images import (
    FORMATS,
    ImageError,
    Photo,
    image_size,
    read_image,
    read_photo,
    to_rgb,
    write_image,
    write_photo,
)

LOSSLESS = (".png", ".tif", ".tiff", ".bmp")
ORIENTATION = ExifTags.Base.Orientation
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
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


def profile(kind: bytes, space: bytes, connection: bytes, name: bytes, content: bytes) -> bytes:
    """An ICC profile of D50 white and one more tag (ICC.1:2001-04)."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    first = 128 + 4 + 2 * 12
    tags = struct.pack(">I4sII4sII", 2, name, first, len(content), b"wtpt", first + len(content), 20)
    header = struct.pack(">I4sI4s4s4s12s4s", first + len(content) + 20, bytes(4), 0x02400000, kind, space, connection, bytes(12),
                         b"acsp") + bytes(28) + white  # fmt: skip
    return header + bytes(128 - len(header)) + tags + content + b"XYZ " + bytes(4) + white


def press(lab: tuple[int, int, int]) -> bytes:
    """The profile of a press whose cyan is of the colour ``lab``, and whose magenta and yellow cannot be seen."""

    def entry(lightness: int, a: int, b: int) -> bytes:
        return bytes([lightness * 255 // 100, a + 128, b + 128])

    # Two places each way; cyan varies slowest, black fastest.
    grid = (entry(100, 0, 0) + entry(0, 0, 0)) * 4 + (entry(*lab) + entry(0, 0, 0)) * 4
    ramp = bytes(range(256))
    identity = [65536 * (i % 4 == 0) for i in range(9)]
    table = (
        b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *identity) + ramp * 4 + grid + ramp * 3
    )
    return profile(b"prtr", b"CMYK", b"Lab ", b"A2B0", table)


def only(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if not p.is_dir())


class TestRoundTrip:
    @pytest.mark.parametrize("suffix", LOSSLESS)
    @pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7, 3), (5, 1, 3), (13, 17, 3)])
    def test_lossless_formats_keep_every_value(
        self, tmp_path: Path, suffix: str, shape: tuple[int, ...]
    ) -> None:
        image = noise(*shape)
        write_image(tmp_path / f"a{suffix}", image)
        got = read_image(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(got, image)
        assert got.dtype == np.uint8
        assert got.flags.writeable
        assert got.flags.c_contiguous

    @pytest.mark.parametrize("suffix", sorted(set(FORMATS) - set(LOSSLESS)))
    def test_lossy_formats_stay_close(self, tmp_path: Path, suffix: str) -> None:
        write_image(tmp_path / f"a{suffix}", gradient())
        error = np.abs(read_image(tmp_path / f"a{suffix}").astype(int) - gradient())
        assert error.max() <= 16
        assert error.mean() <= 2

    @pytest.mark.parametrize("suffix", sorted(FORMATS))
    def test_one_pixel_in_every_format(self, tmp_path: Path, suffix: str) -> None:
        write_image(tmp_path / f"a{suffix}", np.full((1, 1, 3), 200, np.uint8))
        assert np.abs(read_image(tmp_path / f"a{suffix}").astype(int) - 200).max() <= 2

    def test_jpeg_keeps_full_colour_resolution(self, tmp_path: Path) -> None:
        stripes = np.zeros((16, 16, 3), np.uint8)
        stripes[:, ::2, 0], stripes[:, 1::2, 2] = 255, 255
        write_image(tmp_path / "a.jpg", stripes)
        assert (
            np.abs(read_image(tmp_path / "a.jpg").astype(int) - stripes).mean() < 12
        )  # 4:2:0 gives about 80

    def test_suffixes_may_be_upper_case_and_folders_are_made(self, tmp_path: Path) -> None:
        target = tmp_path / "new" / "deep" / "A.JPG"
        write_image(target, gradient())
        with Image.open(target) as image:
            assert image.format == "JPEG"

    def test_content_counts_not_the_suffix(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(noise(4, 5, 3)), "PNG").getvalue())
        np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), noise(4, 5, 3))

    def test_streams(self) -> None:
        stream = io.BytesIO()
        write_photo(stream, Photo(noise(4, 5, 3)))
        assert stream.getvalue().startswith(b"\x89PNG")
        stream.seek(0)
        np.testing.assert_array_equal(read_image(stream), noise(4, 5, 3))

    def test_twelve_megapixels(self, tmp_path: Path) -> None:
        image = np.zeros((3000, 4000, 3), np.uint8)
        image[1234, 2345] = 7
        write_image(tmp_path / "a.bmp", image)
        assert np.array_equal(read_image(tmp_path / "a.bmp"), image)

    def test_a_stream_that_cannot_seek(self, tmp_path: Path) -> None:
        class Pipe(io.BytesIO):
            def seekable(self) -> bool:
                return False

            def seek(self, *_: int) -> int:
                raise io.UnsupportedOperation("seek")

        stream = Pipe(encoded(Image.fromarray(noise(4, 5, 3)), "PNG").getvalue())
        np.testing.assert_array_equal(read_image(stream), noise(4, 5, 3))


class TestModes:
    @pytest.mark.parametrize(
        "mode",
        [
            "1",
            "L",
            "LA",
            "La",
            "P",
            "PA",
            "RGB",
            "RGBA",
            "RGBa",
            "RGBX",
            "CMYK",
            "YCbCr",
            "HSV",
            "LAB",
            "I",
            "F",
            "I;16",
            "I;16L",
            "I;16B",
        ],
    )
    def test_any_mode_becomes_rgb(self, mode: str) -> None:
        got = to_rgb(Image.new(mode, (3, 2)))
        assert got.shape == (2, 3, 3)
        assert got.dtype == np.uint8

    @given(
        mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F", "I;16"]),
        orientation=st.integers(0, 9),
    )
    def test_any_mode_is_turned_upright(self, mode: str, orientation: int) -> None:
        image = Image.new(mode, (3, 2))
        image.getexif()[ORIENTATION] = orientation
        assert to_rgb(image).shape == ((3, 2, 3) if orientation in (5, 6, 7, 8) else (2, 3, 3))

    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_16_bit_grey_is_scaled_not_clipped(self, format: str) -> None:
        stored = Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16))
        assert read_image(encoded(stored, format))[0, :, 0].tolist() == [0, 1, 128, 255]

    @pytest.mark.parametrize(("bits", "white_is_zero"), [(12, False), (16, False), (16, True)])
    def test_grey_of_tiff_as_it_says_itself(self, bits: int, white_is_zero: bool) -> None:
        levels = [0, (1 << bits) // 2, (1 << bits) - 1, 0]
        packed = sum(v << (bits * (3 - i)) for i, v in enumerate(levels)).to_bytes(bits // 2, "big")
        data = packed if bits == 12 else struct.pack("<4H", *levels)
        entries = [(256, 4), (257, 1), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 8), (277, 1), (278, 1),
                   (279, len(data))]  # fmt: skip
        folder = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        start = struct.pack("<2sHI", b"II", 42, 8 + len(data))
        tiff = io.BytesIO(start + data + struct.pack("<H", len(entries)) + folder + bytes(4))
        expected = [255, 127, 0, 255] if white_is_zero else [0, 128, 255, 0]
        assert read_image(tiff)[0, :, 0].tolist() == expected

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255]),
            (np.array([[0.0, 100.4, 200.0]]), [0, 100, 200]),
            (np.array([[0.0, 257.0, 65535.0]]), [0, 1, 255]),
            (np.array([[-1.0, np.nan, 1.0]]), [0, 0, 255]),
            (np.array([[-2.0, -1.0, 0.0]]), [0, 0, 0]),
            (np.array([[0, 1, 255]]), [0, 1, 255]),
            (np.array([[0, 1, 1]]), [0, 1, 1]),
            (np.array([[0, 257, 65535]]), [0, 1, 255]),
            (np.array([[0, 1 << 29, 1 << 30]]), [0, 128, 255]),
        ],
    )
    def test_wide_grey_finds_its_full_scale(self, values: NDArray[np.generic], expected: list[int]) -> None:
        kind = np.float32 if values.dtype.kind == "f" else np.int32
        assert read_image(encoded(Image.fromarray(values.astype(kind)), "TIFF"))[0, :, 0].tolist() == expected

    def test_16_bit_colour(self) -> None:
        rows = b"\x00" + struct.pack(">3H", 0, 0x8000, 0xFFFF)

        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
        png = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b"")
        )
        assert read_image(io.BytesIO(png)).tolist() == [[[0, 128, 255]]]

    def test_cmyk_jpeg(self) -> None:
        white = Image.new("CMYK", (8, 8))
        assert read_image(encoded(white, "JPEG")).min() >= 254

    @pytest.mark.parametrize("format", ["JPEG", "TIFF"])
    def test_inks_look_as_their_profile_says(self, format: str) -> None:
        ink, lab = (
            (255, 0, 0, 0),
            (46, 68, 48),
        )  # a cyan that is red, by this press; in sRGB (211, 23, 33), by the equations of CIE and IEC 61966-2-1
        file = encoded(Image.new("CMYK", (8, 8), ink), format, icc_profile=press(lab))
        seen = read_photo(file)
        assert np.abs(seen.pixels.astype(int) - (211, 23, 33)).max() <= 1
        assert seen.icc == b""
        np.testing.assert_array_equal(to_rgb(Image.open(file)), seen.pixels)
        for broken in (SRGB[:16] + b"CMYK" + SRGB[20:], press(lab)[:300]):  # then as Pillow converts them
            assert (
                read_image(encoded(Image.new("CMYK", (8, 8), ink), format, icc_profile=broken))[0, 0, 0] < 5
            )

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
    def test_grey_looks_as_its_profile_says(self, format: str) -> None:
        linear = profile(
            b"mntr", b"GRAY", b"XYZ ", b"kTRC", b"curv" + bytes(4) + struct.pack(">IHxx", 1, 256)
        )
        seen = read_photo(encoded(Image.new("L", (8, 8), 55), format, icc_profile=linear))
        assert np.abs(seen.pixels.astype(int) - 128).max() <= 1  # 55 / 255 of the light, by IEC 61966-2-1
        assert seen.icc == b""


class TestAlpha:
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
    def test_alpha_survives_where_the_format_has_it(self, tmp_path: Path, suffix: str) -> None:
        photo = Photo(gradient(), noise(24, 32))
        write_photo(tmp_path / f"a{suffix}", photo)
        got = read_photo(tmp_path / f"a{suffix}")
        assert got.alpha is not None
        np.testing.assert_array_equal(got.alpha, photo.alpha)
        if suffix != ".webp":
            np.testing.assert_array_equal(got.pixels, photo.pixels)

    @pytest.mark.parametrize("suffix", [".bmp", ".jpg"])
    def test_else_the_photo_is_laid_on_white(self, tmp_path: Path, suffix: str) -> None:
        alpha = np.zeros((16, 16), np.uint8)
        alpha[:8], alpha[8:12] = 255, 128
        write_photo(tmp_path / f"a{suffix}", Photo(np.zeros((16, 16, 3), np.uint8), alpha))
        got = read_image(tmp_path / f"a{suffix}").astype(int)
        for row, value in ((2, 0), (10, 127), (14, 255)):
            assert np.abs(got[row] - value).max() <= 8

    @given(colour=st.tuples(*[st.integers(0, 255)] * 4))
    def test_white_shows_through_as_pillow_has_it(self, colour: tuple[int, int, int, int]) -> None:
        image = Image.new("RGBA", (1, 1), colour)
        expected = Image.alpha_composite(Image.new("RGBA", (1, 1), "white"), image).convert("RGB")
        assert np.abs(to_rgb(image).astype(int) - np.asarray(expected)).max() <= 1

    def test_transparent_palette_and_keys(self) -> None:
        palette = Image.new("P", (2, 1))
        palette.putpalette([10, 20, 30, 40, 50, 60])
        palette.putpixel((1, 0), 1)
        keys: list[tuple[Image.Image, object]] = [
            (palette, 1),
            (palette, b"\xff\x00"),
            (palette.convert("RGB"), (40, 50, 60)),
        ]
        for image, key in keys:
            photo = read_photo(encoded(image, "PNG", transparency=key))
            assert photo.alpha is not None
            assert photo.alpha.tolist() == [[255, 0]]
            assert photo.pixels[0, 0].tolist() == [10, 20, 30]
            assert read_image(encoded(image, "PNG", transparency=key)).tolist() == [
                [[10, 20, 30], [255, 255, 255]]
            ]

    def test_transparent_key_of_16_bit_grey(self) -> None:
        stored = encoded(Image.fromarray(np.array([[0, 1, 256]], np.uint16)), "PNG", transparency=1)
        photo = read_photo(stored)
        assert photo.alpha is not None
        assert photo.alpha.tolist() == [[255, 0, 255]]

    def test_no_alpha_is_none(self) -> None:
        assert read_photo(encoded(Image.new("RGB", (2, 2)), "PNG")).alpha is None


class TestMetadata:
    def exif(self, orientation: int = 6) -> Image.Exif:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        exif[ExifTags.Base.Make] = "Maker"
        exif[ExifTags.IFD.Exif] = {ExifTags.Base.ISOSpeedRatings: 400, ExifTags.Base.ExifImageWidth: 3}
        exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
        return exif

    @pytest.mark.parametrize("orientation", sorted(UPRIGHT))
    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_orientation_is_honoured(self, orientation: int, format: str) -> None:
        stored = np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3, 1), 3, 2)
        stored = np.dstack([stored, stored[..., 0] + 100])
        photo = read_photo(encoded(Image.fromarray(stored), format, exif=self.exif(orientation).tobytes()))
        assert photo.alpha is not None
        assert photo.pixels[..., 0].tolist() == UPRIGHT[orientation]
        assert (photo.alpha - np.uint8(100)).tolist() == UPRIGHT[orientation]

    @pytest.mark.parametrize("orientation", [1, 3, 6])
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_size_is_that_of_the_upright_image(self, tmp_path: Path, orientation: int, format: str) -> None:
        path = tmp_path / "a"
        path.write_bytes(
            encoded(Image.new("RGB", (3, 2)), format, exif=self.exif(orientation).tobytes()).read()
        )
        assert image_size(path) == read_image(path).shape[:2] == ((3, 2) if orientation == 6 else (2, 3))

    @pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
    def test_exif_and_profile_survive_from_any_format_to_any(
        self, tmp_path: Path, source: str, suffix: str
    ) -> None:
        stored = encoded(Image.fromarray(gradient()), source, exif=self.exif().tobytes(), icc_profile=SRGB)
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
        stored = encoded(Image.fromarray(gradient()), "PNG", exif=self.exif(1).tobytes(), icc_profile=SRGB)
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
        exif = self.exif(1)
        exif[ExifTags.Base.ImageDescription] = "x" * 70_000
        photo = read_photo(encoded(Image.fromarray(gradient()), "PNG", exif=exif))
        assert len(photo.exif) > 70_000
        write_photo(tmp_path / "a.jpg", photo)
        assert read_photo(tmp_path / "a.jpg").exif == b""


class TestErrors:
    def message(self, source: Path | io.BytesIO) -> str:
        with pytest.raises(ImageError) as caught:
            read_image(source)
        assert isinstance(caught.value, UserError)
        text = str(caught.value)
        assert "\n" not in text
        return text

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
    def test_truncated(self, tmp_path: Path, format: str, capfd: pytest.CaptureFixture[str]) -> None:
        data = encoded(Image.fromarray(noise(64, 64, 3)), format).getvalue()
        (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
        assert "a.png: cannot be decoded (" in self.message(tmp_path / "a.png")
        assert capfd.readouterr() == ("", "")

    def test_what_pillow_logs_is_not_printed(self) -> None:
        tiff = bytearray(encoded(Image.new("RGB", (4, 4)), "TIFF").getvalue())
        samples = struct.pack("<HHIHH", 277, 3, 1, 3, 0)
        tiff[tiff.index(samples) + 8] = 200
        script = "import io, sys, mirl_sparse.photos.images as i\ntry: i.read_image(sys.stdin.buffer)\nexcept i.ImageError: pass"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, input=bytes(tiff), capture_output=True, env=environment, check=True)
        assert done.stderr == b""

    def test_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_text("hello\n")
        assert self.message(tmp_path / "a.png").endswith(
            "a.png: not an image in a known format (PNG, JPEG, WebP, TIFF, BMP)"
        )

    def test_postscript_is_not_run(self) -> None:
        assert "not an image" in self.message(
            io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
        )

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").touch()
        assert self.message(tmp_path / "a.png").endswith("a.png: is empty; expected an image")
        assert self.message(io.BytesIO()) == "standard input: is empty; expected an image"

    def test_missing_folder_and_loop(self, tmp_path: Path) -> None:
        assert self.message(tmp_path / "a.png").endswith("a.png: no such file")
        assert "cannot be read (Is a directory)" in self.message(tmp_path)
        (tmp_path / "loop.png").symlink_to("loop.png")
        assert "cannot be read (" in self.message(tmp_path / "loop.png")

    def test_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(self: Path, mode: str) -> None:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "open", denied)  # a mode would not stop root
        assert self.message(tmp_path / "a.png").endswith("a.png: cannot be read (Permission denied)")

    def test_decompression_bomb(self) -> None:
        header = struct.pack(
            "<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0
        )
        assert "has more than 178,956,970 pixels; split it first" in self.message(
            io.BytesIO(header + bytes(64))
        )

    def test_several_frames(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (2, 2), c) for c in ("red", "blue")]
        for format in ("TIFF", "PNG", "WEBP", "GIF"):
            stored = encoded(frames[0], format, save_all=True, append_images=frames[1:])
            assert "holds 2 frames" in self.message(stored)
            (tmp_path / "a").write_bytes(stored.getvalue())
            with pytest.raises(ImageError, match="holds 2 frames"):
                image_size(tmp_path / "a")

    def test_phone_jpeg_with_a_second_picture_is_one_photo(self) -> None:
        frames = [Image.fromarray(noise(16, 16, 3, seed=s)) for s in (0, 1)]
        stored = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
        alone = encoded(frames[0], "JPEG")
        np.testing.assert_array_equal(read_image(stored), read_image(alone))

    def test_a_name_of_several_lines_or_no_utf8(self, tmp_path: Path) -> None:
        self.message(tmp_path / "a\nb.png")
        self.message(tmp_path / "a\udcff.png").encode()  # the name can be printed

    @settings(max_examples=150)
    @given(
        format=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP"]),
        changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8),
    )
    def test_damaged_files_are_read_or_refused(self, format: str, changes: list[tuple[int, int]]) -> None:
        exif = TestMetadata().exif().tobytes()
        data = bytearray(encoded(Image.fromarray(noise(8, 8, 4)[..., :3]), format, exif=exif).getvalue())
        for place, value in changes:
            data[place % len(data)] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert read_image(io.BytesIO(data)).shape[2] == 3
            except ImageError as error:
                assert "\n" not in str(error)


class TestWriting:
    def test_unknown_suffix(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"suffix '.gif' is unknown; expected one of .bmp, .jpeg"):
            write_image(tmp_path / "a.gif", noise(2, 2, 3))
        assert only(tmp_path) == []

    def test_folder_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ImageError, match=r"a.png: cannot be written \("):
            write_image(tmp_path / "file" / "a.png", noise(2, 2, 3))
        with pytest.raises(ImageError, match=r"a.png: cannot be written \("):
            write_image(tmp_path / "file" / "deep" / "a.png", noise(2, 2, 3))

    def test_target_is_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").mkdir()
        with pytest.raises(ImageError, match=r"cannot be written \(Is a directory\)"):
            write_image(tmp_path / "a.png", noise(2, 2, 3))
        assert only(tmp_path) == []

    def test_a_link_stays_one(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        write_image(tmp_path / "disk/b.png", noise(3, 3, 3))
        (tmp_path / "a.png").symlink_to("disk/b.png")
        write_image(tmp_path / "a.png", noise(2, 2, 3))
        assert (tmp_path / "a.png").is_symlink()
        np.testing.assert_array_equal(read_image(tmp_path / "disk/b.png"), noise(2, 2, 3))

    def test_what_is_no_file_is_written_to(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit((tmp_path / "pipe.png").read_bytes)
            write_image(tmp_path / "pipe.png", noise(2, 2, 3))
        np.testing.assert_array_equal(read_image(io.BytesIO(read.result())), noise(2, 2, 3))
        assert (tmp_path / "pipe.png").is_fifo()
        write_whole(Path(os.devnull), b"nothing")
        assert Path(os.devnull).is_char_device()

    def test_full_disk_leaves_the_old_file_and_no_part(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_image(tmp_path / "a.png", noise(2, 2, 3))

        def full(self: Path, data: bytes) -> int:
            with self.open("wb") as stream:
                stream.write(data[:10])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(ImageError, match=r"a.png: cannot be written \(No space left on device\)"):
            write_image(tmp_path / "a.png", noise(9, 9, 3))
        assert only(tmp_path) == ["a.png"]
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), noise(2, 2, 3))

    def test_interrupt_leaves_no_part(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(self: Path, target: Path) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_image(tmp_path / "a.png", noise(2, 2, 3))
        assert only(tmp_path) == []

    def test_too_large_for_the_format(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"a.webp: 16384x1 pixels are too many; WEBP holds 16383 a side"):
            write_image(tmp_path / "a.webp", np.zeros((1, 16_384, 3), np.uint8))
        with pytest.raises(ImageError, match=r"a.jpg: 1x65501 pixels are too many; JPEG holds 65500 a side"):
            write_image(tmp_path / "a.jpg", np.zeros((65_501, 1, 3), np.uint8))
        write_image(tmp_path / "a.png", np.zeros((65_501, 1, 3), np.uint8))
        (tmp_path / "a.png").unlink()
        assert only(tmp_path) == []

    def test_the_longest_name(self, tmp_path: Path) -> None:
        write_image(tmp_path / ("x" * 251 + ".png"), noise(2, 2, 3))
        assert len(only(tmp_path)) == 1

    def test_the_usual_permissions(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        write_image(tmp_path / "a.png", noise(2, 2, 3))
        assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_closed_pipe(self) -> None:
        class Closed(io.BytesIO):
            def write(self, data: object) -> int:
                raise BrokenPipeError(32, "Broken pipe")

        with pytest.raises(ImageError, match=r"standard output: cannot be written \(Broken pipe\)"):
            write_photo(Closed(), Photo(noise(2, 2, 3)))
