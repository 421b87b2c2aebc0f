"""Formats that a plugin of Pillow reads, and files of formats that nothing here reads."""

from importlib import import_module
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, gradient, list_jobs
from PIL import Image

from mirl_sparse.photos import ImageError, Jobs, read_photo
from mirl_sparse.photos.formats import readable, readable_suffixes


@pytest.mark.parametrize(
    ("module", "format", "options", "tolerance"),
    [
        ("pillow_heif", "HEIF", {"quality": 100}, 12),
        ("pillow_jxl", "JXL", {"lossless": True}, 0),
    ],
)
def test_formats_of_plugins_are_read(module, format, options, tolerance):
    pytest.importorskip(module)
    readable()  # registers them
    stored = encoded(Image.fromarray(gradient()), format, **options)
    np.testing.assert_allclose(read_photo(stored).pixels.astype(int), gradient(), atol=tolerance)


@pytest.mark.parametrize(
    ("data", "name"), [(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"), (b"\xff\n\xfa\x7f", "JPEG XL")]
)
def test_a_format_whose_plugin_is_missing_is_named(monkeypatch, data, name):
    monkeypatch.setattr("mirl_sparse.photos.formats._installed", lambda: [])
    readable.cache_clear()
    try:
        with pytest.raises(ImageError, match=rf"is {name}; to read it, run pip install '\.\[formats\]'"):
            read_photo(BytesIO(data))
    finally:
        readable.cache_clear()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "begins like HEIC, but pillow_heif cannot read it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run git lfs pull"),
        (b"<html><body>404 Not Found", "a web page.*download it again"),
        (b"FUJIFILMCCD-RAW 0201", "is a camera raw; develop it first"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "is a camera raw; develop it first"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "is a video .*save one of its frames"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "begins like AVIF, but cannot be read"),
        (b"8BPS\0\1" + bytes(20), r"is a document of Photoshop \(PSD\), .*convert it to PNG or TIFF"),
        (b"qoif" + bytes(20), "is QOI, "),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "is Radiance HDR, "),
        (b"v/1\1\2\0\0\0", "is OpenEXR, "),
        (b"\xff\xd8\xff\xe8\0\4ab\xff\xf7\0\x0b\x08" + bytes(9), "is JPEG-LS, "),
        (b"\xff\xd8\xff\xc1\0\x0b\x0c" + bytes(9), "is JPEG of 12 bits, "),
        (b"\xff\xd8\xff\xc3\0\x0b\x10" + bytes(9), "is lossless JPEG of 16 bits, "),
    ],
)
def test_files_that_hold_no_image_are_named(data, message):
    pytest.importorskip("pillow_heif")
    with pytest.raises(ImageError, match=message):
        read_photo(BytesIO(data))


def test_a_folder_gives_every_photo_that_can_be_read(tmp_path):
    for name in ("a.png", "b.gif", "c.avif", "d.txt", "e.ppm"):
        Path(tmp_path, name).touch()
    jobs = list_jobs([str(tmp_path)], str(tmp_path / "out"))
    assert [job.source.name for job in jobs] == ["a.png", "b.gif", "c.avif", "e.ppm"]
    assert [job.target.name for job in jobs] == ["a.png", "b.png", "c.png", "e.png"]
    assert ".heic" not in readable_suffixes() or import_module("pillow_heif")


def test_files_that_a_folder_leaves_out_are_counted_by_kind(tmp_path, monkeypatch):
    monkeypatch.setattr("mirl_sparse.photos.formats._installed", lambda: [])
    readable_suffixes.cache_clear()
    (tmp_path / "picture").write_bytes(encoded(Image.fromarray(gradient()), "PNG").getvalue())
    for name in ("a.PNG", "b.jfif", "c.txt", "d.TXT", "e.heic", "noext", ".hidden", "._a.png", "f.mov"):
        (tmp_path / name).touch()
    try:
        for inputs in ([str(tmp_path)], [str(tmp_path / "*")]):
            jobs = Jobs(inputs, str(tmp_path / "out"))
            assert [job.target.name for job in jobs] == ["a.PNG", "b.jfif", "picture.png"]
            assert jobs.left_out == {
                ".txt": 2,
                ".heic (to read them, run pip install '.[formats]' in the clone of mirl-sparse)": 1,
                "without a suffix": 1,
                ".mov": 1,
            }
    finally:
        readable_suffixes.cache_clear()


def test_a_bitmap_without_its_file_header_is_read():
    stored = encoded(Image.fromarray(gradient()), "DIB")
    np.testing.assert_array_equal(read_photo(stored).pixels, gradient())
