"""Photos are read from any mode and format, and broken files are refused in one line."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pictures import SRGB, encoded, exif, noise
from PIL import ExifTags, Image

from mirl_sparse.errors import UserError
from mirl_sparse.photos import ImageError, image_size, read_image, read_photo, to_rgb


def profile(kind: bytes, space: bytes, connection: bytes, name: bytes, content: bytes) -> bytes:
    """An ICC profile of D50 white and one more tag (ICC.1:2001-04)."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    first = 128 + 4 + 2 * 12
    tags = struct.pack(">I4sII4sII", 2, name, first, len(content), b"wtpt", first + len(content), 20)
    size, version = first + len(content) + 20, 0x02400000
    fields = (size, bytes(4), version, kind, space, connection, bytes(12), b"acsp")
    header = struct.pack(">I4sI4s4s4s12s4s", *fields) + bytes(28) + white
    return header + bytes(128 - len(header)) + tags + content + b"XYZ " + bytes(4) + white


def press(lab: tuple[int, int, int]) -> bytes:
    """The profile of a press whose cyan has the colour ``lab``, and whose magenta and yellow are unseen."""

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
        image.getexif()[ExifTags.Base.Orientation] = orientation
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
        interpretation = 0 if white_is_zero else 1
        entries = {
            256: 4,
            257: 1,
            258: bits,
            259: 1,
            262: interpretation,
            273: 8,
            277: 1,
            278: 1,
            279: len(data),
        }
        folder = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
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
            (np.array([[-0.04, np.nan, 1.0]]), [0, 0, 255]),
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
        # A cyan that is red, by this press; in sRGB (211, 23, 33), by the equations of CIE and IEC 61966-2-1.
        ink, lab = (255, 0, 0, 0), (46, 68, 48)
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
        script = (
            "import sys\n"
            "from mirl_sparse.photos import ImageError, read_image\n"
            "try: read_image(sys.stdin.buffer)\n"
            "except ImageError: pass"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, input=bytes(tiff), capture_output=True, env=environment, check=True)
        assert done.stderr == b""

    def test_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_text("hello\n")
        assert self.message(tmp_path / "a.png").endswith(
            "a.png: not an image in a known format (PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000, AVIF)"
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
        tags = exif().tobytes()
        data = bytearray(encoded(Image.fromarray(noise(8, 8, 4)[..., :3]), format, exif=tags).getvalue())
        for place, value in changes:
            data[place % len(data)] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert read_image(io.BytesIO(data)).shape[2] == 3
            except ImageError as error:
                assert "\n" not in str(error)
