"""What comes back for photos, for what is none, and for wrong parameters."""

import asyncio
import struct
import warnings
import zlib
from io import BytesIO
from urllib.parse import unquote

import numpy as np
import pytest
from asgi import Answer, ask, parts
from PIL import Image
from preloaded import mirl
from services import LOOPBACK, encoded

from mirl_sparse.photos.formats import FORMATS
from mirl_sparse.service import Limits, Service, make_app
from mirl_sparse.service.application import Options
from mirl_sparse.service.work import thread_warnings

FORM = {"Content-Type": "multipart/form-data; boundary=line"}


def form(data, name="file", filename="photo.png"):
    head = f'--line\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return head.encode() + data + b"\r\n--line--\r\n"


def post(app, body, query="", **headers):
    return asyncio.run(ask(app, f"/restore{query}", body, headers))


def with_alpha():
    stream = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010F] = 6, "a camera"  # turned, and its maker


@pytest.mark.parametrize(
    ("data", "suffix", "query", "arguments"),
    [
        (encoded(), "png", "", ()),
        (encoded(format="JPEG", exif=EXIF, dpi=(300, 300)), "jpg", "", ()),
        (encoded(format="JPEG", exif=EXIF), "jpg", "?metadata=false", ("--no-metadata",)),
        (encoded(format="WEBP", lossless=True), "webp", "?strength=0.3", ("--strength", "0.3")),
        (encoded(format="TIFF"), "tif", "", ()),
        (encoded(format="BMP"), "png", "?format=png", ("--format", "png")),
        (with_alpha(), "png", "?format=jpeg", ("--format", "jpeg")),
        (b"P6 2 1 65535\n" + bytes(range(12)), "ppm", "", ()),
    ],
)
def test_answers_are_the_bytes_that_the_command_writes(app, tmp_path, data, suffix, query, arguments):
    source = tmp_path / f"photo.{suffix}"
    source.write_bytes(data)
    done = mirl("restore", source, "-o", f"{tmp_path}/out/", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "out").iterdir()
    for body, headers in ((data, {}), (form(data), FORM)):
        answer = asyncio.run(ask(app, f"/restore{query}", body, headers))
        assert answer.status == 200, answer.body
        assert answer.body == result.read_bytes()
        assert int(answer.headers["content-length"]) == len(answer.body)
        assert answer.headers["content-type"] == Image.open(result).get_format_mimetype()


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("größe.jpg", "größe_restored.png"),
        ("C:\\photos\\a.PNG", "a_restored.PNG"),
        ("../../etc/passwd", "passwd_restored.png"),
        ("", "photo_restored.png"),
        ("a;b%.png", "a;b%_restored.png"),
    ],
)
def test_results_are_named_after_the_photo_and_never_lead_elsewhere(app, filename, expected):
    answer = asyncio.run(ask(app, "/restore", form(encoded(), filename=filename), FORM))
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith('attachment; filename="')
    assert unquote(disposition.partition("filename*=UTF-8''")[2]) == expected
    assert disposition.isascii()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side):
    """Return a small file that says and holds a huge image."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 + 3 * side) * 4, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "is empty"),
        (b"this is text", 415, "not an image in a known format"),
        (b"%PDF-1.7", 415, "is PDF"),
        (b"GIF89a", 415, "not an image"),
        (encoded(format="JPEG")[:300], 400, "cannot be decoded"),
        (encoded()[:60], 400, "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), 415, "not an image"),
        (b"P6 2 2 65535\nab", 400, "cut short"),
        (b"P7\nWIDTH 0\nHEIGHT 0\nDEPTH 3\nMAXVAL 255\nENDHDR\n", 400, "no pixels"),
        (b"II*\0\xff\xff\xff\xff", 415, "not an image"),
        (b"\xff\n" + bytes(20), 400, "cannot"),
    ],
)
def test_what_is_no_photo_or_a_damaged_one_is_refused_in_one_line(app, data, status, words):
    answer = post(app, data)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert words in answer.detail
    assert "\n" not in answer.detail


@pytest.mark.parametrize(
    "data",
    [
        png_bomb(60_000),
        b"P6 90000 90000 65535\n",
        b"PF 90000 90000 -1\n",
        b"P7\nWIDTH 90000\nHEIGHT 90000\nDEPTH 3\nMAXVAL 255\nENDHDR\n",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0),
        b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + encoded(format="GIF")[10:],
        # JPEG XL: not small, 30 bits for the height, and as wide as high
        b"\xff\n" + (0 | 3 << 1 | 99_999 << 3 | 1 << 33).to_bytes(8, "little") + bytes(20),
    ],
)
def test_too_many_pixels_are_refused_before_they_are_decoded(app, data, monkeypatch):
    monkeypatch.setattr("mirl_sparse.service.work.read_photo", None)  # nothing is decoded
    answer = post(app, data)
    assert answer.status == 413
    assert " pixels" in answer.detail


def test_a_jpeg_2000_whose_codestream_is_larger_than_it_says_is_refused(app, monkeypatch):
    monkeypatch.setattr("mirl_sparse.service.work.read_photo", None)
    data = bytearray(encoded(format="JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51")
    data[at + 8 : at + 16] = struct.pack(">II", 60_000, 60_000)
    assert post(app, bytes(data)).status == 413


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?strength=2", "strength: Input should be less than or equal to 1"),
        ("?strength=-0.1", "strength: "),
        ("?strength=nan", "strength: "),
        ("?strength=much", "strength: "),
        ("?format=gif", "format: Input should be 'png'"),
        ("?metadata=perhaps", "metadata: "),
        ("?strenght=1", "strenght: Extra inputs are not permitted"),
    ],
)
def test_wrong_parameters_are_refused_by_name(app, query, words):
    answer = post(app, encoded(), query)
    assert answer.status == 422
    assert answer.detail.startswith(words)


def test_each_format_of_the_parameter_is_one_that_is_written():
    (names, _) = Options.model_fields["format"].annotation.__args__
    assert {FORMATS[f".{name}"] for name in names.__args__} == set(FORMATS.values())


def test_a_result_that_does_not_fit_its_format_is_refused(app):
    answer = post(app, encoded(1, 16_400), "?format=webp")
    assert answer.status == 422
    assert "WEBP holds 16383 a side" in answer.detail


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (form(encoded(), name="photo"), "no file 'file'"),
        (b"--line\r\n", "no file 'file'"),
        (b'--line\r\nContent-Disposition: form-data; name="strength"\r\n\r\n1\r\n--line--\r\n', "options in"),
        (b"--line\r\n\r\nab\r\n--line--\r\n", "cannot be read"),
        (form(encoded())[:-10] + form(encoded()), "Too many files"),
    ],
)
def test_forms_without_one_photo_are_refused(app, body, words):
    answer = asyncio.run(ask(app, "/restore", body, FORM))
    assert answer.status == 400
    assert words in answer.detail


def test_a_form_without_a_boundary_is_refused(app):
    answer = post(app, form(encoded()), **{"Content-Type": "multipart/form-data"})
    assert answer.status == 400
    assert "boundary" in answer.detail


def test_what_the_command_warns_of_is_told_in_a_header(restorer):
    service = Service([restorer], Limits())
    restorer.max_memory = 50_000_000
    with thread_warnings():
        answer = post(make_app(service, LOOPBACK), encoded(400, 560))
    assert answer.status == 200
    assert "restored in tiles of" in answer.headers["x-mirl-sparse-note"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # and nothing is changed for others
        with pytest.raises(UserWarning):
            warnings.warn("still an error", stacklevel=1)


def test_too_little_memory_is_no_fault_of_the_photo(restorer):
    app = make_app(Service([restorer], Limits()), LOOPBACK)
    restorer.max_memory = 1000
    answer = post(app, encoded(200, 200))
    assert answer.status == 503
    assert "200x200 pixels could not be restored (even tiles of" in answer.detail
    assert answer.headers["retry-after"] == "5"


def test_a_bug_is_told_without_its_inside(app, monkeypatch):
    monkeypatch.setattr("mirl_sparse.service.work.write_photo", lambda *_: 1 / 0)

    answer = Answer()
    with pytest.raises(ZeroDivisionError):  # for the server's log
        asyncio.run(ask(app, "/restore", encoded(), answer=answer))
    assert answer.status == 500
    assert answer.detail == "this is a bug of the service; its log says more"


def test_a_body_may_come_in_any_parts(app):
    data = encoded()
    whole = post(app, data)
    for body, headers in ((data, {}), (form(data), FORM)):
        single = parts(*(body[i : i + 1] for i in range(len(body))))
        assert asyncio.run(ask(app, "/restore", single, headers)).body == whole.body


@pytest.mark.parametrize("seed", range(20))
def test_damaged_photos_never_are_a_bug(app, seed):
    random = np.random.default_rng(seed)
    format = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "AVIF")[seed % 8]
    data = bytearray(encoded(format=format))
    for at in random.integers(0, len(data), 8):
        data[at] = random.integers(0, 256)
    assert post(app, bytes(data)).status in (200, 400, 413, 415)
