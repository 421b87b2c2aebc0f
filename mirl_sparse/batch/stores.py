"""Read and write photos in folders and object stores, and list their keys one page at a time."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from mirl_sparse.batch.keys import UNFINISHED, Item, is_photo
from mirl_sparse.batch.listing import etag_of, find_entries
from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole
from mirl_sparse.photos.inputs import find_sources, real_path
from mirl_sparse.photos.photo import printable_path, reason

_FOLDERS = ("file", "local")  # the protocols of folders on this machine
_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between tries, each times 0.5 to 1.5
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_ONE_DAY = 86_400.0
_T = TypeVar("_T")


class StoreError(UserError):
    """Report that a store does not do what it is asked for; the photo is not to blame."""


@dataclass(frozen=True)
class Address:
    """Say where a store is, so that other processes and machines can open it.

    Attributes:
        url: A folder, or a URL that fsspec knows, such as s3://bucket/photos.
        options: What fsspec is told beside it; folders ignore it.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return printable_path(self.url)


class Store(Protocol):
    """Hold files by their keys, which are paths below its root.

    Each method raises StoreError if the store does not answer, after several tries where that may help, and
    FileNotFoundError if there is no such file.
    """

    place: str
    """Return the address that tells the store's root from others; it ends in `/`."""

    def items(self, skip: str, left_out: Counter[str]) -> Iterator[Item]:
        """Yield the photos below the root, as they are listed; keys that begin with ``skip`` are not."""

    def names(self, folder: str) -> list[str]:
        """Return the keys of the files in a folder, in any order; none if there is no such folder."""

    def etag(self, key: str) -> str:
        """Return what changes when the file does."""

    def exists(self, key: str) -> bool:
        """Return whether there is such a file."""

    def read(self, key: str) -> bytes:
        """Return a file's content."""

    def write(self, key: str, data: bytes) -> None:
        """Write a file, which appears under its key only when it is complete."""

    def remove(self, key: str) -> None:
        """Remove a file; nothing happens if there is none."""


def open_store(address: Address) -> Store:
    """Return the store at an address; nothing is read or made.

    Raises:
        UserError: fsspec does not know such stores, or a package is missing.
    """
    folder = _folder(address)
    return ObjectStore(address) if folder is None else FolderStore(folder)


def open_stream(address: Address) -> IO[bytes]:
    """Return a file anywhere as a binary stream.

    Raises:
        UserError: It cannot be opened.
    """
    file = _folder(address)
    try:
        if file is not None:
            return file.open("rb")
        fs, path = _filesystem(address)
        stream: IO[bytes] = fs.open(path, "rb")
        return stream
    except Exception as error:
        if not _is_fault(error):
            raise
        raise UserError(f"{address}: cannot be read ({reason(error)})") from error


def _folder(address: Address) -> Path | None:
    """Return the path on this machine that an address names, or None if it names none."""
    protocol, is_url, path = address.url.partition("://")
    if not is_url:
        return Path(address.url)
    return Path(path) if protocol in _FOLDERS else None


class FolderStore:
    """Hold files in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = str(real_path(root)).rstrip(os.sep) + os.sep

    def items(self, skip: str, left_out: Counter[str]) -> Iterator[Item]:
        """Yield photos folder by folder, each in the order of their names."""
        if self.root.exists() and not self.root.is_dir():
            raise UserError(
                f"{printable_path(self.root)}: is a file; expected a folder or a store (lists: --manifest)"
            )
        output = self.root / skip if skip else None
        for source in find_sources([str(self.root)], output, left_out):
            with suppress(FileNotFoundError):  # removed since
                yield Item(source.below.as_posix(), self._stamp(source.path))

    def names(self, folder: str) -> list[str]:
        """Return the keys of the files in a folder."""
        try:
            return [f"{folder}/{name}" for name in os.listdir(self.root / folder)]
        except FileNotFoundError:
            return []

    def etag(self, key: str) -> str:
        """Return the file's size, and the time of its last change in ns."""
        return self._stamp(self.root / key)

    def exists(self, key: str) -> bool:
        """Return whether there is such a file."""
        return os.path.isfile(self.root / key)

    def read(self, key: str) -> bytes:
        """Return a file's content."""
        with _disk_faults(key):
            return (self.root / key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        """Write a file under another name and rename it."""
        with _disk_faults(key):
            unfinished = self.root / UNFINISHED
            unfinished.mkdir(parents=True, exist_ok=True)
            write_whole(self.root / key, data, real_path(unfinished))

    def remove(self, key: str) -> None:
        """Remove a file."""
        with _disk_faults(key):
            (self.root / key).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove what kills have left unfinished for a day: what is younger may still be written."""
        with suppress(OSError):
            for path in (self.root / UNFINISHED).iterdir():
                if path.stat().st_mtime < time.time() - _ONE_DAY:
                    path.unlink()

    @staticmethod
    def _stamp(path: Path) -> str:
        status = path.stat()
        return f"{status.st_size}-{status.st_mtime_ns}"


@contextmanager
def _disk_faults(key: str) -> Iterator[None]:
    """Turn what a disk reports into a StoreError; a missing file stays a FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"{printable_path(key)}: {reason(error)}") from error


