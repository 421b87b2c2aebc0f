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
_XMP = b"XML:com.adobe.xmp"
_XMP_IN_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
_RAW_PROFILE = b"Raw profile type "  # ImageMagick's way to store EXIF, IPTC and XMP, as digits in text
_RAW_PROFILES = {
    b"exif": "exif",
    b"APP1": "exif",
    b"xmp": "xmp",
    b"iptc": "iptc",
    b"8bim": "iptc",
    b"icc": "icc",
    b"icm": "icc",
}
_LARGEST_PROFILE = 1 << 24  # bytes; a crafted file may inflate to any size
_HEADER_END = len(SIGNATURE) + 25  # behind IHDR
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels


class _Chunk(NamedTuple):
    whole: bytes  # length, kind, data and checksum

    @property
    def kind(self) -> bytes:
        return self.whole[4:8]

    @property
    def data(self) -> bytes:
        return self.whole[8:-4]

    @property
    def is_critical(self) -> bool:
        return self.kind[:1].isupper()

    @property
    def is_sound(self) -> bool:
        return self.whole == chunk(self.kind, self.data)


class PngExtras(NamedTuple):
    """Hold what a PNG file says beside its pixels.

    Attributes:
        text: Its chunks of text and time, whole, but for XMP, IPTC and EXIF.
        colour_space: Its chunks of gamma, primaries and colour space, whole; a profile is in ``icc``.
        icc: Its colour profile; empty if there is none, or one of more than 16 MiB.
        xmp: Its XMP packet; empty if there is none.
        iptc: IPTC, or what Photoshop stores; empty if there is none.
    """

    text: tuple[bytes, ...] = ()
    colour_space: tuple[bytes, ...] = ()
    icc: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield the chunks of a file; the last one may be cut short."""
    view, at = memoryview(data), len(SIGNATURE)
    while at < len(data):
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        yield (part := _Chunk(bytes(view[at:end])))
        if part.kind == b"IEND":
            return
        at = end


def split_extras(data: bytes) -> tuple[bytes, PngExtras]:
    """Return a PNG file without its text and profile, which Pillow refuses where they are large, and these.

    Of the chunks that an image can do without, those that are cut short or have a wrong checksum are left
    out. EXIF that ImageMagick stored as text becomes the chunk that is meant for it.

    Args:
        data: A file that begins with `SIGNATURE`.
    """
    rest, text, colour_space, extras = [SIGNATURE], [], [], PngExtras()
    for part in _chunks(data):
        if not part.is_critical and not part.is_sound:
            continue
        if part.kind in _TEXT:
            field, content = _profile(part)
            if field == "exif":
                rest.append(chunk(b"eXIf", content))
            elif field:
                extras = PngExtras(**(extras._asdict() | {field: content}))
            else:
                text.append(part.whole)
        elif part.kind == b"iCCP":
            extras = extras._replace(icc=_inflated(part.data.partition(b"\0")[2][1:]))
        else:
            rest.append(part.whole)
            if part.kind in _COLOUR_SPACE:
                colour_space.append(part.whole)
    return b"".join(rest), extras._replace(text=tuple(text), colour_space=tuple(colour_space))


def _profile(part: _Chunk) -> tuple[str, bytes]:
    """Return which profile a chunk of text holds (exif, xmp, iptc, icc), and the profile; else two empty."""
    keyword, text = _text(part)
    if keyword == _XMP:
        return "xmp", text
    kind = _RAW_PROFILES.get(keyword.removeprefix(_RAW_PROFILE), "")
    if not kind or not keyword.startswith(_RAW_PROFILE):
        return "", b""
    try:
        _, _, digits = text.split(maxsplit=2)  # behind its name and its size
        profile = bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        return "", b""
    if kind == "exif" and profile.startswith(_XMP_IN_JPEG):
        return "xmp", profile.removeprefix(_XMP_IN_JPEG)
    return kind, profile.removeprefix(b"Exif\0\0")


def _text(part: _Chunk) -> tuple[bytes, bytes]:
    """Return the keyword and the text of a chunk."""
    keyword, _, text = part.data.partition(b"\0")
    if part.kind == b"zTXt":
        return keyword, _inflated(text[1:])
    if part.kind == b"iTXt":
        is_compressed = text[:1] == b"\1"
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]  # behind language and keyword
        return keyword, _inflated(text) if is_compressed else text
    return keyword, text


def _inflated(data: bytes, largest: int = _LARGEST_PROFILE) -> bytes:
    """Return inflated data; empty if they are damaged, or more than ``largest`` bytes."""
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, largest)
    except zlib.error:
        return b""
    return inflated if inflater.eof else b""


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
    return chunk(b"iTXt", _XMP + b"\0\0\0\0\0" + packet)


def iptc_chunk(iptc: bytes) -> bytes:
    """Return the whole chunk that holds IPTC as ImageMagick stores it: PNG has no place of its own for it."""
    text = b"\niptc\n%8d\n%s\n" % (len(iptc), iptc.hex("\n", -36).encode())
    return chunk(b"zTXt", _RAW_PROFILE + b"iptc\0\0" + zlib.compress(text))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a whole chunk: length, kind, data, checksum."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
