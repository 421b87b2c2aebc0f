"""Read the size of a JPEG XL from its first bits; the plugin of Pillow decodes a file when it opens it.

The source is ISO/IEC 18181-1 (SizeHeader) and 18181-2 (boxes).
"""

from __future__ import annotations

_CODESTREAM = b"\xff\n"
_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, from ratio 1 on
_SIZE_BITS = (9, 13, 18, 30)


def jpeg_xl_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) as a JPEG XL stores it, before it is turned; None for all other files."""
    start = 0 if data.startswith(_CODESTREAM) else _codestream_start(data)
    if start is None or data[start : start + 2] != _CODESTREAM:
        return None
    bits = _Bits(data[start + 2 : start + 14])
    is_small = bits.take(1)

    def side() -> int:
        return 8 * (bits.take(5) + 1) if is_small else bits.take(_SIZE_BITS[bits.take(2)]) + 1

    height = side()
    ratio = bits.take(3)
    if not ratio:
        return height, side()
    across, down = _RATIOS[ratio - 1]
    return height, height * across // down


def _codestream_start(data: bytes) -> int | None:
    """Return where the codestream begins in the boxes of a container; None if there is none."""
    at = 0 if data.startswith(_CONTAINER) else len(data)
    while at + 8 <= len(data):
        size, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            return at + head + 4 * (kind == b"jxlp")  # behind the number of the part
        if size < head:  # 0: the box reaches to the end
            return None
        at += size
    return None


class _Bits:
    """Take numbers from bytes, the lowest bit first."""

    def __init__(self, data: bytes) -> None:
        self._left = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        value = self._left & ((1 << count) - 1)
        self._left >>= count
        return value
