"""Name photos by their keys: which ones a shard takes, and what their results are called."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePosixPath

from mirl_sparse.errors import UserError
from mirl_sparse.photos import FORMATS
from mirl_sparse.photos.formats import readable_suffixes
from mirl_sparse.photos.inputs import kind_left_out

HOUSEKEEPING = "_mirl"  # folder in the target: the report, and files that are not complete yet
REPORT = f"{HOUSEKEEPING}/report"
UNFINISHED = f"{HOUSEKEEPING}/unfinished"
_DEFAULT_SUFFIX = ".png"


@dataclass(frozen=True)
class Item:
    """Name one photo of the source.

    Attributes:
        key: Its path below the source, with `/` between the parts.
        etag: What changes when the photo does, as the store tells it; empty if it was not asked.
    """

    key: str
    etag: str = ""


@dataclass(frozen=True)
class Target:
    """Name the result of one photo.

    Attributes:
        key: Its path below the target.
        format: One of the values of FORMATS.
    """

    key: str
    format: str


@dataclass(frozen=True)
class Shard:
    """Take every photo whose key's hash falls to one of several jobs.

    Attributes:
        number: Which job, from 1.
        count: How many jobs there are.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that a text such as "3/100" names.

        Raises:
            UserError: It names none.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard is {text!r}; expected i/n with i from 1 to n, such as 3/100")
        return cls(int(match[1]), int(match[2]))

    def holds(self, key: str) -> bool:
        """Return whether the photo of a key falls to this job."""
        return key_number(key) % self.count == self.number - 1


def key_text(key: str) -> str:
    """Return a key as the report holds it; bytes that are not UTF-8 are escaped."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def key_number(key: str) -> int:
    """Return a hash of a key, 0 to 2**64 - 1, the same in all processes.

    Examples:
        >>> key_number("a.jpg")
        18322877502207469449
    """
    return number_of(key_text(key))


def number_of(text: str) -> int:
    """Return a hash of a text, 0 to 2**64 - 1, the same in all processes."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def target_of(key: str, suffix: str | None = None) -> Target:
    """Return where the result of a photo goes.

    A name that says its format already is kept. Otherwise a suffix is appended, so that the results of a.jpg
    and a.gif do not meet.

    Args:
        key: The key of the photo.
        suffix: Suffix of the format that is asked for; None for the photo's own, and PNG where it is not
            written here.

    Examples:
        >>> target_of("a.jpg"), target_of("a.gif"), target_of("a.jpg", ".webp")
        (Target(key='a.jpg', format='JPEG'), Target(key='a.gif.png', format='PNG'), \
Target(key='a.jpg.webp', format='WEBP'))
    """
    own = FORMATS.get(PurePosixPath(key).suffix.lower())
    if own is not None and (suffix is None or own == FORMATS[suffix]):
        return Target(key, own)
    suffix = suffix or _DEFAULT_SUFFIX
    return Target(key + suffix, FORMATS[suffix])


def fault_of(key: str) -> str | None:
    """Return why a key cannot be restored, or None: it must name one place below the target."""
    for part in key.split("/"):
        if part in ("", ".", ".."):
            return f"the key has the part {part!r}; expected names between single slashes"
    if "\0" in key:
        return "the key holds the character NUL; rename the photo"
    if key.startswith(f"{HOUSEKEEPING}/"):
        return f"the key begins with {HOUSEKEEPING}/, where the target keeps its report; rename the folder"
    return None


def is_photo(key: str, left_out: Counter[str]) -> bool:
    """Return whether a key of a listing may name a photo; if not, count it by its kind.

    Hidden files and folders are left out uncounted. A name without a suffix may be one: only its content
    tells.
    """
    path = PurePosixPath(key)
    if key.endswith("/") or any(part.startswith(".") for part in path.parts):
        return False
    suffix = path.suffix.lower()
    if not suffix or suffix in readable_suffixes():
        return True
    left_out[kind_left_out(suffix)] += 1
    return False
