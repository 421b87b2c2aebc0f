"""Read and write the directories of TIFF, which hold EXIF too, value by value as they lie.

Pillow would turn text that is no ASCII into question marks, and lose all of an EXIF that has one odd value.
The sources are TIFF 6.0 (Adobe, 1992), BigTIFF (AWare Systems) and Exif 2.32 (CIPA DC-008).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

MAIN, EXIF, GPS, INTEROP = 0, 34665, 34853, 40965  # the first directory, and the tags that point to others
PREFIX = b"Exif\0\0"
BYTE, SHORT, LONG, RATIONAL, UNDEFINED = 1, 3, 4, 5, 7  # types of values
LAST_TYPE = 13  # of TIFF; higher ones are BigTIFF's
_PARENTS = {EXIF: MAIN, GPS: MAIN, INTEROP: EXIF}
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}


class Entry(NamedTuple):
    """Hold one value of a directory: the code of its type, and its bytes in the order of the file."""

    type: int
    value: bytes


class Directories(NamedTuple):
    """Hold the directories of a file.

    Attributes:
        order: Order of the bytes, as `struct` names it: "<" or ">".
        entries: For each directory (MAIN, EXIF, GPS, INTEROP) that the file has, its entries by tag. Those
            that point to other directories are among them; `pack_directories` sets them anew.
    """

    order: str
    entries: dict[int, dict[int, Entry]]

    def number(self, tag: int, otherwise: int = 0) -> int:
        """Return the first whole number, 0 or more, that the first directory holds under a tag."""
        entry = self.entries[MAIN].get(tag)
        size = _SIZES[entry.type] if entry else 0
        if entry is None or len(entry.value) < size:
            return otherwise
        return int.from_bytes(entry.value[:size], "little" if self.order == "<" else "big")


def read_directories(data: bytes) -> Directories:
    """Return the directories of a TIFF, a BigTIFF or an EXIF, without what lies outside of the data.

    Args:
        data: A file, or EXIF with or without its prefix.
    """
    data = data.removeprefix(PREFIX)
    order = ">" if data.startswith(b"MM") else "<"
    directories = Directories(order, {MAIN: {}})
    if data[:4] in (b"II*\0", b"MM\0*"):
        is_big, first = False, data[4:8]
    elif data[:4] in (b"II+\0", b"MM\0+"):
        is_big, first = True, data[8:16]
    else:
        return directories
    at = int.from_bytes(first, "little" if order == "<" else "big")
    directories.entries[MAIN].update(_directory(data, at, order, is_big))
    for tag, parent in _PARENTS.items():
        pointer = directories.entries.get(parent, {}).get(tag)
        if pointer and _SIZES[pointer.type] == len(pointer.value) in (4, 8):
            at = int.from_bytes(pointer.value, "little" if order == "<" else "big")
            directories.entries[tag] = _directory(data, at, order, is_big)
    return directories


def _directory(data: bytes, at: int, order: str, is_big: bool) -> dict[int, Entry]:
    """Return the directory at an offset; of several entries of one tag the first."""
    return dict(reversed(list(_entries(data, at, order, is_big))))


def _entries(data: bytes, at: int, order: str, is_big: bool) -> Iterator[tuple[int, Entry]]:
    """Yield the entries of the directory at an offset, in all no more bytes than there are data."""
    head, body, room = ("Q", "HHQ", 8) if is_big else ("H", "HHI", 4)
    head_size, body_size = struct.calcsize("<" + head), struct.calcsize("<" + body)
    left = len(data)
    if at + head_size > len(data):
        return
    (count,) = struct.unpack_from(order + head, data, at)
    first, step = at + head_size, body_size + room
    for at in range(first, min(first + count * step, len(data) - step + 1), step):
        tag, kind, number = struct.unpack_from(order + body, data, at)
        size, place = number * _SIZES.get(kind, 0), at + body_size
        if size > room:
            place = int.from_bytes(data[place : place + room], "little" if order == "<" else "big")
        if 0 < size <= left and place + size <= len(data):
            left -= size
            yield tag, Entry(kind, data[place : place + size])


def pack_directories(directories: Directories) -> bytes:
    """Return the head of a TIFF, or EXIF without its prefix: signature, directories and their values."""
    order = directories.order
    groups = {
        tag: {t: entry for t, entry in directories.entries.get(tag, {}).items() if t not in _PARENTS}
        for tag in (MAIN, *_PARENTS)
    }
    for tag, parent in reversed(_PARENTS.items()):  # children before their parents
        if groups[tag]:
            groups[parent][tag] = Entry(LONG, bytes(4))
        else:
            del groups[tag]
    offsets = dict(zip(groups, accumulate(map(_packed_size, groups.values()), initial=8), strict=False))
    for tag in groups.keys() - {MAIN}:
        groups[_PARENTS[tag]][tag] = Entry(LONG, struct.pack(order + "I", offsets[tag]))
    signature = b"II*\0" if order == "<" else b"MM\0*"
    packed = (_packed(entries, order, offsets[tag]) for tag, entries in groups.items())
    return signature + struct.pack(order + "I", 8) + b"".join(packed)


def _packed_size(entries: dict[int, Entry]) -> int:
    return 2 + 12 * len(entries) + 4 + sum(_even(len(e.value)) for e in entries.values() if len(e.value) > 4)


def _packed(entries: dict[int, Entry], order: str, at: int) -> bytes:
    """Return a directory that lies at an offset, and the values behind it."""
    table, values = bytearray(struct.pack(order + "H", len(entries))), bytearray()
    at += 2 + 12 * len(entries) + 4
    for tag, (kind, value) in sorted(entries.items()):
        table += struct.pack(order + "HHI", tag, kind, len(value) // _SIZES[kind])
        if len(value) <= 4:
            table += value.ljust(4, b"\0")
        else:
            table += struct.pack(order + "I", at + len(values))
            values += value.ljust(_even(len(value)), b"\0")
    return bytes(table + bytes(4) + values)


def _even(size: int) -> int:
    return size + size % 2
