"""Make colour profiles of what a file says of its colours, and read the curves of grey profiles.

The sources are ICC.1:2001-04 and ICC.1:2022 (profiles of versions 2 and 4), the PNG specification, third
edition (W3C, 2025), and ITU-T H.273.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mirl_sparse.photos.png import chunk

_SRGB = ((0.3127, 0.3290), (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))  # x and y of white, red, green, blue
# By the codes of ITU-T H.273, which cICP uses.
_PRIMARIES = {
    1: _SRGB,
    9: ((0.3127, 0.3290), (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
    12: ((0.3127, 0.3290), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}
_TRANSFERS = {1: 2.4, 4: 2.2, 6: 2.4, 8: 1.0, 13: None, 14: 2.4, 15: 2.4}  # exponents; None is sRGB's curve
_UNSPECIFIED = 2
_VIDEO = (1, 6, 14, 15)  # curves of video cameras; programs show photos that name them as sRGB
_PARAMETERS = {0: "g", 1: "gab", 2: "gabc", 3: "gabcd", 4: "gabcdef"}  # of parametric curves, by their kind
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_NEAR = 0.01  # of gamma and of chromaticities: as good as sRGB
_CURVE_POINTS = 1024


def profile_of_chunks(chunks: Iterable[bytes]) -> bytes:
    """Return the colour profile that a PNG's chunks describe; empty for sRGB, and where nothing is said.

    Of several chunks the first of cICP, sRGB, and gAMA with cHRM counts, as the specification says.

    Args:
        chunks: Whole chunks of the kinds cICP, sRGB, gAMA and cHRM.
    """
    said = {whole[4:8]: whole[8:-4] for whole in chunks}
    primaries: tuple[tuple[float, float], ...] = _SRGB
    exponent: float | None = None
    if len(code := said.get(b"cICP", b"")) == 4 and code[0] in _PRIMARIES and code[1] in _TRANSFERS:
        primaries, exponent = _PRIMARIES[code[0]], _TRANSFERS[code[1]]
    elif b"sRGB" in said:
        return b""
    else:
        if len(stored := said.get(b"cHRM", b"")) == 32:
            numbers = [n / 100_000 for n in struct.unpack(">8I", stored)]
            primaries = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        if len(stored := said.get(b"gAMA", b"")) == 4 and (gamma := int.from_bytes(stored, "big")):
            exponent = 100_000 / gamma
    if exponent is not None and abs(exponent - 2.2) < _NEAR:
        exponent = None  # what programs write that mean sRGB
    if exponent is None and np.abs(np.subtract(primaries, _SRGB)).max() < _NEAR:
        return b""
    return _profile(primaries, exponent)


def colour_chunk(data: bytes) -> tuple[bytes, ...]:
    """Return the PNG chunk (cICP) for the codes of colours in a HEIF or AVIF file; none if it has no codes.

    Args:
        data: The file.
    """
    at = data.find(b"colrnclx") + 8
    if not 8 <= at < len(data) - 6:
        return ()
    primaries, transfer = data[at + 1], data[at + 3]
    if _UNSPECIFIED in (primaries, transfer):
        return ()
    return (chunk(b"cICP", bytes((primaries, 13 if transfer in _VIDEO else transfer, 0, 1))),)


def grey_levels(profile: bytes, count: int) -> NDArray[np.float64] | None:
    """Return the values 0..1 of sRGB for evenly spaced levels 0..1 of a grey profile.

    Args:
        profile: A colour profile.
        count: Number of levels.

    Returns:
        (count,), or None if the profile is not for grey, is broken, or has no curve.
    """
    if profile[16:20] != b"GRAY":
        return None
    try:
        light = _light(_tag(profile, b"kTRC"), np.linspace(0, 1, count))
    except (struct.error, ValueError, ZeroDivisionError, FloatingPointError):
        return None
    if light is None or not np.isfinite(light).all():
        return None
    if profile[20:24] == b"Lab ":  # the curve gives the lightness of CIE Lab
        light = np.where(light > 0.08, ((light + 0.16) / 1.16) ** 3, light / 9.033)
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _tag(profile: bytes, name: bytes) -> bytes:
    """Return the content of a profile's tag; empty if it has none of the name."""
    (count,) = struct.unpack_from(">I", profile, 128)
    for at in range(132, min(132 + 12 * count, len(profile) - 11), 12):
        if profile[at : at + 4] == name:
            offset, size = struct.unpack_from(">II", profile, at + 4)
            return profile[offset : offset + size]
    return b""


def _light(curve: bytes, stored: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return what a curve, or a parametric curve, makes of stored values; None for other content."""
    if curve[:4] == b"curv":
        (count,) = struct.unpack_from(">I", curve, 8)
        if count < 2:
            return stored ** (struct.unpack_from(">H", curve, 12)[0] / 256) if count else stored
        points = np.frombuffer(curve, ">u2", count, 12) / 65_535
        return np.interp(stored, np.linspace(0, 1, count), points)
    if curve[:4] != b"para":
        return None
    kind = int.from_bytes(curve[8:10], "big")
    if kind not in _PARAMETERS:
        return None
    numbers = struct.unpack_from(f">{len(_PARAMETERS[kind])}i", curve, 12)
    values = dict(zip(_PARAMETERS[kind], (n / 65_536 for n in numbers), strict=True))
    g, a, b, c, d, e, f = (values.get(name, 0.0) for name in "gabcdef")
    if kind == 0:
        a = 1.0
    if kind == 2:  # c lies below and above
        e = f = c
    slope = c if kind > 2 else 0.0
    start = d if kind > 2 else (-b / a)
    return np.where(stored >= start, (a * stored + b).clip(0) ** g + e, slope * stored + f)


def _profile(primaries: tuple[tuple[float, float], ...], exponent: float | None) -> bytes:
    """Return a profile of version 2; empty if the primaries span no colours."""
    white, *colours = (_xyz(x, y) for x, y in primaries)
    try:
        columns = np.stack(colours, 1)
        columns = columns * np.linalg.solve(columns, white)
        matrix = _adaptation(white) @ columns
    except np.linalg.LinAlgError:
        return b""
    if not np.isfinite(matrix).all() or np.abs(matrix).max() >= 2:
        return b""
    text = b"as the image says"
    description = b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(1 + 4 + 4 + 2 + 1 + 67)
    tags = {
        b"desc": description,
        b"cprt": b"text" + bytes(4) + b"public domain\0",
        b"wtpt": _xyz_tag(_D50),
        **{name: _xyz_tag(matrix[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve_tag(exponent)),
    }
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I", at + len(body)) + bytes(4) + b"\x02\x40\0\0mntrRGB XYZ " + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + _numbers(_D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _xyz(x: float, y: float) -> NDArray[np.float64]:
    return np.array([x, y, 1 - x - y]) / y if y else np.full(3, np.inf)


def _adaptation(white: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix that adapts colours under a white to D50, by Bradford's method."""
    scale = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    adapted: NDArray[np.float64] = np.linalg.solve(_BRADFORD, scale[:, None] * _BRADFORD)
    return adapted


def _numbers(values: NDArray[np.float64]) -> bytes:
    return struct.pack(">3i", *(round(float(v) * 65_536) for v in values))


def _xyz_tag(values: NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + _numbers(values)


def _curve_tag(exponent: float | None) -> bytes:
    stored = np.linspace(0, 1, _CURVE_POINTS)
    if exponent is None:
        linear = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    else:
        linear = stored**exponent
    points = np.rint(linear * 65_535).astype(">u2").tobytes()
    return b"curv" + bytes(4) + struct.pack(">I", _CURVE_POINTS) + points
