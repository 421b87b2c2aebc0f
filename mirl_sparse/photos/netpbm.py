"""Read the Netpbm files that Pillow does not know, or cuts to 8 bits: PFM, PAM, and PPM of more than 8 bits.

The sources are the manuals of Netpbm (ppm, pam) and pfm.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mirl_sparse.photos.photo import ImageError, Photo
from mirl_sparse.photos.scaling import full_scale, scaled

_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PPM = re.compile(rb"P([36])%b(\d{1,9})%b(\d{1,9})%b(\d{1,5})\s" % (_GAP, _GAP, _GAP))
_PFM = re.compile(rb"P([Ff])\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?[0-9.eE+-]+)\s")
_PAM = re.compile(rb"P7\s.{,4096}?\nENDHDR\r?\n", re.DOTALL)
_PAM_FIELD = re.compile(rb"^(WIDTH|HEIGHT|DEPTH|MAXVAL)[ \t]+(\d{1,9})", re.MULTILINE)


def read_netpbm(data: bytes, name: str) -> Photo | None:
    """Return the photo of a PFM, a PAM or a PPM of more than 8 bits; None for all other files.

    Raises:
        ImageError: The file is cut short, or holds what no picture holds.
    """
    if match := _PFM.match(data):
        return _read_pfm(match, data, name)
    if (match := _PPM.match(data)) and int(match[4]) > 255:
        width, height, white = int(match[2]), int(match[3]), int(match[4])
        if match[1] == b"6":
            values = _values(data, match.end(), (height, width, 3), ">u2", name)
        else:
            words = re.sub(rb"#[^\r\n]*", b"", data[match.end() :]).split()
            values = _values(np.array(words, np.uint16).tobytes(), 0, (height, width, 3), "=u2", name)
        return _photo(values, white)
    if match := _PAM.match(data):
        fields = {key: int(value) for key, value in _PAM_FIELD.findall(match[0])}
        width, height, depth, white = (fields.get(k, 0) for k in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
        if not (1 <= depth <= 4 and 1 <= white <= 65_535):
            raise ImageError(
                f"{name}: is a PAM of {depth} channels up to {white}; expected 1 to 4, up to 65535"
            )
        dtype = "u1" if white < 256 else ">u2"
        return _photo(_values(data, match.end(), (height, width, depth), dtype, name), white)
    return None


def netpbm_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) as the header of a PFM, a PAM or a PPM says it; None for all other files."""
    if match := _PFM.match(data) or _PPM.match(data):
        return int(match[3]), int(match[2])
    if match := _PAM.match(data):
        fields = {key: int(value) for key, value in _PAM_FIELD.findall(match[0])}
        return fields.get(b"HEIGHT", 0), fields.get(b"WIDTH", 0)
    return None


def _read_pfm(match: re.Match[bytes], data: bytes, name: str) -> Photo:
    """Return the photo of floats, which lie from the bottom to the top."""
    shape = (int(match[3]), int(match[2]), 3 if match[1] == b"F" else 1)
    dtype = "<f4" if match[4].startswith(b"-") else ">f4"
    values = _values(data, match.end(), shape, dtype, name)[::-1]
    return Photo(_rgb(scaled(values, full_scale(values, name), 65_535)), lossless=True)


def _values(data: bytes, at: int, shape: tuple[int, int, int], dtype: str, name: str) -> NDArray[np.generic]:
    count = shape[0] * shape[1] * shape[2]
    if shape[0] * shape[1] > 2 * (Image.MAX_IMAGE_PIXELS or 0):
        raise Image.DecompressionBombError
    if not count or len(data) - at < count * np.dtype(dtype).itemsize:
        raise ImageError(f"{name}: cannot be decoded (it is cut short, or has no pixels)")
    return np.frombuffer(data, dtype, count, at).reshape(shape)


def _photo(values: NDArray[np.generic], white: int) -> Photo:
    """Return a photo of (H, W, C) whole numbers up to white; two and four channels end with alpha."""
    wide = scaled(values, white, 255 if white < 256 else 65_535)
    has_alpha = wide.shape[2] in (2, 4)
    alpha = np.ascontiguousarray(wide[..., -1]) if has_alpha else None
    return Photo(_rgb(wide[..., :-1] if has_alpha else wide), alpha, lossless=True)


def _rgb(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)
