"""Take PNG files apart into chunks, and write what Pillow cannot: 16 bits a channel, and given chunks.

The source is the PNG specification, third edition (W3C, 2025).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"tIME")
_COLOUR_SPACE = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
_XMP = b"XML:com.adobe.xmp\0"
_EXIF = b"Raw profile type "  # ImageMagick's way to store EXIF, IPTC and XMP
_LARGEST_PROFILE = 1 << 24  # bytes; a crafted file may inflate to any size
_HEADER_END = len(SIGNATURE) + 25  # behind IHDR
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels


class _Chunk(NamedTuple):
    kind: bytes
    data: memoryview
    whole: memoryview  # with length, kind and checksum


class PngExtras(NamedTuple):
    """Hold what a PNG file says beside its pixels.

    Attributes:
        text: Its chunks of text and time, whole, but for XMP and EXIF.
        colour_space: Its chunks of gamma, primaries and colour space, whole; a profile is in ``icc``.
        icc: Its colour profile; empty if there is none, or one of more than 16 MiB.
        xmp: Its XMP packet; empty if there is none.
    """

    text: tuple[bytes, ...] = ()
    colour_space: tuple[bytes, ...] = ()
    icc: bytes = b""
    xmp: bytes = b""


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield the chunks of a file; the last one may be cut short."""
    view, at = memoryview(data), len(SIGNATURE)
    while at < len(data):
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        yield _Chunk(bytes(view[at + 4 : at + 8]), view[at + 8 : end - 4], view[at:end])
        at = end


def split_extras(data: bytes) -> tuple[bytes, PngExtras]:
    """Return a PNG file without its text and profile, which Pillow refuses where they are large, and these.

    Args:
        data: A file that begins with `SIGNATURE`.
    """
    rest, text, colour_space, icc, xmp = [SIGNATURE], [], [], b"", b""
    for chunk in _chunks(data):
        if chunk.kind in _TEXT:
            if bytes(chunk.data[: len(_XMP)]) == _XMP:
                xmp = _xmp(chunk)
            elif bytes(chunk.data[: len(_EXIF)]) == _EXIF:
                rest.append(bytes(chunk.whole))  # Pillow reads it
            else:
                text.append(bytes(chunk.whole))
        elif chunk.kind == b"iCCP":
            icc = _inflated(bytes(chunk.data).partition(b"\0")[2][1:])
        else:
            rest.append(bytes(chunk.whole))
            if chunk.kind in _COLOUR_SPACE:
                colour_space.append(bytes(chunk.whole))
    return b"".join(rest), PngExtras(tuple(text), tuple(colour_space), icc, xmp)


def _inflated(data: bytes, largest: int = _LARGEST_PROFILE) -> bytes:
    """Return inflated data; empty if they are damaged, or more than ``largest`` bytes."""
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, largest)
    except zlib.error:
        return b""
    return inflated if inflater.eof else b""


def _xmp(chunk: _Chunk) -> bytes:
    data = bytes(chunk.data)
    if chunk.kind != b"iTXt":
        return b""
    compressed, method = data[len(_XMP) : len(_XMP) + 2].ljust(2, b"\0")
    text = data[len(_XMP) + 2 :].partition(b"\0")[2].partition(b"\0")[2]  # behind language and keyword
    return _inflated(text) if compressed and method == 0 else text


def with_chunks(data: bytes, chunks: Iterable[bytes]) -> bytes:
    """Return a PNG file with more chunks, whole ones, behind its header."""
    return data[:_HEADER_END] + b"".join(chunks) + data[_HEADER_END:]


def encode_sixteen_bits(pixels: NDArray[np.uint16], chunks: Iterable[bytes] = ()) -> bytes:
    """Return a PNG file of 16 bits a channel.

    Args:
        pixels: (H, W, C): grey, grey and alpha, RGB, or RGB and alpha.
        chunks: Whole chunks to put behind the header.
    """
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").view(np.uint8).reshape(height, -1)
    # Each byte less the one of the pixel before it (filter "Sub").
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 1
    filtered[:, 1 : 1 + 2 * channels] = rows[:, : 2 * channels]
    np.subtract(rows[:, 2 * channels :], rows[:, : -2 * channels], out=filtered[:, 1 + 2 * channels :])
    sizes = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = sizes + bytes((16, _COLOUR_TYPES[channels], 0, 0, 0))
    packed = zlib.compress(filtered.data, 6)
    whole = SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return with_chunks(whole, chunks)


def xmp_chunk(packet: bytes) -> bytes:
    """Return the whole chunk that holds an XMP packet."""
    return chunk(b"iTXt", _XMP + b"\0\0\0\0" + packet)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a whole chunk: length, kind, data, checksum."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
