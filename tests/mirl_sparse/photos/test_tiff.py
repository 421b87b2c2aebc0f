"""What belongs to a TIFF is kept, whoever decodes its pixels."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import tifffile
from pictures import SRGB, gradient
from PIL import ExifTags, Image

from mirl_sparse.photos import read_photo, write_photo

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
        assert (IPTC in again.iptc) == (iptc is not None and format != "PNG")


def test_resolution_in_centimetres_is_converted():
    stream = BytesIO()
    tifffile.imwrite(
        stream, (DEEP / 65_535).astype(np.float32), photometric="rgb", resolution=(100, 50), resolutionunit=3
    )
    stream.seek(0)
    assert read_photo(stream).dpi == pytest.approx((254, 127))