class ObjectStore:
    """Hold files in a store that fsspec reaches."""

    def __init__(self, address: Address) -> None:
        self._fs, self._root = _filesystem(address)
        protocol = self._fs.protocol
        self.place = f"{protocol if isinstance(protocol, str) else protocol[0]}://{self._root}/"

    def items(self, skip: str, left_out: Counter[str]) -> Iterator[Item]:
        """Yield photos in the order in which the store lists them."""
        for entry in find_entries(self._fs, self._root, patiently):
            if not (skip and entry.key.startswith(skip)) and is_photo(entry.key, left_out):
                yield entry

    def names(self, folder: str) -> list[str]:
        """Return the keys of the files in a folder."""
        entries = find_entries(self._fs, self._path(folder), patiently)
        return [f"{folder}/{entry.key}" for entry in entries]

    def etag(self, key: str) -> str:
        """Return the etag, or what the store has in its place."""
        return etag_of(patiently(lambda: self._fs.info(self._path(key)), key))

    def exists(self, key: str) -> bool:
        """Return whether there is such a file."""
        return bool(patiently(lambda: self._fs.exists(self._path(key)), key))

    def read(self, key: str) -> bytes:
        """Return a file's content, in one request."""
        return bytes(patiently(lambda: self._fs.cat_file(self._path(key)), key))

    def write(self, key: str, data: bytes) -> None:
        """Write a file in one upload; stores of objects show it when it is complete."""
        patiently(lambda: self._fs.pipe_file(self._path(key), data), key)

    def remove(self, key: str) -> None:
        """Remove a file."""
        with suppress(FileNotFoundError):
            patiently(lambda: self._fs.rm_file(self._path(key)), key)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"


def patiently(action: Callable[[], _T], name: str) -> _T:
    """Return what an action on a store returns; where the store fails, try again after longer and longer.

    Args:
        action: May be called several times.
        name: What messages call it.

    Raises:
        StoreError: It still fails, or fails in a way that lasts.
        FileNotFoundError: There is no such file.
    """
    for delay in (*_DELAYS, None):
        try:
            return action()
        except FileNotFoundError:
            raise
        except Exception as error:
            if not _is_fault(error):
                raise
            if delay is None or isinstance(error, _LASTING):
                raise StoreError(f"{printable_path(name)}: {reason(error)}") from error
            time.sleep(delay * (0.5 + random.random()))
    raise AssertionError("the last try returns or raises")


def _is_fault(error: Exception) -> bool:
    """Return whether an error is of the store: of the system, or of a class that its packages define."""
    return isinstance(error, OSError) or type(error).__module__ != "builtins"


def _defaults(url: str) -> dict[str, Any]:
    """Return what fsspec is told unless the user says otherwise."""
    options: dict[str, Any] = {"use_listings_cache": False}  # of millions of keys
    if url.startswith(("s3://", "s3a://")):
        options["max_concurrency"] = 1  # a photo in one request, never in parts of two versions
    return options


def _filesystem(address: Address) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(address.url, **_defaults(address.url) | dict(address.options))
    except (ImportError, ValueError, TypeError) as error:  # a package, a protocol, an option
        raise UserError(f"{address}: cannot be opened ({reason(error)})") from error
    path = path.rstrip("/")
    if not path.strip("/"):
        raise UserError(f"{address}: names no bucket; expected such as s3://bucket/photos")
    return fs, path
