"""Photos are written whole or not at all, and what is written is read again."""

from __future__ import annotations

import io
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, gradient, noise
from PIL import Image

from mirl_sparse.files import write_whole
from mirl_sparse.photos import (
    FORMATS,
    ImageError,
    Photo,
    read_image,
    read_photo,
    to_rgb,
    write_image,
    write_photo,
)

LOSSLESS = (".png", ".tif", ".tiff", ".bmp")


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
        with pytest.warns(UserWarning, match=r"holds no transparency; the photo is laid on white"):
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
        assert photo.alpha.tolist() == [[65_535, 0, 65_535]]

    @pytest.mark.parametrize("alpha", [0, 100])
    def test_alpha_of_a_bmp_that_is_0_everywhere_is_padding(self, alpha: int) -> None:
        pixels = np.dstack([noise(4, 5, 3), np.full((4, 5), alpha, np.uint8)])
        masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        head = struct.pack("<IiiHHIIiiII", 124, 5, 4, 1, 32, 3, 80, 0, 0, 0, 0) + masks + bytes(68)
        body = pixels[::-1, :, [2, 1, 0, 3]].tobytes()
        stored = io.BytesIO(struct.pack("<2sIHHI", b"BM", 14 + 124 + 80, 0, 0, 14 + 124) + head + body)
        photo = read_photo(stored)
        np.testing.assert_array_equal(photo.pixels, pixels[..., :3])
        assert photo.alpha is None if alpha == 0 else (photo.alpha == alpha).all()

    def test_lossless_webp_keeps_the_colours_of_transparent_pixels(self) -> None:
        stream = io.BytesIO()
        write_photo(stream, Photo(noise(4, 5, 3), np.zeros((4, 5), np.uint8), lossless=True), "WEBP")
        stream.seek(0)
        np.testing.assert_array_equal(read_photo(stream).pixels, noise(4, 5, 3))

    def test_no_alpha_is_none(self) -> None:
        assert read_photo(encoded(Image.new("RGB", (2, 2)), "PNG")).alpha is None


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
